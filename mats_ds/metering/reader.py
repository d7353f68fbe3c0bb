"""Reads a run's step records back: streaming, tolerant of torn lines, aware of resumed runs.

A killed run may leave a torn line: it is skipped and counted. A resumed run appends: where the step number of a file goes
back, the later lines supersede the older ones from that step on. So a file is read twice: once for its step numbers only,
which tells up to which step each stretch of lines counts, then record by record, or many at once as columns of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mats_ds.metering.records import RECORDS_FOLDER, StepRecord, parse_record
from mats_ds.metering.stretches import find_stretches

if TYPE_CHECKING:
    from mats_ds.metering.columns import Columns

NUM_NAMED_UNREADABLE = 10
RECORDS_AT_ONCE = 8192
LINES_AT_ONCE = 256  # as many as the processor's cache holds: 1024 take a third more time a line
_RANK_FILE = re.compile(r"rank-(\d+)\.jsonl")


class _Stretch(NamedTuple):
    """Lines before `end_line` (and after the stretch before); of them, steps below `end_step` count."""

    end_line: int
    end_step: int | None


class RankReader:
    """One rank's records in ascending steps, without superseded ones; only one line at a time is in memory.

    `first_step` and `last_step` (None: no whole record) are known at once. `num_superseded` (records of steps that a resumed
    run did again), `num_unreadable` and `unreadable` (the first of them, by file, line and reason) are known after an
    iteration. Lines that are appended after the reader was made are left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_superseded = 0
        self.num_unreadable = 0
        self.unreadable: list[str] = []
        found = find_stretches(path)
        first_steps = [step for _, step in found.starts]
        self.first_step, self.last_step = min(first_steps, default=None), found.last_step
        end_lines = [lines_before for lines_before, _ in found.starts[1:]] + [found.num_lines]
        end_steps = [min(first_steps[place:], default=None) for place in range(1, len(end_lines) + 1)]
        self._stretches = [_Stretch(*pair) for pair in zip(end_lines, end_steps, strict=True)]

    def __iter__(self) -> Iterator[StepRecord]:
        self._forget()
        line_number = 0
        with open(self.path, "rb") as file:
            for stretch in self._stretches:
                while line_number < stretch.end_line:
                    line_number += 1
                    line = file.readline()
                    try:
                        record = parse_record(line)
                    except ValueError as error:
                        self._complain(line_number, line, error)
                        continue
                    if stretch.end_step is None or record.step < stretch.end_step:
                        yield record
                    else:
                        self.num_superseded += 1

    def columns(self, names: Sequence[str]) -> Iterator[Columns]:
        """The same records, some thousand at a time, as columns of numbers: many times faster than one by one."""
        from mats_ds.metering.columns import join_columns

        parts: list[Columns] = []
        for part in self._read_parts(names):
            parts.append(part)
            if sum(map(len, parts)) >= RECORDS_AT_ONCE:
                yield join_columns(parts)
                parts = []
        if parts:
            yield join_columns(parts)

    def _read_parts(self, names: Sequence[str]) -> Iterator[Columns]:
        from mats_ds.metering.columns import parse_lines

        self._forget()
        line_number = 0
        with open(self.path, "rb") as file:
            for stretch in self._stretches:
                while line_number < stretch.end_line:
                    lines = list(islice(file, min(LINES_AT_ONCE, stretch.end_line - line_number)))
                    for part in parse_lines(lines, names):
                        if isinstance(part, int):
                            self._complain(line_number + part + 1, lines[part])
                            continue
                        counts = None if stretch.end_step is None else part.steps < stretch.end_step
                        if counts is None or counts.all():
                            yield part
                        else:
                            self.num_superseded += int((~counts).sum())
                            yield part.select(counts)
                    line_number += len(lines)

    def _forget(self) -> None:
        self.num_superseded, self.num_unreadable, self.unreadable = 0, 0, []

    def _complain(self, line_number: int, line: bytes, error: ValueError | None = None) -> None:
        if not line.strip():
            return
        self.num_unreadable += 1
        if len(self.unreadable) < NUM_NAMED_UNREADABLE:
            torn = not line.rstrip().endswith(b"}")
            why = "torn: the writer was stopped in the middle of it" if torn else str(error or _find_fault(line))
            self.unreadable.append(f"{self.path.name} line {line_number}: {why}")


class RecordReader:
    """All records of a run: `by_rank` holds the reader of each rank that has a file; iterating goes from rank to rank."""

    def __init__(self, run_dir: str | Path) -> None:
        folder = Path(run_dir) / RECORDS_FOLDER
        found = ((_RANK_FILE.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
        paths = sorted((int(match[1]), path) for match, path in found if match)
        self.by_rank = {rank: RankReader(path) for rank, path in paths}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that have a file, even an empty one."""
        return tuple(self.by_rank)

    @property
    def first_step(self) -> int | None:
        return min((reader.first_step for reader in self.by_rank.values() if reader.first_step is not None), default=None)

    @property
    def last_step(self) -> int | None:
        return max((reader.last_step for reader in self.by_rank.values() if reader.last_step is not None), default=None)

    @property
    def num_superseded(self) -> int:
        return sum(reader.num_superseded for reader in self.by_rank.values())

    @property
    def num_unreadable(self) -> int:
        return sum(reader.num_unreadable for reader in self.by_rank.values())

    @property
    def unreadable(self) -> list[str]:
        return [text for reader in self.by_rank.values() for text in reader.unreadable]

    def __iter__(self) -> Iterator[StepRecord]:
        for reader in self.by_rank.values():
            yield from reader


def read_records(run_dir: str | Path) -> RecordReader:
    """A reader of all records below `run_dir`; a folder without records gives a reader without ranks."""
    return RecordReader(run_dir)


def _find_fault(line: bytes) -> str:
    try:
        parse_record(line)
    except ValueError as error:
        return str(error)
    return "not a record"
