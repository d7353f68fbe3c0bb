"""What runs in the processes that read clips: the template, which forks, and the readers."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import mmap
import os
import pickle
import resource
import select
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mats_ds.core.workers import end_with_parent, ignore_signals
from mats_ds.data.augment import augmented_crop  # noqa: F401  # imported once, for all readers
from mats_ds.data.loading import reader  # noqa: F401
from mats_ds.data.loading.channel import FAULT, LOG, READY, RESULT, WARNING, Channel, lay_out, map_memory, open_memory, pack
from mats_ds.data.loading.template import FORK

LOOK_SECONDS = 1.0  # between two looks whether the parent lives
REAP_SECONDS = 1.0  # for processes that were killed; one that waits for a dead disk stays
MAX_TRACEBACK = 8000
# a memory file is used again for clips of at least a quarter of its size
MAX_SPARE = 4


def run_template(descriptor: int, *, parent: int) -> None:
    """Fork readers on request, on one thread, until the parent closes the socket or ends."""
    ignore_signals()
    _lift_file_limit()
    torch.set_num_threads(1)
    os.set_inheritable(descriptor, False)
    gc.collect()
    gc.freeze()  # the collector would write to, and so copy, what is shared with the readers
    channel = Channel(socket.socket(fileno=descriptor))
    children: set[int] = set()
    statuses: dict[int, int] = {}
    me = os.getpid()
    try:
        while os.getppid() == parent:
            _reap(children, statuses)
            if not select.select([channel], [], [], LOOK_SECONDS)[0]:
                continue
            for message, files in channel.receive_some():
                if message == FORK:
                    children.add(_fork(channel, files[0], template=me))
                else:
                    channel.send(_end(message[1], children, statuses))
    except (EOFError, OSError):
        pass  # the parent is gone, or needs no more
    finally:
        if os.getpid() == me:
            for process in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def _lift_file_limit() -> None:
    """Readers write to memory files alone: a limit of the shell for files on the disk (`ulimit -f`)
    is not meant for them."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def _fork(channel: Channel, descriptor: int, *, template: int) -> int:
    process = os.fork()
    if process:
        os.close(descriptor)
        return process
    status = 1
    try:
        channel.close()
        serve(Channel(socket.socket(fileno=descriptor)), parent=template)
        status = 0
    finally:
        os._exit(status)  # nothing of the template's is to run here


def _reap(children: set[int], statuses: dict[int, int]) -> None:
    for process in [*children]:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            children.discard(process)
            statuses[process] = os.waitstatus_to_exitcode(status)


def _end(processes: Sequence[int], children: set[int], statuses: dict[int, int]) -> dict[int, int | None]:
    """Kill the children among these; the statuses of those that have ended."""
    _reap(children, statuses)  # one that ended by itself shall say so
    for process in children & set(processes):
        os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS
    while children & set(processes) and time.monotonic() < deadline:
        _reap(children, statuses)
        time.sleep(0.001)
    return {process: statuses.pop(process, None) for process in processes}


def serve(channel: Channel, *, parent: int) -> None:
    """Be a reader: read the clips of each task that comes, until the parent closes the socket or
    ends.

    The first message is (function, folder): called as `function(*task)`, and the folder that paths
    are relative to. What it returns goes back with its large arrays in a memory file.
    """
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    _forward_messages(channel)
    messages = _messages(channel)
    memories: dict[int, mmap.mmap] = {}
    numbers = itertools.count()
    try:
        function, folder = next(messages)
    except Exception as error:  # a function that is not importable by its name, say
        return channel.send((FAULT, *_portable(error)))
    with contextlib.suppress(OSError):
        os.chdir(folder)
    channel.send((READY, os.getpid()))
    for task, number, dropped in messages:
        for unused in dropped:
            del memories[unused]
        try:
            answer, files = _do(function, task, number, memories, numbers)
        except Exception as error:
            answer, files = (FAULT, *_portable(error)), []
        channel.send(answer, files=files)
        for file in files:
            os.close(file)


def _messages(channel: Channel) -> Iterator[Any]:
    while True:
        try:
            received = channel.receive_some()
        except (EOFError, OSError):
            return
        for message, _ in received:
            yield message


def _do(
    function: Callable[..., Any], task: Any, number: int | None, memories: dict[int, mmap.mmap], numbers: Iterator[int]
) -> tuple[Any, list[int]]:
    """The answer with a task's result, and the file of its memory where that is new."""
    pickled, large = pack(function(*task))
    ranges, num_bytes = lay_out(large)
    files = []
    if num_bytes:
        known = memories.get(number) if number is not None else None
        if known is None or not num_bytes <= len(known) <= MAX_SPARE * num_bytes + mmap.PAGESIZE:
            memories.pop(number, None)
            capacity = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            file = open_memory(capacity)
            number, files = next(numbers), [os.dup(file)]
            memories[number] = known = map_memory(file, capacity)
        for (begin, size), buffer in zip(ranges, large, strict=True):
            known[begin : begin + size] = buffer.raw()
    return (RESULT, pickled, ranges, number, len(memories[number]) if num_bytes else 0), files


def _portable(error: Exception) -> tuple[Exception, str]:
    """An error as it can be raised again elsewhere, and its traceback."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))[-MAX_TRACEBACK:]
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return error.with_traceback(None), text


def _forward_messages(channel: Channel) -> None:
    """Let log records and warnings be shown by the parent, which knows how, and once for all its
    readers."""
    sending = threading.Lock()

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with sending:
                channel.send((LOG, record.name, record.levelno, record.getMessage()))

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        with sending:
            channel.send((WARNING, str(message), category, filename, lineno))

    logging.getLogger().handlers = [Forward()]
    logging.getLogger().setLevel(logging.INFO)
    warnings.showwarning = show
