"""Progress of a job on many files, as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

from mats_ds.core.format import format_count
from mats_ds.core.progress import BAR_FORMAT, TimeLeft

PRINT_SECONDS = 10.0
FALLBACK_COLUMNS = 100  # for terminals whose width is not known


class Progress:
    """Call it with (files done, files, bad ones): a bar on a terminal, elsewhere a line every ten
    seconds.

    verb: "check", "copy". The first call is made before any file is done; files that are done then
    need no work.
    """

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        self._verb = verb
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._began_seconds = self._printed_seconds = time.monotonic()
        self._num_known: int | None = None
        self._left: TimeLeft | None = None

    def __call__(self, num_done: int, num_files: int, num_bad: int) -> None:
        if self._num_known is None:
            self._num_known = num_done
            self._left = TimeLeft(num_files, done=num_done)
            if num_done:
                of = format_count(num_files, "file")
                self._print(f"{num_done:,} of {of} need no work: an earlier run did it, or they do not exist")
        left = self._left.describe(num_done, unit="file")
        if self._stream.isatty():
            if self._bar is None:
                shown = dict(desc=f"{self._verb}: ", unit="file", bar_format=BAR_FORMAT, **_width(self._stream))
                self._bar = tqdm(total=num_files, initial=num_done, file=self._stream, **shown)
            self._bar.set_postfix_str(f"{num_bad:,} bad, {left}", refresh=False)
            self._bar.update(num_done - self._bar.n)
            return
        now_seconds = time.monotonic()
        if now_seconds - self._printed_seconds >= PRINT_SECONDS:
            self._printed_seconds = now_seconds
            speed = (num_done - self._num_known) / (now_seconds - self._began_seconds)
            self._print(f"{num_done:,} of {format_count(num_files, 'file')}, {num_bad:,} bad, {speed:.1f} files/s; {left}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    def _print(self, line: str) -> None:
        print(f"{self._verb}: {line}", file=self._stream, flush=True)


def _width(stream: TextIO) -> dict[str, object]:
    try:
        is_known = os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        is_known = False
    return {"dynamic_ncols": True} if is_known else {"ncols": FALLBACK_COLUMNS}
