"""Where a file of records was begun anew: a first look at a file for nothing but its step numbers.

Lines as our writer writes them begin alike, so that the step numbers of a block of lines are read digit by digit for all of them
at once; a line that begins otherwise is searched on its own. A line that is longer than any record is never held as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from mats_ds.core.storage.files import open_regular
from mats_ds.metering.step_record import MAX_LINE_BYTES

BLOCK_BYTES = 1 << 20
MAX_DIGITS = 15  # as MAX_STEP has
MAX_STRETCHES = 10_000  # a run that was resumed so often, or no run
MAX_UNREADABLE = 10_000  # lines; a kill tears one
NOT_OURS = "this file was not written by a run"
_START = b'{"schema":?,"step":'  # ? stands for one digit
_STEP = re.compile(rb'"step": ?(\d+)')
_NEWLINE, _BRACE = b"\n}"
NO_STEP = -1


@dataclass
class Stretches:
    """`starts`: (lines before it, first step) of each stretch of ascending steps. `last_step` None: no whole record."""

    starts: list[tuple[int, int]] = field(default_factory=list)
    num_lines: int = 0
    last_step: int | None = None


def find_stretches(path: Path) -> Stretches:
    """The stretches of a file; a torn line belongs to none, as its step number may have lost digits.

    Raises ValueError where the steps go back more often than those of any run, or most lines are no records.
    """
    found, num_torn = Stretches(), 0
    for steps in _read_steps(path):
        (whole,) = np.nonzero(steps != NO_STEP)
        num_torn += len(steps) - len(whole)
        if num_torn > MAX_UNREADABLE:
            raise ValueError(f"{path}: more than {MAX_UNREADABLE:,} lines are no records: {NOT_OURS}")
        if len(whole):
            before = np.concatenate(([np.inf if found.last_step is None else found.last_step], steps[whole][:-1]))
            begun = whole[steps[whole] <= before]
            if len(found.starts) + len(begun) > MAX_STRETCHES:
                raise ValueError(f"{path}: the steps go back more than {MAX_STRETCHES:,} times: {NOT_OURS}")
            found.starts += [(found.num_lines + int(place), int(steps[place])) for place in begun]
            found.last_step = int(steps[whole[-1]])
        found.num_lines += len(steps)
    return found


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than MAX_LINE_BYTES its beginning alone, without an end."""
    while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            _skip_line(file)
        yield line


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
        pass


def _read_steps(path: Path) -> Iterator[np.ndarray]:
    """The step of every line, block by block; NO_STEP for a line that is torn, too long, or names none."""
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            if not block.endswith(b"\n"):
                block += file.readline(MAX_LINE_BYTES)  # to the end of the line
                if not block.endswith(b"\n"):
                    _skip_line(file)
            raw = np.frombuffer(block, dtype=np.uint8)
            ends = np.flatnonzero(raw == _NEWLINE)
            if len(ends) == 0 or ends[-1] != len(raw) - 1:
                ends = np.append(ends, len(raw))  # a last line without an end
            starts = np.concatenate(([0], ends[:-1] + 1))
            steps = _read_numbers(raw, starts, ends)
            for place in np.flatnonzero(steps == NO_STEP):
                line = block[starts[place] : min(starts[place] + MAX_LINE_BYTES, ends[place] + 1)]
                match = _STEP.search(line, 0, 64)
                if match and len(match[1]) <= MAX_DIGITS and line.endswith(b"}\n"):
                    steps[place] = int(match[1])
            steps[ends - starts >= MAX_LINE_BYTES] = NO_STEP
            yield steps


def _read_numbers(raw: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The number behind _START of each line that begins so and is whole, NO_STEP of the others."""
    steps = np.full(len(starts), NO_STEP, dtype=np.int64)
    (lines,) = np.nonzero((ends - starts > len(_START) + MAX_DIGITS) & (raw[ends - 1] == _BRACE) & (ends < len(raw)))
    for place, byte in enumerate(_START):
        if byte != ord("?"):
            lines = lines[raw[starts[lines] + place] == byte]
    first_digits = raw[starts[lines] + len(_START)]
    lines = lines[(first_digits >= ord("0")) & (first_digits <= ord("9"))]
    numbers, going_on = np.zeros(len(lines), dtype=np.int64), np.ones(len(lines), dtype=bool)
    for place in range(MAX_DIGITS):
        digits = raw[starts[lines] + len(_START) + place].astype(np.int64) - ord("0")
        going_on &= (digits >= 0) & (digits <= 9)
        if not going_on.any():
            break
        numbers = np.where(going_on, 10 * numbers + digits, numbers)
    ended = ~going_on if len(lines) else going_on
    steps[lines[ended]] = numbers[ended]
    return steps
