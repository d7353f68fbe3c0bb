"""The journal of a check, `m.csv.journal` beside `m.csv`: a line of JSON for each file checked and
for each table written.

Of a file, the last line counts; lines of an older version are passed over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mats_ds.core.storage.files import refuse_wrong_kind
from mats_ds.core.storage.own_files import OwnFiles
from mats_ds.data.prepare.checking.check_file import FileFacts, Outcome
from mats_ds.data.prepare.file_identity import FileIdentity
from mats_ds.data.prepare.journal import Journal, open_journal, read_entries

JOURNAL_VERSION = 4  # counted up when facts of an older check can no longer be used
LINE_STARTS = (b'{"version": ', b'{"wrote": ')  # of every line of ours
LINE_BYTES = 1000
KINDS = {  # what JSON gives for the fields of FileFacts
    "int": ("int",),
    "float": ("float", "int"),
    "float | None": ("float", "int", "NoneType"),
    "bool": ("bool",),
    "str": ("str",),
}


def journal_path(out: str | os.PathLike[str]) -> Path:
    """The path of the journal: `m.csv` -> `m.csv.journal`."""
    return Path(f"{os.fspath(out)}.journal")


class CheckJournal:
    """known: the outcome of each file that can be used again, and the identity the file had. own:
    the tables written before.

    is_old: it was written by version 0.1, which did not note its tables.
    """

    def __init__(self, journal: Journal) -> None:
        self.path = journal.path
        self._journal = journal
        self.known = read_outcomes(journal.lines)
        self.own = OwnFiles(journal.path.parent, journal.lines)
        self.is_old = not self.own and any('"facts": ' in line and '"ctime_ns": ' not in line for line in journal.lines)

    def add(self, outcome: Outcome, identity: FileIdentity) -> None:
        """Note the outcome of a file."""
        entry = {"version": JOURNAL_VERSION, "bytes": identity.num_bytes, "mtime_ns": identity.modified_ns}
        entry |= {"ctime_ns": identity.changed_ns, "sample": identity.sample}
        self._journal.add(json.dumps(entry | dataclasses.asdict(outcome)))

    def add_table(self, path: Path, checksum: str) -> None:
        """Note that a table is about to be written, so that it is known as ours whatever happens
        next."""
        if line := self.own.note(path, checksum):
            self._journal.add(line)
        self._journal.sync()

    def forget_outcomes(self) -> None:
        """Have every file checked again; the tables written stay known."""
        self._journal.add(json.dumps({"version": JOURNAL_VERSION, "restart": True}))
        self.known = {}


@contextlib.contextmanager
def open_check_journal(path: Path) -> Iterator[CheckJournal]:
    """The journal, locked against other checks.

    Raises ValueError while another check writes it, and where the file is not a journal of ours.
    """
    _refuse_other_files(path)
    with open_journal(path, command="check", holder=path.with_name(f".{path.name}.lock")) as journal:
        yield CheckJournal(journal)


def read_outcomes(lines: list[str]) -> dict[str, tuple[FileIdentity, Outcome]]:
    """The last outcome of each file that can be used again, with the identity that the file had."""
    known: dict[str, tuple[FileIdentity, Outcome]] = {}
    for entry in read_entries(lines):
        try:
            if entry["version"] != JOURNAL_VERSION:
                continue
            if entry.get("restart"):
                known.clear()
                continue
            facts = None if entry["facts"] is None else _read_facts(entry["facts"])
            outcome = Outcome(str(entry["path"]), facts, str(entry["problem"]), bool(entry["again"]))
            if facts is None and not outcome.problem:
                continue
            identity = FileIdentity(entry["bytes"], entry["mtime_ns"], entry.get("ctime_ns"), entry.get("sample"))
        except (ValueError, KeyError, TypeError):
            continue
        known.pop(outcome.path, None)
        if not outcome.again:
            known[outcome.path] = identity, outcome
    return known


def _read_facts(fields: dict[str, Any]) -> FileFacts:
    """Raises TypeError and ValueError for facts that no check has noted."""
    facts = FileFacts(**fields | {"warnings": tuple(fields["warnings"])})
    for field in dataclasses.fields(FileFacts):
        value = getattr(facts, field.name)
        if field.name != "warnings" and type(value).__name__ not in KINDS[field.type]:
            raise TypeError(f"{field.name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}")
    if not (facts.fps > 0 and facts.num_frames > 0 and all(isinstance(warning, str) for warning in facts.warnings)):
        raise ValueError(f"{facts.num_frames} frames at {facts.fps} frames/s")
    return facts


def _refuse_other_files(path: Path) -> None:
    """Raises ValueError where a file that no check has written has the journal's name."""
    refuse_wrong_kind(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        first = next(filter(None, (file.readline(LINE_BYTES).strip() for _ in range(3))), b"")
    if first and not first.startswith(LINE_STARTS) and not any(start.startswith(first) for start in LINE_STARTS):
        raise ValueError(f"{path}, where a check keeps what it knows, is a file of something else: give another --out")
