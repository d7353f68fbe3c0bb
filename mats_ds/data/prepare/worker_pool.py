"""Run a function on many files in worker processes, where one that crashes, hangs or is killed
costs one file, which is named.

    for path, result in run_tasks(check_one, paths, num_workers=2, timeout_seconds=300.0): ...

A worker is a fresh interpreter: a fork would copy the parent's threads and locks, and the parent's
main module may have imported torch. It gets one task at a time, so the task of a dead worker is
always known; another worker replaces it. While frames come it sends a heartbeat about twice a
second, and it is killed after `timeout_seconds` without one. Workers ignore Ctrl-C (the parent
decides) and end by themselves within a second when the parent is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from mats_ds.core.workers import (
    MAX_DEATHS_AT_START,
    ONE_THREAD,
    WorkersFailed,
    describe_death,
    describe_status,
    end_with_parent,
    ignore_signals,
    python_command,
)

Task = TypeVar("Task")
Result = TypeVar("Result")

SERVE = """
import sys
sys.path[:] = sys.argv[3:]
from mats_ds.data.prepare.worker_pool import serve
serve(int(sys.argv[1]), parent=int(sys.argv[2]))
"""
POLL_SECONDS = HEARTBEAT_SECONDS = 0.5
START_SECONDS = 120.0  # to import numpy and PyAV from a slow disk
# between the end of a worker's messages and its own; dumping its memory may take a while
DYING_SECONDS = 5.0
ERROR_BYTES = 2000
READY, HEARTBEAT, RESULT = "ready", "heartbeat", "result"  # kinds of messages of a worker


@dataclass(frozen=True)
class Failure:
    """A task without a result, and why. The machine may be to blame, so that another attempt may
    succeed."""

    reason: str


def run_tasks(
    function: Callable[..., Result], tasks: Sequence[Task], *, num_workers: int, timeout_seconds: float
) -> Iterator[tuple[Task, Result | Failure]]:
    """Each task with its result, in the order in which they finish. Closing the iterator kills all
    workers.

    function: called in a worker as `function(task, on_heartbeat=...)`; importable by its name, as
    it is not copied. It calls `on_heartbeat()`, as often as it likes, while it makes progress. An
    exception that it raises is a Failure.
    tasks: anything that can be pickled, but None.
    Raises WorkersFailed with the last error of a worker when several in a row end before they can
    take a task.
    """
    pool = _Pool(function, tasks, timeout_seconds)
    try:
        for _ in range(min(num_workers, len(tasks))):
            pool.start_worker()
        while pool.workers:
            yield from pool.collect()
    finally:
        pool.kill_all()


class _Worker(Generic[Task]):
    """A process and its task: None before it is ready and between two tasks."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # what it prints, read when it is dead
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = subprocess.Popen(
                python_command(SERVE, str(theirs.fileno()), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=self.errors,
                stderr=self.errors,
                pass_fds=[theirs.fileno()],
                env=os.environ | ONE_THREAD,
            )
        self.task: Task | None = None
        self.is_ready = False
        self.heard_seconds = time.monotonic()
        self.send(function)

    def send(self, message: Any) -> bool:
        """Whether it could be sent; not to a dead worker, whose end the next `collect` notices."""
        try:
            self.pipe.send(message)
        except OSError:
            return False
        self.heard_seconds = time.monotonic()
        return True

    def is_silent(self, timeout_seconds: float) -> bool:
        limit_seconds = timeout_seconds if self.is_ready else max(timeout_seconds, START_SECONDS)
        return time.monotonic() - self.heard_seconds > limit_seconds and not self.pipe.poll()

    def end(self, *, grace_seconds: float = 0.0) -> str:
        """Kill it if it still lives after `grace_seconds`; how it ended, with the last line that it
        printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_seconds)
        self.process.kill()
        # one that waits for a dead disk cannot even be killed
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DYING_SECONDS)
        self.pipe.close()
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - ERROR_BYTES))
        printed = self.errors.read().decode("utf-8", "replace").split("\n")
        self.errors.close()
        last = next((line.strip() for line in reversed(printed) if line.strip()), "")
        return describe_status(self.process.returncode) + (f": {last}" if last else "")


class _Pool(Generic[Task, Result]):
    """The workers and the tasks that wait."""

    def __init__(self, function: Callable[..., Result], tasks: Sequence[Task], timeout_seconds: float) -> None:
        self.function = function
        self.waiting = deque(tasks)
        self.timeout_seconds = timeout_seconds
        self.num_deaths_at_start = 0
        self.workers: list[_Worker[Task]] = []

    def start_worker(self) -> None:
        self.workers.append(_Worker(self.function))

    def collect(self) -> list[tuple[Task, Result | Failure]]:
        """The results of the next moment; workers that are free get new tasks, and those that are
        dead or silent are replaced."""
        results: list[tuple[Task, Result | Failure]] = []
        by_pipe = {worker.pipe: worker for worker in self.workers}
        for pipe in wait([*by_pipe], POLL_SECONDS):
            worker = by_pipe[pipe]
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                results += self._replace(worker)
                continue
            worker.heard_seconds = time.monotonic()
            if kind == RESULT:
                results.append((worker.task, value))
                worker.task = None
            if kind == READY:
                worker.is_ready, self.num_deaths_at_start = True, 0
            if worker.task is None:
                self._hand_out(worker)
        for worker in [*self.workers]:
            if worker.is_silent(self.timeout_seconds):
                worker.process.kill()
                results += self._replace(worker, f"given up: no frame came for {self.timeout_seconds:g} s")
        return results

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.end()
        self.workers.clear()

    def _hand_out(self, worker: _Worker[Task]) -> None:
        if not self.waiting:
            self.workers.remove(worker)
            worker.end()
        elif worker.send(self.waiting[0]):
            worker.task = self.waiting.popleft()

    def _replace(self, worker: _Worker[Task], reason: str = "") -> list[tuple[Task, Failure]]:
        """Put a new worker in the place of one that is dead; the failure of the task that it had,
        if any."""
        self.workers.remove(worker)
        ended = worker.end(grace_seconds=DYING_SECONDS)
        if not worker.is_ready:
            self.num_deaths_at_start += 1
            if self.num_deaths_at_start >= MAX_DEATHS_AT_START:
                raise WorkersFailed(f"worker processes do not start: they end before they take a file ({ended})")
        if self.waiting:
            self.start_worker()
        return [] if worker.task is None else [(worker.task, Failure(reason or describe_death(worker.process.returncode, ended)))]


def serve(descriptor: int, *, parent: int) -> None:
    """Be a worker: do the tasks that come through the pipe, until the parent closes it or ends."""
    ignore_signals()
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    pipe = Connection(descriptor)
    function = pipe.recv()
    pipe.send((READY, None))
    sent_seconds = time.monotonic()

    def send_heartbeat() -> None:
        nonlocal sent_seconds
        if time.monotonic() - sent_seconds > HEARTBEAT_SECONDS:
            sent_seconds = time.monotonic()
            pipe.send((HEARTBEAT, None))

    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):  # the parent needs no more
            return
        pipe.send((RESULT, function(task, on_heartbeat=send_heartbeat)))
