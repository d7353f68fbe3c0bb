"""Joules of a card from samples taken now and then: the driver's own counter where it has one, else power times time.

Steps are shorter than the time between samples, so the energy of the moment is carried on from the newest sample at the
newest rate. What is carried too far is taken off later: readings never go back, and their differences add up to what the
counter says, whatever the steps' lengths.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class _State:
    """Joules since the first sample, as of `seconds`, and the rate that they grow by."""

    seconds: float
    joules: float
    watts: float
    joules_total: float | None


class EnergyMeter:
    """`add` samples, `read` at any time, from any thread. Times are of one clock that never goes back."""

    def __init__(self) -> None:
        self._state: _State | None = None
        self._last_reading = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float, *, watts: float | None, joules_total: float | None) -> None:
        """A sample at `seconds`. `joules_total` is the driver's counter, None without one; a sample of neither is left out."""
        if watts is None and joules_total is None:
            return
        before = self._state
        if before is None:
            self._state = _State(seconds, 0.0, watts or 0.0, joules_total)
            return
        passed_seconds = seconds - before.seconds
        if passed_seconds <= 0:
            return
        spent = _spent(before, passed_seconds, watts, joules_total)
        self._state = _State(seconds, before.joules + spent, spent / passed_seconds, joules_total)

    def read(self, seconds: float) -> float | None:
        """Joules since the first sample, carried on to `seconds`; None where no sample told any energy. Never falls."""
        state = self._state
        if state is None:
            return None
        with self._lock:
            carried = state.joules + state.watts * max(0.0, seconds - state.seconds)
            self._last_reading = max(self._last_reading, carried)
            return self._last_reading


def _spent(before: _State, passed_seconds: float, watts: float | None, joules_total: float | None) -> float:
    if joules_total is not None and before.joules_total is not None and joules_total >= before.joules_total:
        return joules_total - before.joules_total  # (a counter that went back was reset with the driver)
    now_watts = before.watts if watts is None else watts
    return (before.watts + now_watts) / 2 * passed_seconds
