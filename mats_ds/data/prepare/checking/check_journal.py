"""The journal of a check, `m.csv.journal` beside `m.csv`: a line of JSON for each file checked and for each table written.

Lines are only added. Of a file, the last line counts; a torn line and those of an older version are passed over.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import read_bytes, refuse_wrong_kind, write_text
from mats_ds.core.storage.own_files import OwnFiles
from mats_ds.data.prepare.checking.check_file import FileFacts
from mats_ds.data.prepare.checking.check_workers import Outcome, facts_from_json
from mats_ds.data.prepare.file_identity import FileIdentity

try:
    import fcntl
except ImportError:  # no POSIX system: nobody is refused
    fcntl = None

JOURNAL_VERSION = 3  # counted up when facts of an older check can no longer be used
FIRST_WORDS = ('{"version": ', '{"wrote": ')  # of every line of ours
KINDS = {  # what JSON gives for the fields of FileFacts
    "int": ("int",),
    "float": ("float", "int"),
    "float | None": ("float", "int", "NoneType"),
    "bool": ("bool",),
    "str": ("str",),
}
HOLDER_BYTES = 1000
HOLDER_WORDS = "check on host "
SAVE_SECONDS = 30.0


def journal_path(out: str | os.PathLike[str]) -> Path:
    """Where the outcomes are kept: `m.csv` -> `m.csv.journal`."""
    return Path(f"{os.fspath(out)}.journal")


class CheckJournal:
    """known: the outcome of each file that can be used again, and the identity the file had. own: the tables written before.

    is_old: it was written by version 0.1, which did not note its tables.
    """

    def __init__(self, path: Path, file: TextIO, lines: list[str]) -> None:
        self.path = path
        self._file = file
        self._saved_seconds = time.monotonic()
        self.known = read_outcomes(lines)
        self.own = OwnFiles(path.parent, lines)
        self.is_old = not self.own and any('"facts": ' in line and '"ctime_ns": ' not in line for line in lines)

    def add(self, outcome: Outcome, identity: FileIdentity) -> None:
        """Note what came of a file."""
        entry = {"version": JOURNAL_VERSION, "bytes": identity.num_bytes, "mtime_ns": identity.modified_ns}
        entry |= {"ctime_ns": identity.changed_ns, "sample": identity.sample}
        self._write(json.dumps(entry | dataclasses.asdict(outcome)))
        if time.monotonic() - self._saved_seconds > SAVE_SECONDS:
            self._sync()

    def add_table(self, path: Path, checksum: str) -> None:
        """Note that a table is about to be written, so that it is known as ours whatever happens next."""
        if line := self.own.note(path, checksum):
            self._write(line)
        self._sync()

    def forget_outcomes(self) -> None:
        """Have every file checked again; what was written stays known."""
        self._write(json.dumps({"version": JOURNAL_VERSION, "restart": True}))
        self.known = {}

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._saved_seconds = time.monotonic()


@contextmanager
def open_journal(path: Path) -> Iterator[CheckJournal]:
    """The journal, opened for appending and locked.

    Raises ValueError while another check writes it, and where the file is not a journal of ours.
    """
    _refuse_strangers(path)
    holder = path.with_name(f".{path.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf-8", errors="replace") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another check is writing {path}: wait for it, or give another --out{_describe_holder(holder)}"
                ) from None
            except OSError:  # a file system without locks
                pass
        names_holder = _name_holder(holder)
        try:
            file.seek(0)
            lines = file.read().split("\n")
            if lines[-1]:  # the last line was torn
                file.write("\n")
            yield CheckJournal(path, file, lines)
        finally:
            if names_holder:
                holder.unlink(missing_ok=True)


def read_outcomes(lines: list[str]) -> dict[str, tuple[FileIdentity, Outcome]]:
    """The last outcome of each file that can be used again, with the identity that the file had."""
    known: dict[str, tuple[FileIdentity, Outcome]] = {}
    for line in lines:
        try:
            entry = parse_json(line)
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
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        known.pop(outcome.path, None)
        if not outcome.again:
            known[outcome.path] = identity, outcome
    return known


def _read_facts(fields: dict[str, Any]) -> FileFacts:
    """Raises TypeError and ValueError for facts that no check has noted."""
    facts = facts_from_json(fields)
    for field in dataclasses.fields(FileFacts):
        value = getattr(facts, field.name)
        if field.name != "warnings" and type(value).__name__ not in KINDS[field.type]:
            raise TypeError(f"{field.name} is {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}")
    if not (facts.fps > 0 and facts.num_frames > 0 and all(isinstance(warning, str) for warning in facts.warnings)):
        raise ValueError(f"{facts.num_frames} frames at {facts.fps} frames/s")
    return facts


def _refuse_strangers(path: Path) -> None:
    """Raises ValueError where something has the journal's name that no check has written."""
    refuse_wrong_kind(path)
    if not path.exists():
        return
    with open(path, "rb") as file:
        first = next(filter(None, (file.readline(HOLDER_BYTES).strip() for _ in range(3))), b"")
    words = tuple(word.encode() for word in FIRST_WORDS)
    if first and not first.startswith(words) and not any(word.startswith(first) for word in words):
        raise ValueError(f"{path}, where a check keeps what it knows, is a file of something else: give another --out")


def _name_holder(holder: Path) -> bool:
    """Leave word of who has the journal; the lock does not depend on it. Whether it was left."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        if holder.exists() and not _read_holder(holder):  # not left by a check that was killed
            return False
        write_text(holder, f"{HOLDER_WORDS}{socket.gethostname()}, process {os.getpid()}, since {since}\n")
    except (OSError, ValueError):
        return False
    return True


def _describe_holder(holder: Path) -> str:
    words = _read_holder(holder)
    return f" ({words})" if words else ""


def _read_holder(holder: Path) -> str:
    """What a check left there; empty for a file of something else."""
    try:
        words = read_bytes(holder, max_bytes=HOLDER_BYTES).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""
    return words if words.startswith(HOLDER_WORDS) and words.isprintable() else ""
