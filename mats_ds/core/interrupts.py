"""Signals that ask a program to end (Ctrl-C, SIGTERM, SIGHUP): one line and an exit status of
128 + N, never a traceback, at any moment.

While a program imports, nothing is begun and it ends at once (`begin_script`, and `end_at_once` for
what it imports after its checks). While it works, an
error in the main thread lets it put its things away (`raise_signals`); where the main thread is
busy in code that is not Python's, it is ended after GRACE_SECONDS. Signals that this process was
started to ignore (nohup) stay ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0
AGAIN = "start the same command again"
_IMPORTING = threading.Event()


class Signalled(KeyboardInterrupt):
    """A signal asked this process to end. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


def begin_script() -> None:
    """Until `raise_signals` takes over, a signal ends this process at once, in one line, and so
    does a package that is not installed: for a file that is run as a script, before its heavy
    imports."""
    sys.excepthook = _end_of_imports
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end_before_begin)


@contextlib.contextmanager
def end_at_once() -> Iterator[None]:
    """Inside it a program imports, after its checks and before it begins anything: a signal ends
    the process at once, in one line, as it does after `begin_script`. An error that is raised
    within an import is taken for the package's own by some that import it."""
    _IMPORTING.set()
    try:
        yield
    finally:
        _IMPORTING.clear()


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """Inside it, in the main thread, a signal raises Signalled, where nobody else handles it. A
    second Ctrl-C ends the process at once; other signals that follow the first change nothing, as a
    launcher passes on what a terminal has sent to all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[int] = []
    is_handled = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        is_handled.set()
        if _IMPORTING.is_set():
            _end_before_begin(number, frame)
        if not first:
            first.append(number)
            raise Signalled(number)
        if number == first[0] == signal.SIGINT:
            _end_at_once(number, "a second time: at once")

    ours = (signal.SIG_DFL, signal.default_int_handler, _end_before_begin)
    before = {number: signal.getsignal(number) for number in STOPPING if signal.getsignal(number) in ours}
    for number in before:
        signal.signal(number, on_signal)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    process = os.getpid()
    os.register_at_fork(after_in_child=lambda: _forget(before, on_signal, writer))
    threading.Thread(target=_watch, args=(reader, frozenset(before), is_handled), name="signals", daemon=True).start()
    try:
        yield
    finally:
        if os.getpid() == process:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                if signal.getsignal(number) is on_signal:
                    signal.signal(number, signal.default_int_handler if handler is _end_before_begin else handler)
            os.close(writer)


def leave_quietly(*, ignore: bool) -> None:
    """For the end of the process, while threads and modules are taken down: a signal is ignored, or
    ends it without a word."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN if ignore else signal.SIG_DFL)


def is_first_here() -> bool:
    """Whether this process speaks for all of its program on this machine: one line is enough."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def _watch(reader: int, numbers: frozenset[int], is_handled: threading.Event) -> None:
    # a signal that the main thread waits for with sigwait must not come to this one
    signal.pthread_sigmask(signal.SIG_BLOCK, set(STOPPING) | {signal.SIGCHLD})
    while came := os.read(reader, 64):
        for number in numbers & set(came):
            if not is_handled.wait(GRACE_SECONDS):
                _end_at_once(number, f"and busy for {GRACE_SECONDS:.0f} s: at once")
    os.close(reader)


def _forget(before: dict[int, object], on_signal: object, writer: int) -> None:
    """In a forked child: signals are its own affair, and end it without a word."""
    for number in before:
        if signal.getsignal(number) is on_signal:
            signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        if (other := signal.set_wakeup_fd(-1)) not in (-1, writer):
            signal.set_wakeup_fd(other)


def _end_of_imports(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line and status 2 for a package of ours that is not installed; else the traceback."""
    from mats_ds.core.storage.package_files import describe_missing

    if not (lacking := describe_missing(error)):
        return sys.__excepthook__(kind, error, trace)
    if is_first_here():
        print(f"error: {lacking}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def _end_before_begin(number: int, frame: FrameType | None) -> None:
    _end_at_once(number, f"before it began: nothing was written; {AGAIN}")


def _end_at_once(number: int, words: str) -> None:
    """Without buffers and locks, which the interrupted code may hold."""
    if is_first_here():
        with contextlib.suppress(OSError):
            os.write(2, f"stopped by {signal.Signals(number).name} {words}\n".encode())
    os._exit(128 + number)
