"""Reader of a run's step records: streaming, tolerant of torn lines, aware of resumed runs.

A killed run may leave a torn line: it is skipped and counted. A resumed run appends: where the step
number of a file goes back, the later lines supersede the older ones from that step on, also those
that the resumed run did not reach again. So a file is read twice: once for its step numbers only,
to find up to which step each stretch of lines counts, then record by record, or many at once as
columns of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mats_ds.core.limits import MAX_RANKS
from mats_ds.core.storage.files import open_regular, refuse_wrong_kind
from mats_ds.metering.restarts import MAX_UNREADABLE, NOT_OURS, find_stretches, read_lines
from mats_ds.metering.step_record import MAX_LINE_BYTES, RECORDS_FOLDER, StepRecord, parse_record

if TYPE_CHECKING:
    from mats_ds.metering.record_columns import Columns

NUM_NAMED_UNREADABLE = 10
RECORDS_AT_ONCE = 8192
LINES_AT_ONCE = 256  # as many as the processor's cache holds: 1024 take a third more time a line
SHOWN_CHARACTERS = 200
OUT_OF_ORDER = "its step is not above those before, or is given twice"
_RANK_FILE = re.compile(r"rank-([0-9]{5})\.jsonl")


class _Stretch(NamedTuple):
    """Lines before `end_line` (and after the stretch before); of them, steps below `end_step`
    count."""

    end_line: int
    end_step: int | None


class RankReader:
    """One rank's records in ascending steps, without superseded ones; only one line at a time is in
    memory.

    `first_step` and `last_step` (None: no complete record) are known at once. `num_superseded`
    (records of steps that a resumed run repeated), `num_unreadable` and `unreadable` (the first of
    them, by file, line and reason) are known after an iteration. Lines that are appended after the
    reader was made are left out.

    Raises ValueError for a link and anything else that is no regular file, and for a file that no
    run can have written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_superseded = 0
        self.num_unreadable = 0
        self.unreadable: list[str] = []
        stretches = find_stretches(path)
        first_steps = [step for _, step in stretches.starts]
        self.first_step, self.last_step = min(first_steps, default=None), stretches.last_step
        end_lines = [lines_before for lines_before, _ in stretches.starts[1:]] + [stretches.num_lines]
        # the least of those that begin later
        end_steps = [*accumulate(first_steps[:0:-1], min)][::-1] + [None]
        self._stretches = [_Stretch(*pair) for pair in zip(end_lines, end_steps, strict=True)]

    def __iter__(self) -> Iterator[StepRecord]:
        self._forget()
        line_number, last_step = 0, -1
        with open_regular(self.path) as file:
            lines = read_lines(file)
            for stretch in self._stretches:
                for line in islice(lines, stretch.end_line - line_number):
                    line_number += 1
                    try:
                        record = parse_record(line)
                    except ValueError as error:
                        self._complain(line_number, line, error)
                        continue
                    if stretch.end_step is not None and record.step >= stretch.end_step:
                        self.num_superseded += 1
                    elif record.step <= last_step:  # a second "step" in the line is what a parser takes
                        self._complain(line_number, line, ValueError(OUT_OF_ORDER))
                    else:
                        last_step = record.step
                        yield record

    def columns(self, names: Sequence[str]) -> Iterator[Columns]:
        """The same records as columns of numbers, some thousand at a time: many times faster than
        one by one."""
        from mats_ds.metering.record_columns import join_columns

        parts: list[Columns] = []
        num_records = 0
        for part in self._read_parts(names):
            parts.append(part)
            num_records += len(part)
            if num_records >= RECORDS_AT_ONCE:
                yield join_columns(parts)
                parts, num_records = [], 0
        if parts:
            yield join_columns(parts)

    def _read_parts(self, names: Sequence[str]) -> Iterator[Columns]:
        from mats_ds.metering.record_columns import parse_lines

        self._forget()
        line_number, last_step = 0, -1
        with open_regular(self.path) as file:
            all_lines = read_lines(file)
            for stretch in self._stretches:
                while line_number < stretch.end_line:
                    lines = list(islice(all_lines, min(LINES_AT_ONCE, stretch.end_line - line_number)))
                    if not lines:
                        return  # the file has become shorter
                    for part in parse_lines(lines, names):
                        if isinstance(part, int):
                            self._complain(line_number + part + 1, lines[part])
                            continue
                        if stretch.end_step is not None:
                            counts = part.steps < stretch.end_step
                            self.num_superseded += int((~counts).sum())
                            part = part if counts.all() else part.select(counts)
                        if not len(part):
                            continue
                        ascending = part.steps > np.concatenate(([last_step], np.maximum.accumulate(part.steps)[:-1]))
                        # a second "step" in the line is what a parser takes
                        if not ascending.all():
                            self._complain(line_number + 1, lines[0], ValueError(OUT_OF_ORDER), num=int((~ascending).sum()))
                            part = part.select(ascending)
                        if len(part):
                            last_step = int(part.steps[-1])
                            yield part
                    line_number += len(lines)

    def _forget(self) -> None:
        self.num_superseded, self.num_unreadable, self.unreadable = 0, 0, []

    def _complain(self, line_number: int, line: bytes, error: ValueError | None = None, *, num: int = 1) -> None:
        if not line.strip():
            return
        self.num_unreadable += num
        if self.num_unreadable > MAX_UNREADABLE:
            raise ValueError(f"{self.path}: more than {MAX_UNREADABLE:,} lines are no records: {NOT_OURS}")
        if len(self.unreadable) < NUM_NAMED_UNREADABLE:
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                why = f"longer than {MAX_LINE_BYTES:,} bytes"
            elif not line.rstrip().endswith(b"}"):
                why = "torn: the writer was stopped in the middle of it"
            else:
                why = str(error or _find_fault(line))[:SHOWN_CHARACTERS]
            self.unreadable.append(f"{self.path.name} line {line_number}: {why}")


class RecordReader:
    """All records of a run: `by_rank` holds the reader of each rank that has a file; iterating goes
    from rank to rank.

    Raises ValueError as RankReader does, and where the folder of records is a link.
    """

    def __init__(self, run_dir: str | Path) -> None:
        folder = Path(run_dir) / RECORDS_FOLDER
        refuse_wrong_kind(folder / "rank-00000.jsonl", below=Path(run_dir))
        files = ((_RANK_FILE.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
        paths = sorted((int(match[1]), path) for match, path in files if match)
        if len(paths) > MAX_RANKS:
            raise ValueError(f"{folder} holds files of {len(paths):,} ranks, at most {MAX_RANKS:,} were expected")
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
    """A reader of all records below `run_dir`; a folder without records gives a reader without
    ranks."""
    return RecordReader(run_dir)


def _find_fault(line: bytes) -> str:
    try:
        parse_record(line)
    except ValueError as error:
        return str(error)
    return "not a record"
