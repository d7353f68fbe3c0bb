"""Arguments and ending of a program: exit statuses, and one line of text for what went wrong.

def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda: convert(parse_arguments(arguments)))

if __name__ == "__main__":
    leave(main())

arguments   a command line -> options, or what was probably meant
endings     work -> exit status, and one line for what ended it early
heavy_imports   the seconds in which torch and its like are imported, after the checks
"""

from mats_ds.core.cli.arguments import LAUNCHER_OPTIONS, LAUNCHER_SWITCHES, LAUNCHER_WITH_VALUE, ArgumentParser
from mats_ds.core.cli.endings import (
    EXIT_SECONDS,
    FINISHED,
    INTERRUPTED,
    KILLED_BY_USER,
    RUN_ERROR,
    USAGE_ERROR,
    ProgramEnd,
    is_out_of_memory,
    leave,
    run_script,
)
from mats_ds.core.cli.heavy_imports import importing

__all__ = [
    "EXIT_SECONDS",
    "FINISHED",
    "INTERRUPTED",
    "KILLED_BY_USER",
    "LAUNCHER_OPTIONS",
    "LAUNCHER_SWITCHES",
    "LAUNCHER_WITH_VALUE",
    "RUN_ERROR",
    "USAGE_ERROR",
    "ArgumentParser",
    "ProgramEnd",
    "importing",
    "is_out_of_memory",
    "leave",
    "run_script",
]
