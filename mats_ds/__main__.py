"""The console command: `mats VERB ...` is mats_ds/VERB.py, on all ranks where the program takes
several.

Nothing but the standard library is loaded before the verb is known, so that `mats --help` needs no
package.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import importlib

import mats_ds
from mats_ds.core.cli import USAGE_ERROR, run_script
from mats_ds.core.storage.package_files import launch_script
from mats_ds.core.text import find_nearest, quote_word, say, tell_error
from mats_ds.distributed.process_group import is_dry_run, show_words

PACKAGE = Path(__file__).resolve().parent
ON_RANKS = ("pretrain", "finetune", "evaluate", "extract")
IN_ONE_PROCESS = ("prepare", "convert", "probe", "visualize", "plan", "report", "docs")
VERBS = (*ON_RANKS, *IN_ONE_PROCESS, "launch", "demo")
OF_LAUNCH_SH = ("test", "setup")
SHOWN_CHARACTERS = 40


def main(arguments: list[str] | None = None) -> int:
    """Run the verb and return its exit status."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    return run_script(lambda: run_verb(verb, rest))


def run_verb(verb: str, arguments: list[str]) -> int:
    """The exit status of the verb's program: in this process, or that of its ranks."""
    if verb in ("-h", "--help", "help"):
        say("Usage: mats VERB [ARGUMENTS]    (mats VERB --help has each verb's own)", "", *read_help())
        return 0
    if verb == "--version":
        say(f"mats {mats_ds.__version__}")
        return 0
    if verb not in VERBS:
        tell_error(describe_unknown(verb))
        return USAGE_ERROR
    if verb in ON_RANKS and not wants_one_process(arguments):
        return importlib.import_module("mats_ds.launch").launch(verb, arguments)
    # these two print what they would run themselves
    if is_dry_run() and verb not in ("launch", "demo"):
        print(show_words([sys.executable, PACKAGE / f"{verb}.py", *arguments]))
        return 0
    sys.argv = [f"mats {verb}", *arguments]  # argparse takes the program's name from it
    return importlib.import_module(f"mats_ds.{verb}").main()


def wants_one_process(arguments: list[str]) -> bool:
    """Whether a program that can take several ranks is only asked for its help, or given one
    video."""
    return any(word in ("-h", "--help", "--video") or word.startswith("--video=") for word in arguments)


def read_help() -> list[str]:
    """The lines on verbs, options of the launcher and variables."""
    return (PACKAGE / "commands.txt").read_text(encoding="utf-8").splitlines()


def describe_unknown(verb: str) -> str:
    """The message for an unknown verb, with the nearest known one of those that can be typed
    here."""
    script = " ".join(map(quote_word, launch_script()))
    known = (*VERBS, *(OF_LAUNCH_SH if script else ()))
    shown = verb if len(verb) <= SHOWN_CHARACTERS else f"{verb[:SHOWN_CHARACTERS]}..."
    close = find_nearest(verb, known)
    hint = f"; did you mean {close!r}?" if close else "."
    others = f", and with {script}: {' '.join(OF_LAUNCH_SH)}" if script else ""
    return f"there is no command {shown!r}{hint} Commands: {' '.join(VERBS)}{others}"


if __name__ == "__main__":
    sys.exit(main())
