"""Record of a folder of copies: the originals that are finished, and the files in it that
`prepare.py transcode` wrote.

    OUT/copies.jsonl     one line a finished original, with its copy or its segments
    OUT/.written.jsonl   one line a file that got its name in OUT, with its SHA-256 (own_files.py)

A copy or a table that is there already is replaced or removed only if OUT/.written.jsonl has its
very content. Of a folder that version 0.1 made, which has no such record, copies are known by their
sizes and tables by their columns.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mats_ds.core.storage.files import hash_text, refuse_wrong_kind
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_folder import hold_output_folder
from mats_ds.data.prepare.copying.copy_plan import COMMAND, JOURNAL, PlannedCopy, holds_copies, is_inside
from mats_ds.data.prepare.copying.copy_task import CopyOutcome
from mats_ds.data.prepare.copying.segment import Segment
from mats_ds.data.prepare.file_identity import FileIdentity, identify, is_same_file, with_sample
from mats_ds.data.prepare.journal import Journal, open_journal, read_entries
from mats_ds.data.prepare.publishing import Publisher, remove_parts
from mats_ds.data.prepare.written_files import RECORD, WrittenFiles

PIECE_NAME = re.compile(r"(.+)_\d{4,}\.(mp4|mkv)", re.DOTALL)
NUM_SHOWN = 3


class CopyJournal:
    """The finished files of `out`, by source, and the files there that are ours."""

    def __init__(self, journal: Journal, kind: dict[str, Any], out: Path) -> None:
        self._journal, self._kind = journal, kind
        self._files = WrittenFiles(out, is_old=self._is_old_table)
        self._own = self._files.own
        self._entries = _read_finished(journal.lines, out)
        self._old_bytes = {  # of the copies of version 0.1, by name
            self._own.name(piece["path"]): piece["num_bytes"]
            for entry in self._entries.values()
            if "sample" not in entry
            for piece in entry["pieces"]
        }
        # Of two originals that had the same copy one after the other, it is that of the later one.
        self._source_of = {self._own.name(path): source for source, entry in self._entries.items() for path in _paths(entry)}

    def find(self, copy: PlannedCopy, *, keep_partial: bool, needed_seconds: float) -> CopyOutcome | None:
        """The outcome of an earlier run, if it still holds."""
        entry = self._entries.get(copy.source)
        if entry is None or entry["kind"] != self._kind:
            return None
        try:
            is_same = is_same_file(copy.source, identify(copy.source), _noted_identity(entry))
        except (OSError, ValueError):
            return None
        pieces = tuple(map(_read_piece, entry["pieces"]))
        is_complete = all(os.path.isfile(piece.path) and os.path.getsize(piece.path) == piece.num_bytes for piece in pieces)
        is_complete = is_complete and all(self._is_planned(piece.path, copy) for piece in pieces)
        reaches = entry.get("needed_seconds") is not None and needed_seconds <= entry["needed_seconds"]
        if not is_same or not is_complete or (entry["problem"] and not keep_partial and not reaches):
            return None
        return CopyOutcome(copy.source, pieces, entry["problem"])

    def is_other_kind(self, copy: PlannedCopy) -> bool:
        """Whether an earlier run made it with other settings, or by an earlier version of them."""
        entry = self._entries.get(copy.source)
        return entry is not None and entry["kind"] != self._kind

    def add(self, outcome: CopyOutcome, identity: FileIdentity, *, needed_seconds: float) -> None:
        """Note a finished file; pieces that an earlier run made of it and this one did not are
        removed.

        identity: of the original before it was read.
        """
        seen = with_sample(outcome.source, identity)
        entry = {
            "source": outcome.source,
            "file": [seen.num_bytes, seen.modified_ns],
            "ctime_ns": seen.changed_ns,
            "sample": seen.sample,
            "kind": self._kind,
            "pieces": [asdict(piece) for piece in outcome.pieces],
            "problem": outcome.problem,
            "needed_seconds": None if math.isinf(needed_seconds) else needed_seconds,
        }
        self._journal.add(json.dumps(entry))
        present = {self._own.name(path) for path in _paths(entry)}
        for path in _paths(self._entries.get(outcome.source, {"pieces": ()})):
            name = self._own.name(path)
            if name not in present and self._source_of[name] == outcome.source and self._is_ours(path):
                os.unlink(path)
        self._entries[outcome.source] = entry
        self._source_of |= dict.fromkeys(present, outcome.source)

    def make_publishers(self, copies: Sequence[PlannedCopy], *, is_cut: bool) -> dict[str, Publisher]:
        """The publisher of each original's files, by source.

        Raises ValueError where one would take the place of a file that this command did not write.
        """
        pieces: dict[str, list[str]] = defaultdict(list)
        for name in (*self._own.names(), *self._old_bytes) if is_cut else ():
            if match := PIECE_NAME.fullmatch(name):
                pieces[match[1]].append(name)
        publishers, foreign = {}, []
        for copy in copies:
            folder, stem = os.path.dirname(copy.target), os.path.splitext(copy.target)[0]
            if is_cut:
                known = [os.path.join(folder, os.path.basename(name)) for name in pieces[self._own.name(stem)]]
                # the others are met when it is known how many there are
                first = [f"{stem}_0000.mp4", f"{stem}_0000.mkv"]
            else:
                known = first = [copy.target]
            ours = frozenset(path for path in known if self._is_ours(path))
            foreign += [path for path in first if os.path.lexists(path) and path not in ours]
            publishers[copy.source] = Publisher(
                f"{hash_text(copy.target)[:16]}.{self._files.token}", str(self._files.record), ours
            )
        if foreign:
            more = f" and {len(foreign) - NUM_SHOWN:,} more" if len(foreign) > NUM_SHOWN else ""
            raise ValueError(
                f"{', '.join(foreign[:NUM_SHOWN])}{more} would be overwritten, and this command did not write what is there: "
                "move it away, or give another --out"
            )
        return publishers

    def remove_leftovers(self, copies: Sequence[PlannedCopy]) -> None:
        """Remove the unfinished files of runs that were killed."""
        unfinished = re.compile(rf"\.[0-9a-f]{{16}}\.{self._files.token}\..*")
        for folder in {os.path.dirname(copy.target) for copy in copies}:
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                if unfinished.fullmatch(name):
                    remove_parts(Path(folder), name)

    def check_table(self, path: Path, header: Sequence[str], *, sources: Sequence[str | os.PathLike[str]] = ()) -> None:
        """As WrittenFiles has it."""
        self._files.check_table(path, header, sources=sources)

    def write_table(self, path: Path, header: Sequence[str], rows: Sequence[tuple], *, even_empty: bool = False) -> None:
        """As WrittenFiles has it."""
        self._files.write_table(path, header, rows, even_empty=even_empty)

    def _is_planned(self, path: str, copy: PlannedCopy) -> bool:
        """Whether this is where the original's copy, or a segment, belongs, and nobody else's has
        been put there since."""
        name, planned = self._own.name(path), self._own.name(copy.target)
        if self._kind["segment_seconds"] is not None:
            match, planned = PIECE_NAME.fullmatch(name), os.path.splitext(planned)[0]
            return match is not None and match[1] == planned and self._source_of[name] == copy.source
        return name == planned and self._source_of[name] == copy.source

    def _is_ours(self, path: str) -> bool:
        if self._own.knows(path):
            return self._own.holds(path)
        is_regular = os.path.isfile(path) and not os.path.islink(path)
        return is_regular and os.path.getsize(path) == self._old_bytes.get(self._own.name(path))

    def _is_old_table(self, path: Path, header: Sequence[str]) -> bool:
        if self._own.knows(path) or not self._old_bytes:
            return False
        try:
            with open(path, encoding="utf-8", newline="") as file:
                return next(csv.reader(file), []) == [*header]
        except (OSError, ValueError, csv.Error):
            return False


@contextlib.contextmanager
def open_copy_journal(out: Path, kind: dict[str, Any]) -> Iterator[CopyJournal]:
    """The journal of `out`, which is made; nobody else writes into the folder until it is closed.

    Raises ValueError where somebody does, and for a folder of something else.
    """
    hold_output_folder(out, command=COMMAND, is_ours=holds_copies, bookkeeping=(JOURNAL, RECORD))
    try:
        refuse_wrong_kind(out / RECORD)
        with open_journal(out / JOURNAL, command="run") as journal:
            yield CopyJournal(journal, kind, out)
    finally:
        release_folder(out)


def _read_finished(lines: list[str], out: Path) -> dict[str, dict[str, Any]]:
    """The last line of each source, of those that make sense; in the order of the file."""
    finished: dict[str, dict[str, Any]] = {}
    for entry in read_entries(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that no run wrote
            paths = [_read_piece(piece).path for piece in entry["pieces"]]
            _noted_identity(entry)
            # No journal, whoever wrote it, has files outside of `out` compared or removed.
            if {"kind", "problem"} <= set(entry) and all(is_inside(path, out) for path in paths):
                finished.pop(entry["source"], None)
                finished[entry["source"]] = entry
    return finished


def _read_piece(fields: dict[str, Any]) -> Segment:
    """Raises TypeError and ValueError for what no run has noted."""
    piece = Segment(**fields)
    if not (piece.num_frames >= 1 and piece.num_bytes >= 1 and piece.first_seconds < piece.last_seconds < math.inf):
        raise ValueError(f"no piece of a video: {piece}")
    return piece


def _paths(entry: dict[str, Any]) -> list[str]:
    return [piece["path"] for piece in entry["pieces"]]


def _noted_identity(entry: dict[str, Any]) -> FileIdentity:
    num_bytes, modified_ns = entry["file"]
    return FileIdentity(num_bytes, modified_ns, entry.get("ctime_ns"), entry.get("sample"))
