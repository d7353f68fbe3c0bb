"""Messages and open files between the processes that read clips: small pickles over a socket, large
arrays in memory that both sides map.

`pack` takes the large arrays of a value out of its pickle; they are copied into a memory file, and
`unpack` makes the same value around that memory on the other side: pixels are never pickled. The
memory is that of a file without a name (memfd): it needs no room in /dev/shm, which is 64 MB in a
container, and is freed when the last process that maps it is gone, however that ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

READY, LOG, WARNING, RESULT, FAULT = "ready", "log", "warning", "result", "fault"  # messages of a reader
HEADER = struct.Struct("<IB")  # bytes of the pickle, open files that come with it
RECEIVED_BYTES = 1 << 16
FILE = struct.Struct("i")
FILES_BYTES = socket.CMSG_SPACE(16 * FILE.size)  # more than one message brings
CLOSED_IN_CHILDREN = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
OUT_OF_BAND_BYTES = 1 << 10  # smaller arrays stay in the pickle
ALIGNMENT = 64


class Channel:
    """One end of a pair of sockets."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = bytearray()
        self._files: deque[int] = deque()

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: Any, *, files: Sequence[int] = ()) -> None:
        """Send a value that can be pickled, and open files. Raises OSError where nobody receives it
        any more."""
        pickled = pickle.dumps(message, protocol=5)
        packet = HEADER.pack(len(pickled), len(files)) + pickled
        sent = socket.send_fds(self.connection, [packet], list(files)) if files else self.connection.send(packet)
        if sent < len(packet):
            self.connection.sendall(memoryview(packet)[sent:])

    def receive_some(self) -> list[tuple[Any, list[int]]]:
        """The messages that one look at the socket completes, each with its files; waits until
        there is something. Raises EOFError when the other end is closed."""
        try:
            # not socket.recv_fds, which in many versions of Python leaves the flag out
            data, rights, *_ = self.connection.recvmsg(RECEIVED_BYTES, FILES_BYTES, CLOSED_IN_CHILDREN)
        except ConnectionResetError:
            data, rights = b"", []
        for level, kind, numbers in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(numbers) // FILE.size * FILE.size
                self._files += (number for (number,) in FILE.iter_unpack(numbers[:whole]))
        if not data:
            raise EOFError
        self._received += data
        messages = []
        while len(self._received) >= HEADER.size:
            num_bytes, num_files = HEADER.unpack_from(self._received)
            end = HEADER.size + num_bytes
            if len(self._received) < end:
                break
            message = pickle.loads(self._received[HEADER.size : end])
            messages.append((message, [self._files.popleft() for _ in range(num_files)]))
            del self._received[:end]
        return messages

    def received_text(self) -> str:
        """What came and is no message: the last words of a process that could not start."""
        return bytes(self._received).decode("utf-8", "replace").strip()

    def close(self) -> None:
        self.connection.close()
        while self._files:
            os.close(self._files.popleft())


def pack(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """A value's pickle without its large arrays, and those."""
    large: list[pickle.PickleBuffer] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND_BYTES:
            return True
        large.append(buffer)
        return False

    return pickle.dumps(value, protocol=5, buffer_callback=stays_inside), large


def unpack(pickled: bytes, memory: mmap.mmap | None, ranges: Sequence[tuple[int, int]]) -> Any:
    """The value; its large arrays are views of `memory`, at these (offset, bytes)."""
    view = memoryview(memory) if memory is not None else b""
    return pickle.loads(pickled, buffers=[view[offset : offset + num_bytes] for offset, num_bytes in ranges])


def lay_out(large: Sequence[pickle.PickleBuffer]) -> tuple[list[tuple[int, int]], int]:
    """Where in a memory file each array goes, (offset, bytes), and the bytes of all."""
    ranges, end = [], 0
    for buffer in large:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        end = begin + buffer.raw().nbytes
        ranges.append((begin, end - begin))
    return ranges, end


def open_memory(num_bytes: int) -> int:
    """A file in memory, without a name, as an open file; on disk where the system has none in
    memory. Raises OSError where there is no room."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # forbidden in some sandboxes
            file = os.memfd_create("mats-clips", os.MFD_CLOEXEC)
            os.ftruncate(file, num_bytes)
            return file
    with tempfile.TemporaryFile() as unnamed:
        # written, not only made longer: on a full disk that is an error here and not a crash later
        for begin in range(0, num_bytes, 1 << 20):
            unnamed.write(bytes(min(1 << 20, num_bytes - begin)))
        unnamed.flush()
        return os.dup(unnamed.fileno())


def map_memory(file: int, num_bytes: int) -> mmap.mmap:
    """The memory of a memory file, which is closed here: it lives as long as somebody maps it."""
    try:
        return mmap.mmap(file, num_bytes)
    finally:
        os.close(file)
