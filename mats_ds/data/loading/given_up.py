"""The files that were not read in time: not tried again for a while, and too many of them end the
run."""

from __future__ import annotations

import time

from mats_ds.core.format import format_count

MAX_HANGING = 16  # files that were given up lately
RETRY_SECONDS = 1800.0  # until such a file is tried again; a disk that is gone is noticed earlier
MAX_NAMED = 8


class ReadingStuck(RuntimeError):
    """So many reads hang that no more processes are spent on them."""


class GivenUp:
    """Files and when they were given up, `timeout_seconds` after their read began."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._since: dict[str, float] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._since and time.monotonic() - self._since[path] < RETRY_SECONDS

    def add(self, path: str) -> None:
        """Note a file. Raises ReadingStuck where there are more than MAX_HANGING."""
        self._since[path] = time.monotonic()
        self._since = {path: since for path, since in self._since.items() if path in self}
        if len(self._since) > MAX_HANGING:
            raise ReadingStuck(self._describe())

    def _describe(self) -> str:
        paths = list(self._since)
        more = f" and {len(paths) - MAX_NAMED:,} more" if len(paths) > MAX_NAMED else ""
        return (
            f"{format_count(len(paths), 'video')} not read within {self._timeout_seconds:g} s each: "
            f"{', '.join(paths[:MAX_NAMED])}{more}. "
            "Check the disk or network share that they lie on, then start the run again, with --resume auto"
        )
