"""Reads a run's step records back: streaming, tolerant of torn lines, aware of resumed runs.

A killed run may leave a torn line: it is skipped and counted. A resumed run appends: where the step number of a file goes
back, the later lines supersede the older ones from that step on. So a file is read twice: once for its step numbers only,
which tells up to which step each stretch of lines counts, then line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mats_ds.metering.records import RECORDS_FOLDER, StepRecord, parse_record

NUM_NAMED_UNREADABLE = 10
_STEP = re.compile(rb'"step": ?(\d+)')
_RANK_FILE = re.compile(r"rank-(\d+)\.jsonl")


class _Stretch(NamedTuple):
    """Lines before `end_line` (and after the stretch before); of them, steps below `end_step` count."""

    end_line: int
    end_step: int | None


class _FileIndex(NamedTuple):
    """The stretches of a file, and the range of the steps in it that count (None: it holds no whole record)."""

    stretches: tuple[_Stretch, ...]
    first_step: int | None
    last_step: int | None


class RecordReader:
    """The records of a run, rank by rank, each rank's in ascending steps; only one line at a time is in memory.

    `ranks`, `first_step` and `last_step` are known at once; `num_unreadable`, `unreadable` (the first few of each rank, by
    file, line and reason) and `num_superseded` tell of the ranks that were iterated to their end.
    Lines that are appended after the reader was made are left out.
    """

    def __init__(self, run_dir: str | Path) -> None:
        folder = Path(run_dir) / RECORDS_FOLDER
        found = ((_RANK_FILE.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
        self._paths = dict(sorted((int(match[1]), path) for match, path in found if match))
        self._indices = {rank: _index_file(path) for rank, path in self._paths.items()}
        self._num_superseded: dict[int, int] = {}
        self._complaints: dict[int, tuple[int, list[str]]] = {}

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that have a file, even an empty one."""
        return tuple(self._paths)

    @property
    def first_step(self) -> int | None:
        return min((index.first_step for index in self._indices.values() if index.first_step is not None), default=None)

    @property
    def last_step(self) -> int | None:
        return max((index.last_step for index in self._indices.values() if index.last_step is not None), default=None)

    @property
    def num_superseded(self) -> int:
        """Records of steps that a resumed run did again."""
        return sum(self._num_superseded.values())

    @property
    def num_unreadable(self) -> int:
        return sum(num for num, _ in self._complaints.values())

    @property
    def unreadable(self) -> list[str]:
        return [text for _, (_, texts) in sorted(self._complaints.items()) for text in texts]

    def __iter__(self) -> Iterator[StepRecord]:
        for rank in self._paths:
            yield from self.of_rank(rank)

    def of_rank(self, rank: int) -> Iterator[StepRecord]:
        """One rank's records in ascending steps, without superseded ones."""
        path = self._paths[rank]
        num_superseded, num_unreadable, texts = 0, 0, []
        with open(path, "rb") as file:
            line_number = 0
            for stretch in self._indices[rank].stretches:
                while line_number < stretch.end_line:
                    line_number += 1
                    line = file.readline()
                    try:
                        record = parse_record(line)
                    except ValueError as error:
                        if line.strip():
                            num_unreadable += 1
                            texts += [f"{path.name} line {line_number}: {_why(line, error)}"][: NUM_NAMED_UNREADABLE - len(texts)]
                        continue
                    if stretch.end_step is None or record.step < stretch.end_step:
                        yield record
                    else:
                        num_superseded += 1
        self._num_superseded[rank] = num_superseded
        self._complaints[rank] = (num_unreadable, texts)


def read_records(run_dir: str | Path) -> RecordReader:
    """A reader of all records below `run_dir`; a folder without records gives a reader without ranks."""
    return RecordReader(run_dir)


def _index_file(path: Path) -> _FileIndex:
    """The stretches of ascending steps. Reads no more of a line than its step number."""
    starts: list[tuple[int, int]] = []  # (lines before it, first step) of each stretch
    line_number, last_step = 0, None
    with open(path, "rb") as file:
        for line_number, line in enumerate(file, start=1):
            found = _STEP.search(line, 0, 64)
            if found is None or not line.endswith(b"}\n"):  # a torn line's number may have lost digits
                continue
            step = int(found[1])
            if last_step is None or step <= last_step:
                starts.append((line_number - 1, step))
            last_step = step
    end_lines = [lines_before for lines_before, _ in starts[1:]] + [line_number]
    first_steps = [step for _, step in starts]
    end_steps = [min(first_steps[place:], default=None) for place in range(1, len(end_lines) + 1)]
    stretches = tuple(_Stretch(*pair) for pair in zip(end_lines, end_steps, strict=True))
    return _FileIndex(stretches, min(first_steps, default=None), last_step)


def _why(line: bytes, error: ValueError) -> str:
    if line.rstrip().endswith(b"}"):
        return str(error)
    return "torn: the writer was stopped in the middle of it"
