"""Reads clips ahead in worker processes: results in the order asked for, every read under a time
limit, memory bounded.

A read that fails is followed by the sampler's substitute, up to MAX_ATTEMPTS files in all, then by
a blank (clip None). So is one whose process crashes or is killed. A read that takes too long is
ended with its process, and the file is refused for a while. Many such files at once are no longer
the files' fault: a disk is gone, and the run ends with one error that names them (`GivenUp`). What
is read never depends on the number of workers or on how far ahead they are.

(Over 300 lines: the states of a request change under one lock, in one class.)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mats_ds.core.clips import BadClip, ClipSpec
from mats_ds.data.loading.given_up import GivenUp
from mats_ds.data.loading.readers import ReaderPool, Slot, Task, TaskDone, TaskFailed
from mats_ds.data.video.containers import UnreadableVideo

MAX_ATTEMPTS = 4  # the clip itself and three substitutes
# of the memory of clips that wait to be used; the clip that is needed next is read in any case
MAX_HELD_BYTES = 1 << 30
MAX_HELD_CLIPS = 256  # each holds an open file
JOIN_SECONDS = 3.0


@dataclass(frozen=True)
class ReadOptions:
    """Settings of reading ahead; no clip depends on them.

    num_workers: reading processes, None for as many as this process has cores to itself, 0 to read
    in the calling thread without reading ahead or time limits, for debugging. prefetch:
    micro-batches that are kept ready. num_graphs: DALI pipelines on a GPU, None for as many as it
    has decoding engines. Raises ValueError for a number of processes below 0.
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


@dataclass(eq=False)
class ReadRequest:
    """One clip that was asked for. `clip` None, once done, means that no attempt could be read; its
    arrays are valid until it is released. `spec` is of the last attempt.

    `failures` lists the attempts that failed, in order.
    """

    position: int
    on_cpu: bool
    attempt: int = 0
    spec: ClipSpec | None = None
    clip: Any = None
    failures: list[BadClip] = field(default_factory=list)
    done: bool = False
    error: BaseException | None = None
    slot: Slot | None = None


