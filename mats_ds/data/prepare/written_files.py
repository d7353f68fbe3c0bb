"""The files that one command has written into its folder, and its tables there: only what has still
the content that it wrote is replaced or removed.

    OUT/.written.jsonl   one line a file that got its name in OUT, with its SHA-256 (own_files.py)
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from mats_ds.core.storage.files import format_csv, hash_file, hash_text, open_to_append, write_text
from mats_ds.core.storage.own_files import OwnFiles, refuse_sources, set_aside

logger = logging.getLogger(__name__)

RECORD = ".written.jsonl"
TOKEN_LINE = re.compile(r'\{"token": "([0-9a-f]{16})"\}')


class WrittenFiles:
    """The record of the folder `out`, which is made. token: of the names of unfinished files in
    it.

    is_old: recognises a table that the command wrote before it kept a record.
    """

    def __init__(self, out: Path, *, is_old: Callable[[Path, Sequence[str]], bool] = lambda path, header: False) -> None:
        self.record = out.absolute() / RECORD
        lines = self.record.read_text(encoding="utf-8", errors="replace").split("\n") if self.record.exists() else []
        self.own = OwnFiles(out, lines)
        self._is_old = is_old
        tokens = [match[1] for line in lines if (match := TOKEN_LINE.fullmatch(line))]
        self.token = tokens[0] if tokens else secrets.token_hex(8)
        if not tokens:
            self._note(json.dumps({"token": self.token}))

    def check_table(self, path: Path, header: Sequence[str], *, sources: Sequence[str | os.PathLike[str]] = ()) -> None:
        """Raises ValueError where a table would take the place of a source or of a file that this
        command did not write."""
        refuse_sources(path, option="the table", sources=sources)
        if path.exists() and not self.own.holds(path) and not self._is_old(path, header):
            what = "was changed after this command wrote it" if self.own.knows(path) else "was not written by this command"
            raise ValueError(f"{path} {what}, and would be lost: rename it, or give another --out")

    def write_table(self, path: Path, header: Sequence[str], rows: Sequence[tuple], *, even_empty: bool = False) -> None:
        """A CSV that appears at once; without rows an earlier one is removed, unless it is to be
        written `even_empty`.

        One that an older program wrote and that differs is kept as NAME.old. Raises ValueError as
        `check_table` does.
        """
        self.check_table(path, header)
        text = format_csv([header, *rows])
        is_wanted, checksum = bool(rows) or even_empty, hash_text(text)
        if path.exists() and not self.own.holds(path) and not (is_wanted and hash_file(path) == checksum):
            logger.info("%s, of version 0.1, is kept as %s", path, set_aside(path))
        if not is_wanted:
            path.unlink(missing_ok=True)
            return
        self.write(path, text)

    def write(self, path: Path, text: str) -> None:
        """Write a text file and note it, in this order: first the record."""
        if line := self.own.note(path, hash_text(text)):
            self._note(line)
        write_text(path, text, durable=True, errors="backslashreplace")

    def _note(self, line: str) -> None:
        with open_to_append(self.record) as record:
            record.write("\n" + line)
