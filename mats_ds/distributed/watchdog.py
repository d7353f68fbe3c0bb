"""Watches a run from a thread, so that no rank waits for ever: signals, launcher, loader, the other
ranks here.

A signal, or the launcher's death, is a request to stop: all ranks agree on it at the end of a step,
save, and exit with status 75. What cannot be agreed on any more (a rank died, or its loader hangs)
ends this process with one line that says why.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import psutil

from mats_ds.core.cli import RUN_ERROR
from mats_ds.core.events import RunInfo
from mats_ds.core.processes import has_ended, identify_process
from mats_ds.core.run_dir import describe_standing
from mats_ds.distributed.collectives import gather_on_all
from mats_ds.distributed.launcher_watch import LaunchScript, find_launchers, is_alive

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
POLL_SECONDS = 0.5
# The deepspeed launcher kills a rank that lives 30 s after SIGTERM; what it could not say by then
# it never will.
SIGTERM_SECONDS = 25.0
# How long the main thread may take to notice by itself, with a better message, that another rank is
# gone.
NOTICE_SECONDS = 5.0


class Watchdog:
    """`with Watchdog(run, hang_seconds=...) as watchdog:` around the training loop, on every rank.

    The loop calls `enter(phase)` as it goes, and asks `request`: None, or who asked the run to
    stop.
    """

    def __init__(self, run: RunInfo, *, hang_seconds: float, leave: Callable[[str], None] | None = None) -> None:
        self.request: str | None = None
        self._run = run
        self._hang_seconds = hang_seconds
        self._leave = leave or _leave
        self._phase, self._since = "start", time.monotonic()
        self._request_at: float | None = None
        self._ended = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._launchers: list[psutil.Process | LaunchScript] = []
        self._others: dict[int, psutil.Process] = {}
        self._dead: str | None = None

    def __enter__(self) -> Watchdog:
        self._launchers = find_launchers()
        self._others = find_others(self._run)
        if threading.current_thread() is threading.main_thread():
            # one that this process was started to ignore (nohup) stays ignored
            for number in (number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN):
                self._handlers[number] = signal.signal(number, self._on_signal)
        # A main thread that waits inside CUDA or NCCL runs no handler: the thread below reads
        # signals from this pipe.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False) if self._handlers else -1
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.enter("start")
        self._thread.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._ended.set()
        self._thread.join()
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def enter(self, phase: str) -> None:
        """The main thread begins a phase of a step: "data" and the other phases are limited,
        "between" is not."""
        self._phase, self._since = phase, time.monotonic()

    def who_died(self) -> str | None:
        """A rank of this machine that is gone while this one still runs, as a text; None if all are
        there.

        Waits a moment for it: connections close before their process has ended.
        """
        until = time.monotonic() + NOTICE_SECONDS / 2
        while (dead := self._dead or _name_dead(self._others)) is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 5)
        return dead

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.request is not None:
            raise KeyboardInterrupt  # the second Ctrl-C: at once
        self._ask(f"{signal.Signals(number).name} came to rank {self._run.rank}")

    def _ask(self, who: str) -> None:
        if self.request is None:
            self.request = who

    def _watch(self) -> None:
        while not self._ended.is_set():
            ready, _, _ = select.select([self._reader], [], [], POLL_SECONDS)
            if ready and signal.SIGTERM in os.read(self._reader, 64) and self._request_at is None:
                self._request_at = time.monotonic()
            problem = self._find_problem()
            if problem and not self._ended.is_set():
                self._leave(f"stopped: {problem}")
                return

    def _find_problem(self) -> str | None:
        """The reason to end this process at once; None while it may go on."""
        now = time.monotonic()
        phase, waited = self._phase, now - self._since
        on_cuda = self._run.device.startswith("cuda")
        # On a CPU a slow step is no sign of anything, and gloo bounds the waiting for others by
        # itself.
        if waited > self._hang_seconds and (phase == "data" or (on_cuda and phase != "between")):
            where = "for its next clips: reading hangs" if phase == "data" else f"in {phase}: another rank hangs or is cut off"
            return (
                f"rank {self._run.rank} has waited {waited:.0f} s {where} (limit: run.hang_seconds); look at that storage or "
                f"host; {describe_standing(self._run.run_dir)}"
            )
        if not self._dead and (dead := _name_dead(self._others)):
            self._dead, self._dead_at = dead, now
        if self._dead and now - self._dead_at > NOTICE_SECONDS:
            standing = describe_standing(self._run.run_dir)
            return f"{self._dead}, so rank {self._run.rank} ends too; see that rank's message; {standing}"
        if self._launchers and not all(is_alive(launcher) for launcher in self._launchers):
            self._ask("the launcher has died")
            self._request_at = self._request_at or now
        if self._request_at is not None and now - self._request_at > SIGTERM_SECONDS and phase != "between":
            return (
                f"rank {self._run.rank} was asked to end and its step did not within {SIGTERM_SECONDS:.0f} s; "
                f"{describe_standing(self._run.run_dir)}"
            )
        return None


def find_others(run: RunInfo) -> dict[int, psutil.Process]:
    """The other ranks on this machine, by rank; every rank takes part."""
    others = {}
    for rank, identity in enumerate(gather_on_all(identify_process(), run)):
        # Known by ticks since boot: what psutil makes of them is another time in another process
        # where the clock was set.
        if rank != run.rank and has_ended(identity) is False:
            with contextlib.suppress(psutil.Error):
                others[rank] = psutil.Process(identity.process)
    return others


def _name_dead(others: dict[int, psutil.Process]) -> str | None:
    for rank, process in others.items():
        if not is_alive(process):
            return f"rank {rank} (process {process.pid}) has died"
    return None


def _leave(line: str) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    os._exit(RUN_ERROR)