class ClipPrefetcher:
    """Worker processes that read clips in the order of `ask`. `num_workers` 0 reads in the caller's
    thread, without a time limit.

    `read(specs, codecs)`, importable by its name, gives a clip or an UnreadableVideo for each spec
    of one file; any exception is a fault of the program and is raised again by `wait`.
    `spec_of(position, attempt)` is the sampler's spec, asked for in this process; it may raise
    UnreadableVideo for attempts above 0, which then fail unread.
    repeats: so many neighbouring positions are clips of one video, which one process reads
    together. codecs: those that the device decodes, with its limits, for requests that are not
    `on_cpu`; may change.
    Raises ValueError for a `read` that cannot be sent.
    """

    def __init__(
        self,
        read: Callable[[Sequence[ClipSpec], Mapping[str, Any]], list[Any]],
        *,
        spec_of: Callable[[int, int], ClipSpec],
        num_workers: int,
        timeout_seconds: float,
        repeats: int = 1,
        codecs: Mapping[str, Any] = MappingProxyType({}),
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self.codecs: Mapping[str, Any] = dict(codecs)
        self._read = read
        self._spec_of = spec_of
        self._repeats = repeats
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self._num_held = 0
        self._queue: deque[ReadRequest] = deque()
        self._again: deque[ReadRequest] = deque()  # whose next attempt is due, never for want of memory late
        self._awaited: ReadRequest | None = None
        self._given_up = GivenUp(timeout_seconds)
        self._changed = threading.Condition()
        self._stopping = False
        self._fault: BaseException | None = None
        self._pool: ReaderPool | None = None
        self._thread: threading.Thread | None = None
        if num_workers:
            self._pool = ReaderPool(read, num_readers=num_workers, timeout_seconds=timeout_seconds, max_bytes=max_held_bytes)
            # A daemon: the interpreter must be able to end at any moment.
            self._thread = threading.Thread(target=self._run, args=(self._pool,), name="mats-readers", daemon=True)
            self._thread.start()

    def ask(self, position: int, *, attempt: int = 0, on_cpu: bool = False, first: bool = False) -> ReadRequest:
        """Queue a clip, at the end or (`first`) at the head."""
        request = ReadRequest(position, on_cpu, attempt)
        with self._changed:
            (self._queue.appendleft if first else self._queue.append)(request)
        self._wake()
        return request

    def ask_all(self, positions: Sequence[int]) -> list[ReadRequest]:
        """Queue clips at the end, all at once: those of one video are then read together."""
        requests = [ReadRequest(position, on_cpu=False) for position in positions]
        with self._changed:
            self._queue += requests
        self._wake()
        return requests

    def wait(self, request: ReadRequest) -> ReadRequest:
        """The same request, done. Raises Closed, ReadingStuck, WorkersFailed, or what `read` raised
        as a fault of the program."""
        with self._changed:
            if not request.done:
                self._awaited = request
                if self._pool is None:
                    self._read_here(request)
                elif self._queue and self._queue[0] is request:
                    self._wake()  # it may lie there for want of memory
                while not request.done and self._fault is None and not self._stopping:
                    self._changed.wait(1.0)
                self._awaited = None
            error = request.error or (None if request.done else self._fault or Closed())
        if error is not None:
            raise error
        return request

    def release(self, request: ReadRequest) -> None:
        """Forget the clip of a request: its memory may be used for others."""
        with self._changed:
            if request.clip is None:
                return
            request.clip, slot, request.slot = None, request.slot, None
            was_full = not self._may_hold_more()
            self._num_held -= 1
            if slot is not None:
                slot.num_clips -= 1
                if slot.num_clips == 0:
                    self._held_bytes -= slot.num_bytes
                    self._pool.give_back(slot)
            is_waited_for = was_full and self._may_hold_more()
        if is_waited_for:
            self._wake()

    def close(self) -> None:
        """End all workers, within a few seconds."""
        with self._changed:
            self._stopping = True
            self._queue.clear()
            self._again.clear()
            self._changed.notify_all()
        self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)

    def _wake(self) -> None:
        if self._pool is not None:
            self._pool.wake()

    def _run(self, pool: ReaderPool) -> None:
        """Keep the readers busy."""
        try:
            while not self._stopping:
                with self._changed:
                    while pool.has_room and (task := self._next_task()) is not None:
                        pool.give(task)
                for task, outcome in pool.collect():
                    with self._changed:
                        self._note(task, outcome)
        except BaseException as fault:  # raised again for whoever waits for a clip
            with self._changed:
                self._fault = fault
                self._changed.notify_all()
        finally:
            pool.close()

    def _read_here(self, request: ReadRequest) -> None:
        if request in self._queue:
            self._queue.remove(request)
            self._queue.appendleft(request)
        while not request.done and not self._stopping:
            task = self._next_task()
            if task is None:  # no attempt is left
                continue
            try:
                self._note(task, TaskDone(self._read(*task.arguments), None))
            except BaseException as fault:
                self._note(task, fault)

    def _may_hold_more(self) -> bool:
        return self._held_bytes < self._max_held_bytes and self._num_held < MAX_HELD_CLIPS

    def _next_task(self) -> Task | None:
        """The next clips to read, of one file; None where there are none or they must wait. Called
        with the lock held."""
        while self._again or (self._queue and (self._may_hold_more() or self._queue[0] is self._awaited)):
            requests = [self._again.popleft()] if self._again else self._next_group()
            readable = [request for request in requests if self._find_spec(request)]
            while readable and readable[-1].spec.path != readable[0].spec.path:  # no clip of this video after all
                self._queue.appendleft(readable.pop())
            if readable:
                codecs = {} if readable[0].on_cpu else self.codecs
                return Task(([request.spec for request in readable], codecs), owner=readable)
        return None

    def _next_group(self) -> list[ReadRequest]:
        """The first request, and those that follow for other clips of its video."""
        group = [self._queue.popleft()]
        first = group[0]
        while first.attempt == 0 and self._queue:
            other = self._queue[0]
            is_of_it = other.position // self._repeats == first.position // self._repeats
            if not is_of_it or other.attempt or other.on_cpu != first.on_cpu:
                break
            group.append(self._queue.popleft())
        return group

    def _find_spec(self, request: ReadRequest) -> bool:
        """Ask for a request's spec; whether it is to be read."""
        try:
            request.spec = self._spec_of(request.position, request.attempt)
        except UnreadableVideo as unreadable:
            self._note_attempt(request, None, unreadable.reason)
            return False
        except BaseException as fault:
            self._note_fault(request, fault)
            return False
        if request.spec.path in self._given_up:
            self._note_attempt(request, None, "an earlier read of it took too long")
            return False
        return True

    def _note(self, task: Task, outcome: TaskDone | TaskFailed | BaseException) -> None:
        """Note how a task ended; called with the lock held."""
        requests: list[ReadRequest] = task.owner
        if isinstance(outcome, BaseException):
            for request in requests:
                self._note_fault(request, outcome)
            return
        if isinstance(outcome, TaskFailed):
            if outcome.is_too_slow:
                self._given_up.add(requests[0].spec.path)
            outcome = TaskDone([UnreadableVideo(outcome.reason)] * len(requests), None)
        slot = outcome.slot
        for request, clip in zip(requests, outcome.result, strict=True):
            if isinstance(clip, UnreadableVideo):
                self._note_attempt(request, None, clip.reason)
                continue
            if slot is not None:
                request.slot = slot
                slot.num_clips += 1
            self._note_attempt(request, clip, None)
        if slot is not None and slot.num_clips:
            self._held_bytes += slot.num_bytes
        elif slot is not None:
            self._pool.give_back(slot)

    def _note_attempt(self, request: ReadRequest, clip: Any, failure: str | None) -> None:
        """Note a clip, or why there is none."""
        if clip is not None:
            request.clip = clip
            self._num_held += 1
        else:
            request.failures.append(BadClip(request.spec.path, request.spec.sample, failure))
            request.attempt += 1
        request.done = clip is not None or request.attempt >= MAX_ATTEMPTS
        if not request.done:
            self._again.append(request)
        elif request is self._awaited:
            self._changed.notify_all()

    def _note_fault(self, request: ReadRequest, fault: BaseException) -> None:
        request.error, request.done = fault, True
        self._changed.notify_all()
