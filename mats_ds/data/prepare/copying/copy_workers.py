"""Makes many copies in worker processes: a worker that crashes, hangs or is killed costs one file, which is named, not the run.

A worker gets one task at a time, so it is always known what a dead one was at; another takes its place. It says so about twice
a second while frames come, and is killed when it has not been heard for the time limit. Workers ignore Ctrl-C (the parent
decides) and end by themselves within a second when the parent is gone.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mats_ds.data.prepare.copying.segment import Segment, segment_file
from mats_ds.data.prepare.copying.transcode import CopyFailed, CopySettings, transcode_file
from mats_ds.data.prepare.publishing import Publisher
from mats_ds.data.video.indexing import UnreadableVideo

MAX_DEATHS_AT_START = 3
POLL_SECONDS = BEAT_SECONDS = 0.5
START_SECONDS = 120.0  # to import numpy and PyAV from a slow disk
DYING_SECONDS = 5.0
READY, BEAT = "ready", "beat"  # what a worker says beside its outcomes


@dataclass(frozen=True)
class CopyTask:
    """One file to copy: transcoded into `target`, or cut into segments named after it where `segment_seconds` is given.

    `needed_seconds`: beyond it nobody wants a frame, so a file that breaks off there is copied as far as it goes.
    `publisher`: which files that are there already may be replaced.
    """

    source: str
    target: str
    settings: CopySettings
    segment_seconds: float | None = None
    reencode: bool = False
    keep_partial: bool = False
    needed_seconds: float = math.inf
    publisher: Publisher = field(default_factory=Publisher)


@dataclass(frozen=True)
class CopyOutcome:
    """The pieces that a file became (one, the whole, unless it was cut), or none and the `problem`.

    With pieces, `problem` says where the original breaks off.
    """

    source: str
    pieces: tuple[Segment, ...] = ()
    problem: str = ""


def copy_one(task: CopyTask, *, on_beat: Callable[[], None] = lambda: None) -> CopyOutcome:
    """Do one task. Faults of the file are part of the outcome. `on_beat` is called for every frame."""
    try:
        if task.segment_seconds is not None:
            target = Path(task.target)
            pieces = segment_file(
                task.source,
                target.parent,
                seconds=task.segment_seconds,
                reencode=task.settings if task.reencode else None,
                name=target.stem,
                publisher=task.publisher,
                on_beat=on_beat,
            )
            return CopyOutcome(task.source, tuple(pieces))
        done = transcode_file(
            task.source,
            task.target,
            settings=task.settings,
            keep_partial=task.keep_partial,
            needed_seconds=task.needed_seconds,
            publisher=task.publisher,
            on_beat=on_beat,
        )
    except (UnreadableVideo, CopyFailed) as failure:
        return CopyOutcome(task.source, problem=failure.reason)
    except OSError as error:  # no room, no permission
        return CopyOutcome(task.source, problem=f"cannot be written: {error}")
    last_seconds = done.first_seconds + done.duration_seconds
    piece = Segment(done.target, 0, done.num_frames, done.first_seconds, last_seconds, done.num_bytes)
    return CopyOutcome(task.source, (piece,), done.problem)


def copy_all(tasks: Sequence[CopyTask], *, num_workers: int, timeout_seconds: float) -> Iterator[CopyOutcome]:
    """The outcome of every task, as they come. Closing the iterator, or leaving it by an exception, ends all workers.

    A file is given up when no frame of it is read or written for `timeout_seconds`, of which beats take half a second.
    Raises RuntimeError when workers die before they take a file.
    """
    crew = _Crew(tasks, min(num_workers, len(tasks)), timeout_seconds)
    try:
        while crew.workers:
            yield from crew.turn()
    finally:
        crew.end_all()


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the parent's threads and locks
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.task: CopyTask | None = None
        self.is_ready = False
        self.heard_seconds = time.monotonic()

    def silent_seconds(self) -> float:
        return time.monotonic() - self.heard_seconds


class _Crew:
    """The workers and the tasks that wait."""

    def __init__(self, tasks: Sequence[CopyTask], num_workers: int, timeout_seconds: float) -> None:
        self.waiting = deque(tasks)
        self.timeout_seconds = timeout_seconds
        self.num_deaths_at_start = 0
        self.workers = [_Worker() for _ in range(num_workers)]

    def turn(self) -> list[CopyOutcome]:
        """Wait a moment for news, hand out more tasks, give up who is silent for too long."""
        outcomes = []
        by_pipe = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(by_pipe), timeout=POLL_SECONDS):
            worker = by_pipe[pipe]
            try:
                answer = pipe.recv()
            except (EOFError, OSError):
                outcomes += self._bury(worker)
                continue
            worker.heard_seconds = time.monotonic()
            if answer == BEAT:
                continue
            if isinstance(answer, CopyOutcome):
                outcomes.append(answer)
            worker.is_ready, worker.task = True, None
            self._hand_out(worker)
        for worker in list(self.workers):
            limit = self.timeout_seconds if worker.is_ready else max(self.timeout_seconds, START_SECONDS)
            if worker.silent_seconds() > limit:
                worker.process.kill()
                outcomes += self._bury(worker, f"given up: no frame was read or written for {self.timeout_seconds:g} s")
        return outcomes

    def _hand_out(self, worker: _Worker) -> None:
        if not self.waiting:
            self._dismiss(worker)
            return
        worker.task, worker.heard_seconds = self.waiting.popleft(), time.monotonic()
        try:
            worker.pipe.send(worker.task)
        except OSError:  # it died idle: no file is to blame, and its end is noticed next turn
            self.waiting.appendleft(worker.task)
            worker.task = None

    def _bury(self, worker: _Worker, problem: str = "") -> list[CopyOutcome]:
        """Replace a worker that died or, with a `problem`, was killed."""
        self._dismiss(worker)
        if not worker.is_ready:
            self.num_deaths_at_start += 1
            if self.num_deaths_at_start >= MAX_DEATHS_AT_START:
                raise RuntimeError(f"worker processes end before they take a file ({_describe_end(worker.process.exitcode)})")
        if self.waiting:
            self.workers.append(_Worker())
        if worker.task is None:
            return []
        _sweep(worker.task)
        problem = problem or f"the worker process died at it ({_describe_end(worker.process.exitcode)})"
        return [CopyOutcome(worker.task.source, problem=problem)]

    def _dismiss(self, worker: _Worker) -> None:
        worker.pipe.close()  # it ends when it reads this
        worker.process.join(DYING_SECONDS)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join(DYING_SECONDS)  # one that waits for a dead disk cannot even be killed
        self.workers.remove(worker)

    def end_all(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join(DYING_SECONDS)
            worker.pipe.close()
            if worker.task is not None:
                _sweep(worker.task)
        self.workers.clear()


def _sweep(task: CopyTask) -> None:
    """Remove what a killed worker left half written."""
    task.publisher.remove_parts(Path(task.target).parent)


def _describe_end(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit status {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in iter(signal.Signals) else f"signal {-exit_code}"
    return name + (", perhaps out of memory" if name == "SIGKILL" else "")


def _serve(pipe: Connection, parent: int) -> None:
    """A worker process: says that it is ready, then answers each task with beats and its outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    said_seconds = time.monotonic()

    def beat() -> None:
        nonlocal said_seconds
        if time.monotonic() - said_seconds > BEAT_SECONDS:
            said_seconds = time.monotonic()
            pipe.send(BEAT)

    try:
        pipe.send(READY)
        while True:
            task = pipe.recv()
            try:
                outcome = copy_one(task, on_beat=beat)
            except Exception as error:  # a fault of the program, which must not cost the other files
                traceback.print_exc()
                outcome = CopyOutcome(task.source, problem=f"not copied, a fault of the program: {type(error).__name__}: {error}")
            pipe.send(outcome)
    except (EOFError, OSError):
        return


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
