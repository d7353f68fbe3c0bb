"""Reads clips ahead on worker threads: results in the order asked for, every read under a time
limit, memory bounded.

A read that fails is followed by the sampler's substitute, up to MAX_ATTEMPTS files in all, then by
a blank (clip None). A read that hangs is given up after the time limit: its thread is abandoned (it
cannot be killed, and ends when the read returns), another one is started, and the file is refused
for as long as the old read still hangs. More than MAX_HANGING reads that hang at once are no longer
the files' fault: a disk is gone, and the run ends with one error that names them. What is read
never depends on the number of workers or on how far ahead they are.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mats_ds.core.clips import BadClip, ClipSpec
from mats_ds.core.format import format_count
from mats_ds.data.video.containers import UnreadableVideo

MAX_ATTEMPTS = 4  # the clip itself and three substitutes
# decoded frames that wait to be used; the clip that is needed next is read in any case
MAX_HELD_BYTES = 1 << 30
JOIN_SECONDS = 3.0
MAX_WORKERS = 16
MAX_HANGING = 16  # abandoned threads, each with a file, a decoder and a clip of its own
MAX_NAMED = 8


def default_workers() -> int:
    """Cores that this process may use, shared with the other ranks on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # torchrun gives the number of ranks on this machine by the first name, DeepSpeed's launcher by
    # the second.
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return max(1, min(MAX_WORKERS, cores // max(1, num_ranks)))


@dataclass(frozen=True)
class ReadOptions:
    """Settings of reading ahead; no clip depends on them.

    num_workers: reading threads, None for as many as this process has cores to itself, 0 to read in
    the calling thread without reading ahead or time limits, for debugging. prefetch: micro-batches
    that are kept ready. num_graphs: DALI pipelines on a GPU, None for as many as it has decoding
    engines. Raises ValueError for a number of threads below 0.
    """

    num_workers: int | None = None
    prefetch: int = 2
    clip_timeout_seconds: float = 60.0
    num_graphs: int | None = None

    def __post_init__(self) -> None:
        if self.num_workers is not None and (not isinstance(self.num_workers, int) or self.num_workers < 0):
            raise ValueError(f"num_workers is a whole number of 0 or more, got {self.num_workers!r}")


class Closed(Exception):
    """The prefetcher was closed while somebody waited for a clip."""


class ReadingStuck(RuntimeError):
    """So many reads hang that no more threads are spent on them."""


class _Clip(Protocol):
    num_bytes: int


@dataclass(eq=False)
class ReadRequest:
    """One clip that was asked for. `clip` None, once done, means that no attempt could be read.
    `spec` is of the last attempt.

    `failures` lists the attempts that failed, in order.
    """

    position: int
    on_cpu: bool
    attempt: int = 0
    spec: ClipSpec | None = None
    clip: _Clip | None = None
    failures: list[BadClip] = field(default_factory=list)
    done: bool = False
    started_seconds: float | None = None
    worker: object = None
    error: BaseException | None = None


class ClipPrefetcher:
    """Worker threads that read clips in the order of `ask`. `num_workers` 0 reads in the caller's
    thread, without a time limit.

    `read(spec, on_cpu)` returns a clip or raises UnreadableVideo; any other exception is a fault of
    the program and is raised again by `wait`. `spec_of(position, attempt)` is the sampler's spec;
    it may raise UnreadableVideo for attempts above 0, which then fail unread.
    """

    def __init__(
        self,
        read: Callable[[ClipSpec, bool], _Clip],
        *,
        spec_of: Callable[[int, int], ClipSpec],
        num_workers: int,
        timeout_seconds: float,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._read = read
        self._spec_of = spec_of
        self._timeout_seconds = timeout_seconds
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self._queue: deque[ReadRequest] = deque()
        self._awaited: ReadRequest | None = None
        self._hanging: dict[str, threading.Thread] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._inline = num_workers == 0
        self._threads = [self._start_worker() for _ in range(num_workers)]

    def ask(self, position: int, *, attempt: int = 0, on_cpu: bool = False, first: bool = False) -> ReadRequest:
        """Queue a clip, at the end or (`first`) at the head."""
        request = ReadRequest(position, on_cpu, attempt)
        with self._changed:
            (self._queue.appendleft if first else self._queue.append)(request)
            self._changed.notify_all()
        return request

    def wait(self, request: ReadRequest) -> ReadRequest:
        """The same request, done. Raises Closed, ReadingStuck, or what `read` raised as a fault of
        the program."""
        if self._inline and not request.done:
            if self._stopping:
                raise Closed
            self._queue.remove(request)
            self._work_on(request, worker=None)
        with self._changed:
            self._awaited = request
            self._changed.notify_all()
            while not request.done:
                if self._stopping:
                    raise Closed
                left = 1.0
                if request.started_seconds is not None:
                    left = request.started_seconds + self._timeout_seconds - time.monotonic()
                    if left <= 0:
                        self._abandon(request)
                        continue
                self._changed.wait(min(left, 1.0))
            self._awaited = None
        if request.error is not None:
            raise request.error
        return request

    def release(self, request: ReadRequest) -> None:
        """Forget the clip of a request: its memory may be used for others."""
        with self._changed:
            if request.clip is not None:
                self._held_bytes -= request.clip.num_bytes
                request.clip = None
                self._changed.notify_all()

    def close(self) -> None:
        """End all workers. Reads that hang are left behind; everything else ends within a few
        seconds."""
        with self._changed:
            self._stopping = True
            self._queue.clear()
            self._changed.notify_all()
            hanging = set(self._hanging.values())
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            if thread not in hanging and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start_worker(self) -> threading.Thread:
        # Daemons: the interpreter must be able to end while a read hangs.
        thread = threading.Thread(target=self._run, name="mats-clip-reader", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                while not self._stopping and not self._may_start():
                    self._changed.wait()
                if self._stopping:
                    return
                request = self._queue.popleft()
                request.worker = me
                request.started_seconds = time.monotonic()
            if not self._work_on(request, worker=me):
                return

    def _may_start(self) -> bool:
        return bool(self._queue) and (self._held_bytes < self._max_held_bytes or self._queue[0] is self._awaited)

    def _work_on(self, request: ReadRequest, *, worker: threading.Thread | None) -> bool:
        """Read a request's clip or a substitute; False when the worker was given up meanwhile."""
        while True:
            clip, failure, error = None, None, None
            try:
                attempt = request.attempt
                spec = self._spec_of(request.position, attempt)
                with self._changed:
                    if request.worker is not worker:
                        return False
                    request.spec = spec
                    hangs = spec.path in self._hanging
                if hangs:
                    raise UnreadableVideo("an earlier read of it still hangs")
                clip = self._read(spec, request.on_cpu)
            except UnreadableVideo as unreadable:
                failure = unreadable.reason
            except BaseException as fault:  # raised again for whoever waits for the clip
                error = fault
            with self._changed:
                if request.worker is not worker:
                    self._hanging.pop(spec.path, None)
                    return False
                self._note_attempt(request, clip, failure, error)
                if request.done:
                    return True

    def _note_attempt(self, request: ReadRequest, clip: _Clip | None, failure: str | None, error: BaseException | None) -> None:
        """Note how an attempt ended; called with the lock held."""
        if failure is not None:
            request.failures.append(BadClip(request.spec.path, request.spec.sample, failure))
            request.attempt += 1
        if clip is not None:
            request.clip = clip
            self._held_bytes += clip.num_bytes
        request.error = error
        request.done = failure is None or request.attempt >= MAX_ATTEMPTS
        request.started_seconds = time.monotonic()
        self._changed.notify_all()

    def _abandon(self, request: ReadRequest) -> None:
        """Give up a read that takes too long, and the thread with it; called with the lock held."""
        stuck = request.worker
        if request.spec is not None and isinstance(stuck, threading.Thread):
            self._hanging[request.spec.path] = stuck
            self._threads.remove(stuck)
            if len(self._hanging) > MAX_HANGING:
                raise ReadingStuck(self._describe_hanging())
            self._threads.append(self._start_worker())
        request.worker = None
        request.started_seconds = None
        self._note_attempt(request, None, f"not read within {self._timeout_seconds:g} s", None)
        if not request.done:
            request.started_seconds = None
            self._queue.appendleft(request)

    def _describe_hanging(self) -> str:
        paths = list(self._hanging)
        more = f" and {len(paths) - MAX_NAMED:,} more" if len(paths) > MAX_NAMED else ""
        return (
            f"{format_count(len(paths), 'video')} not read within {self._timeout_seconds:g} s, and still hanging: "
            f"{', '.join(paths[:MAX_NAMED])}"
            f"{more}. Check the disk or network share that they lie on, then start the run again, with --resume auto"
        )
