"""How long a job still takes: units done -> "about 3 h 20 min left, until 18:40", and the lines or
the bar that say so.

Every line of progress in this project has its end from here. The estimate is the mean of the units
that this process has done, without the first one (it compiles, allocates and fills caches); units
that an earlier start did count as done and not as speed. Until there is something to measure, it
says so instead of guessing.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mats_ds.core.format import format_count, format_duration, plural

T = TypeVar("T")

LINE_SECONDS = 20.0  # from one line to the next, where there is no terminal
MEASURED_UNITS = 3  # after the first, that an estimate is made of ...
MEASURED_SECONDS = 20.0  # ... or so many seconds, and one unit
LONG_SECONDS = 1800.0  # jobs with more left also get the time on the clock
# tqdm's bar without its own estimate, which is another one: it counts the first unit too
BAR_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n:,}/{total:,} [{elapsed}, {rate_fmt}{postfix}]"


def format_clock(unix_seconds: float, *, now_seconds: float) -> str:
    """ "18:40" of today, else with the date: "2026-12-01 04:12"."""
    try:
        then, today = time.localtime(unix_seconds), time.localtime(now_seconds)
    except (OverflowError, OSError, ValueError):  # later than this machine can count
        return "a year that no clock shows"
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


class TimeLeft:
    """The time that a job of `total` units still takes, of which `done` were done before."""

    def __init__(self, total: int, *, done: int = 0, now: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._total = total
        self._before = done
        self._now = now
        self._first: tuple[float, int] | None = None  # when the first call with new units came, and how many there were

    def seconds(self, done: int) -> float | None:
        """Seconds from now on, None while they cannot be known. Call it whenever units are done."""
        if done >= self._total:
            return 0.0
        now = self._now()
        if self._first is None:
            if done > self._before:
                self._first = now, done
            return None
        began, num_first = self._first
        measured, spent = done - num_first, now - began
        if measured < 1 or (measured < MEASURED_UNITS and spent < MEASURED_SECONDS):
            return None
        return (self._total - done) * spent / measured

    def describe(self, done: int, *, unit: str = "step") -> str:
        """ "about 12 min left", "about 3 h 20 min left, until 18:40", or why that is not known."""
        seconds = self.seconds(done)
        if seconds is None:
            return f"time left: measured after a few {plural(unit)}"
        if not seconds:
            return "done"
        text = f"about {format_duration(seconds)} left"
        if seconds > LONG_SECONDS:
            wall_seconds = time.time()
            text += f", until {format_clock(wall_seconds + seconds, now_seconds=wall_seconds)}"
        return text


class Ticker:
    """Call it with the number of units done: a bar on a terminal, elsewhere a line every 20 s.

    label: what is done, as "probe" or "test"; "" shows nothing. at_most: `total` is a bound that
    is rarely needed.
    """

    def __init__(self, label: str, total: int, *, unit: str, done: int = 0, at_most: bool = False) -> None:
        self._label, self._total, self._unit, self._at_most = label, total, unit, at_most
        self._left = TimeLeft(total, done=done)
        self._printed_seconds = time.monotonic()
        self._bar: Any = None
        if label and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=label, unit=unit, leave=False, bar_format=BAR_FORMAT)

    def __call__(self, done: int) -> None:
        left = self._left.describe(done, unit=self._unit)
        if self._bar is not None:
            self._bar.set_postfix_str(left, refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._label and time.monotonic() - self._printed_seconds > LINE_SECONDS:
            self._printed_seconds = time.monotonic()
            of = f"{'at most ' * self._at_most}{format_count(self._total, self._unit)}"
            logging.getLogger("mats_ds").info("%s: %s of %s; %s", self._label, f"{done:,}", of, left)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def show_progress(items: Iterable[T], *, total: int, label: str, unit: str) -> Iterator[T]:
    """The items as they come, with progress shown; without a label nothing is."""
    ticker = Ticker(label, total, unit=unit)
    try:
        for number, item in enumerate(items, start=1):
            yield item
            ticker(number)
    finally:
        ticker.close()
