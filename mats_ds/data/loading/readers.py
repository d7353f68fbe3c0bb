"""Processes that read clips, seen from the training process: tasks to them, clips from them, and
another process for one that crashed or takes too long.

Each has the next task at hand while it works on one, so that it never waits for this process, whose
Python may be busy with training. Clips arrive in memory files of the reader (`Slot`), mapped here
once and written again when their clips have been used. Only one thread uses a pool, but for `wake`
and `give_back`.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import selectors
import socket
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mats_ds.core.workers import MAX_DEATHS_AT_START, WorkersFailed, describe_death, describe_status
from mats_ds.data.loading.channel import FAULT, LOG, READY, WARNING, Channel, map_memory, unpack
from mats_ds.data.loading.template import Template, get_template

TASKS_AHEAD = 2  # of a reader: the one that it works on and the next
START_SECONDS = 300.0  # for the first process to import torch from a slow disk
MAX_SHOWN = 1000  # messages of readers that are remembered, to show each once


@dataclass(eq=False)
class Slot:
    """A memory file of a reader, and how many clips in it are still in use."""

    number: int
    memory: mmap.mmap
    reader: Reader
    num_clips: int = 0

    @property
    def num_bytes(self) -> int:
        return len(self.memory)


@dataclass(eq=False)
class Task:
    """Arguments of the function that reads, for the clips of one file. `slot`: the memory that they
    may go to, chosen when it is sent."""

    arguments: tuple[Any, ...]
    owner: Any = None
    slot: Slot | None = None


@dataclass(frozen=True)
class TaskFailed:
    """A reader that crashed, or was ended because it took too long, and why."""

    reason: str
    is_too_slow: bool = False


@dataclass(frozen=True)
class TaskDone:
    """What a task gave, and the memory that it lies in, None where it holds no large arrays."""

    result: Any
    slot: Slot | None


class Reader:
    """A process that reads, and its tasks."""

    def __init__(self, template: Template, function: Callable[..., Any]) -> None:
        self.template = template
        self.channel = Channel(template.fork())
        self.process: int | None = None  # once it has said that it is ready
        self.is_gone = False
        self.began_seconds = time.monotonic()  # the first of its tasks, or its start
        self.tasks: deque[Task] = deque()
        self.free: list[Slot] = []
        self.dropped: list[int] = []
        self._send((function, os.getcwd()))

    def send(self, task: Task) -> None:
        task.slot = self.free.pop() if self.free else None
        if not self.tasks:
            self.began_seconds = time.monotonic()
        self.tasks.append(task)
        dropped, self.dropped = self.dropped, []
        self._send((task.arguments, task.slot and task.slot.number, dropped))

    def _send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is dead, which the next look at its socket shows
            self.channel.send(message)


class ReaderPool:
    """`num_readers` processes that call `function`, which is importable by its name, with the
    arguments of tasks.

    timeout_seconds: for each task. max_bytes: of memory files, beyond which those that are given
    back are freed. Raises ValueError for a function that cannot be sent to another process.
    """

    def __init__(self, function: Callable[..., Any], *, num_readers: int, timeout_seconds: float, max_bytes: int) -> None:
        try:
            pickle.dumps(function)
        except Exception as error:
            raise ValueError(
                f"{function!r} cannot be sent to processes that read ({error}): define it in a module, by its name, or read with "
                "num_workers=0"
            ) from None
        self._function = function
        self._timeout_seconds = timeout_seconds
        self._max_bytes = max_bytes
        self._num_bytes = 0  # of all slots, in use or free
        self._num_deaths_at_start = 0
        self._returned: deque[Task] = deque()  # those of a dead reader that it had not begun
        self._given_back: deque[Slot] = deque()
        self._shown: set[tuple[Any, ...]] = set()
        self._selector = selectors.DefaultSelector()
        self._wakes, self._wake = socket.socketpair()
        self._wakes.setblocking(False)
        self._wake.setblocking(False)
        self._selector.register(self._wakes, selectors.EVENT_READ, None)
        self.readers: list[Reader] = []
        self._template = get_template()
        for _ in range(num_readers):
            self._start_reader()

    @property
    def has_room(self) -> bool:
        """Whether a task may be given now."""
        return not self._returned and self._next_reader() is not None

    def give(self, task: Task) -> None:
        """Send a task to the reader that has least to do."""
        self._next_reader().send(task)

    def _next_reader(self) -> Reader | None:
        """The reader for the next task, None where all have enough."""
        nearest = min(self.readers, key=lambda reader: len(reader.tasks) if reader.process is not None else TASKS_AHEAD)
        # While one is still starting, no other takes tasks that it could have begun.
        limit = TASKS_AHEAD if all(reader.tasks for reader in self.readers) else 1
        return nearest if nearest.process is not None and len(nearest.tasks) < limit else None

    def give_back(self, slot: Slot) -> None:
        """The clips of this memory are no longer used; from any thread."""
        self._given_back.append(slot)

    def wake(self) -> None:
        """Let `collect` return; from any thread."""
        with contextlib.suppress(OSError):
            self._wake.send(b"w")

    def collect(self) -> Iterator[tuple[Task, TaskDone | TaskFailed | BaseException]]:
        """Wait until something happens; the tasks that have ended, each with what it gave or the
        error that it raised. Raises WorkersFailed where no reader can be started."""
        self._take_back()
        before = time.monotonic()
        for key, _ in self._selector.select(self._seconds_left(before)):
            reader: Reader | None = key.data
            if reader is None:
                with contextlib.suppress(BlockingIOError):
                    self._wakes.recv(4096)
                continue
            try:
                for message, files in reader.channel.receive_some():
                    yield from self._take(reader, message, files)
            except (EOFError, OSError):
                yield from self._replace(reader)
        for reader in [*self.readers]:
            # What it was late for was seen above, also where this process stood still meanwhile.
            if self._deadline(reader) < before:
                yield from self._replace(reader, f"not read within {self._timeout_seconds:g} s")
        while self._returned and self._next_reader() is not None:
            self.give(self._returned.popleft())

    def close(self) -> None:
        """End all readers."""
        processes = [reader.process for reader in self.readers if reader.process is not None]
        for reader in self.readers:
            self._forget(reader)
        self._template.end(processes)
        self._selector.close()
        self._wakes.close()
        self._wake.close()

    def _seconds_left(self, now: float) -> float | None:
        nearest = min((self._deadline(reader) for reader in self.readers), default=float("inf"))
        return None if nearest == float("inf") else max(0.0, nearest - now) + 0.01

    def _deadline(self, reader: Reader) -> float:
        if reader.process is None:
            return reader.began_seconds + max(self._timeout_seconds, START_SECONDS)
        return reader.began_seconds + self._timeout_seconds if reader.tasks else float("inf")

    def _start_reader(self) -> None:
        reader = Reader(self._template, self._function)
        self.readers.append(reader)
        self._selector.register(reader.channel, selectors.EVENT_READ, reader)

    def _take(self, reader: Reader, message: Any, files: list[int]) -> Iterator[tuple[Task, Any]]:
        kind, *values = message
        if kind == READY:
            reader.process, self._num_deaths_at_start = values[0], 0
        elif kind in (LOG, WARNING):
            self._show(kind, *values)
        else:
            if not reader.tasks:  # it could not even take the function
                raise _with_traceback(*values)
            task = reader.tasks.popleft()
            reader.began_seconds = time.monotonic()
            yield task, _with_traceback(*values) if kind == FAULT else self._unpack(reader, task, *values, files)

    def _unpack(
        self,
        reader: Reader,
        task: Task,
        pickled: bytes,
        ranges: list[tuple[int, int]],
        number: int,
        num_bytes: int,
        files: list[int],
    ) -> TaskDone:
        slot, task.slot = task.slot, None
        if files:
            if slot is not None:  # too small, or much too large: the reader has let go of it
                self._num_bytes -= slot.num_bytes
            slot = Slot(number, map_memory(files[0], num_bytes), reader)
            self._num_bytes += num_bytes
        if not ranges and slot is not None:
            reader.free.append(slot)
            slot = None
        return TaskDone(unpack(pickled, slot and slot.memory, ranges), slot)

    def _take_back(self) -> None:
        while self._given_back:
            slot = self._given_back.popleft()
            if slot.reader.is_gone or self._num_bytes > self._max_bytes:
                self._num_bytes -= slot.num_bytes
                slot.reader.dropped.append(slot.number)
            else:
                slot.reader.free.append(slot)

    def _replace(self, reader: Reader, reason: str = "") -> Iterator[tuple[Task, TaskFailed]]:
        """Start another reader for one that is dead, or shall be; what became of its task."""
        if reader.process is None and reader.template is self._template:
            self._num_deaths_at_start += 1
            if self._num_deaths_at_start >= MAX_DEATHS_AT_START or self._template.has_failed():
                raise WorkersFailed(f"the processes that read clips do not start ({self._template.describe_end()})")
        ended = self._template.end([reader.process] if reader.process is not None else [])
        self._forget(reader)
        if not self._template.is_running:
            self._template = get_template()
        self._start_reader()
        if reader.tasks:
            task = reader.tasks.popleft()
            self._returned.extendleft(reversed(reader.tasks))
            status = ended.get(reader.process)
            yield task, TaskFailed(reason or describe_death(status, describe_status(status)), is_too_slow=bool(reason))

    def _forget(self, reader: Reader) -> None:
        self._selector.unregister(reader.channel)
        reader.channel.close()
        reader.is_gone = True
        slots = [*reader.free, *(task.slot for task in reader.tasks if task.slot is not None)]
        self._num_bytes -= sum(slot.num_bytes for slot in slots)
        reader.free.clear()
        self.readers.remove(reader)

    def _show(self, kind: str, *values: Any) -> None:
        """Log or warn in the name of a reader, once for all of them."""
        if (kind, *values) in self._shown or len(self._shown) >= MAX_SHOWN:
            return
        self._shown.add((kind, *values))
        if kind == WARNING:
            text, category, filename, line = values
            warnings.warn_explicit(text, category, filename, line)
        else:
            name, level, text = values
            logging.getLogger(name).log(level, "%s", text)


def _with_traceback(error: BaseException, text: str) -> BaseException:
    """An error of a reader; where it happened there is shown as its cause."""
    error.__cause__ = RuntimeError(f"in a process that reads clips:\n{text}")
    return error
