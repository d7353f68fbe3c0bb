"""Prepare videos and annotations for training: one subcommand a task.

    python mats_ds/prepare.py import SOURCE --out manifest.csv [--root VIDEO_DIR]    # someone's annotations -> manifest

Each subcommand is an `add_<name>` that declares its arguments and names the function that runs it; `SUBCOMMANDS` lists them.
Exit status: 0 done, 1 done with something left out (said in words), 2 unusable input or arguments, nothing written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

DONE, LEFT_OUT, UNUSABLE = 0, 1, 2


def add_import(commands) -> None:
    """Arguments of `import`."""
    parser = commands.add_parser("import", help="annotations as a data set ships them -> manifest.csv")
    parser.add_argument("source", help="annotation file, or folder of videos or of annotation files")
    parser.add_argument("--out", required=True, metavar="CSV", help="manifest to write")
    parser.set_defaults(run=run_import)


def run_import(options: argparse.Namespace) -> int:
    raise ValueError("import reads no format yet: give data.manifest a folder or a list of `path label` lines")


SUBCOMMANDS = (add_import,)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prepare videos and annotations for training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in SUBCOMMANDS:
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
