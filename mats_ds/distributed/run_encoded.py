"""Become a program of ours, with arguments that reached this host as one encoded argument.

    python mats_ds/distributed/run_encoded.py [--local_rank=N] NAME ENCODED

pdsh hands a command line to a shell over there, which expands `$(...)`, quotes, backslashes and
globs, and replaces %h, %u and %n itself; mpirun takes a lone ":" for the start of another program.
So remote.py hands arguments with such characters over as one argument: the arguments, all ended by
a zero byte, in the URL-safe base64 of RFC 4648, of which no shell expands anything.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from pathlib import Path

NAMES = ("pretrain", "finetune", "evaluate", "extract")


def decode_arguments(encoded: str) -> list[bytes]:
    """The decoded arguments. Raises ValueError for what remote.py has not made."""
    try:
        text = base64.b64decode(encoded.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(f"expected arguments in URL-safe base64, got {encoded[:60]!r}: {error}") from None
    *arguments, rest = text.split(b"\0")
    if rest:
        raise ValueError(f"expected arguments that all end with a zero byte, got {encoded[:60]!r}: a part of it is missing")
    return arguments


def main(arguments: list[str]) -> int:
    *options, name, encoded = arguments if len(arguments) > 1 else ["", ""]
    try:
        if name not in NAMES:
            raise ValueError(f"expected {', '.join(NAMES)} and encoded arguments, got {name[:60]!r}: launch.py writes them")
        arguments = decode_arguments(encoded)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    script = Path(__file__).resolve().parents[1] / f"{name}.py"
    os.execv(sys.executable, [sys.executable, "-u", script, *options, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
