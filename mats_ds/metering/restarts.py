"""The restarts in a file of records: a first look at a file for its step numbers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mats_ds.core.storage.files import open_regular
from mats_ds.metering.step_record import MAX_LINE_BYTES

BLOCK_BYTES = 1 << 20
MAX_STRETCHES = 10_000  # a run that was resumed so often, or no run
MAX_UNREADABLE = 10_000  # lines; a kill tears one
NOT_OURS = "this file was not written by a run"
_find_step = re.compile(rb'"step": ?(\d{1,15})(?!\d)').search  # as many digits as MAX_STEP has
STEP_WITHIN = 64  # bytes of a line


@dataclass
class Stretches:
    """`starts`: (lines before it, first step) of each stretch of ascending steps. `last_step` None:
    no complete record."""

    starts: list[tuple[int, int]] = field(default_factory=list)
    num_lines: int = 0
    last_step: int | None = None


def find_stretches(path: Path) -> Stretches:
    """The stretches of a file; a torn line belongs to none, as its step number may have lost
    digits.

    Raises ValueError where the steps go back more often than those of any run, or most lines are no
    records.
    """
    stretches, num_torn = Stretches(), 0
    with open_regular(path) as file:
        for line in read_lines(file):
            match = _find_step(line, 0, STEP_WITHIN) if line.endswith(b"}\n") else None
            if match is None:
                num_torn += 1
                if num_torn > MAX_UNREADABLE:
                    raise ValueError(f"{path}: more than {MAX_UNREADABLE:,} lines are no records: {NOT_OURS}")
            else:
                step = int(match[1])
                if stretches.last_step is None or step <= stretches.last_step:
                    if len(stretches.starts) == MAX_STRETCHES:
                        raise ValueError(f"{path}: the steps go back more than {MAX_STRETCHES:,} times: {NOT_OURS}")
                    stretches.starts.append((stretches.num_lines, step))
                stretches.last_step = step
            stretches.num_lines += 1
    return stretches


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than MAX_LINE_BYTES its beginning alone, without
    an end."""
    while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            _skip_line(file)
        yield line


def _skip_line(file: IO[bytes]) -> None:
    while (rest := file.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
        pass
