"""The process that others are forked from to read clips, seen from the training process.

Not a fork of the training process (it has threads and a GPU), and not one of multiprocessing's
other ways (they import the main module of whoever trains: DeepSpeed in every reader, and a program
without a main guard would start itself again). This interpreter imports once what reading needs,
torch for its resizing included, stays on one thread, and forks a reader when it is sent a socket
for it: readers start in milliseconds, and share the memory of what was imported. One serves all
loaders of a process; it ends with it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Sequence

from mats_ds.core.workers import ONE_THREAD, describe_status, python_command
from mats_ds.data.loading.channel import Channel

# The first line finds packages where the parent does; a failure is told through the socket.
SERVE = """
import sys
sys.path[:] = sys.argv[3:]
try:
    from mats_ds.data.loading.reader_process import run_template
except BaseException as error:
    import os
    os.write(int(sys.argv[1]), f"{type(error).__name__}: {error}".encode())
    os._exit(1)
run_template(int(sys.argv[1]), parent=int(sys.argv[2]))
"""
ANSWER_SECONDS = 10.0  # to a question, once it runs
END_SECONDS = 3.0
GRACE_SECONDS = 0.3  # between the end of its messages and its own
FORK, END = "fork", "end"

_current: Template | None = None
_starting = threading.Lock()


class Template:
    """A running template. `fork` and `end` may be called from any thread."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.owner = os.getpid()
        self._channel = Channel(ours)
        self._asking = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                python_command(SERVE, str(theirs.fileno()), str(self.owner)),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # no reader shall ever open a context on a GPU
                env=os.environ | ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""},
            )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def has_failed(self) -> bool:
        """Whether it has ended by itself, so that another one would too; for a reader that did not
        start."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(GRACE_SECONDS) >= 0
        return False

    def fork(self) -> socket.socket:
        """Our end of a new reader's socket. It is open at once: what is sent waits until the reader
        runs, and it closes where none could be started."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):
            self._channel.send(FORK, files=[theirs.fileno()])
        return ours

    def end(self, processes: Sequence[int]) -> dict[int, int | None]:
        """Kill these readers; their exit status by their number, below 0 the signal that ended it,
        None where it is not known."""
        statuses: dict[int, int | None] = dict.fromkeys(processes)
        if not processes:
            return statuses
        with self._asking, contextlib.suppress(OSError, EOFError):
            self._channel.connection.settimeout(ANSWER_SECONDS)
            self._channel.send((END, list(processes)))
            while True:
                for answer, _ in self._channel.receive_some():
                    if answer.keys() == statuses.keys():  # and not a late one to an earlier question
                        return answer
        return statuses

    def describe_end(self) -> str:
        """How it ended, with its last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        with self._asking, contextlib.suppress(OSError, EOFError):
            self._channel.connection.settimeout(0.0)
            self._channel.receive_some()
        words = self._channel.received_text()
        return describe_status(self._process.poll()) + (f": {words}" if words else "")

    def close(self) -> None:
        """End it, and all readers that it has forked."""
        self._channel.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def get_template() -> Template:
    """The template of this process, started if there is none yet; the import of what readers need
    takes it a few seconds, which nobody has to wait for."""
    global _current
    with _starting:
        # A fork of the training process (a data loader of somebody else's) starts one of its own.
        if _current is None or _current.owner != os.getpid() or not _current.is_running:
            if _current is None or _current.owner != os.getpid():
                atexit.register(_close_current)
            _current = Template()
        return _current


def _close_current() -> None:
    if _current is not None and _current.owner == os.getpid():
        _current.close()
