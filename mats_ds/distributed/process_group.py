"""A command in a process group of its own that leaves no process behind: DeepSpeed's launcher does
not pass on signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from mats_ds.core.text import quote_word

GRACE_SECONDS = 30.0  # for ranks to save and end after SIGTERM
# For workers that answer for themselves: a rank ends its step within 25 s or says why not, and its
# process is gone 10 s later (core/cli/endings.py); a busy machine takes its time, and a second
# Ctrl-C none.
ANSWER_SECONDS = 60.0
PR_SET_PDEATHSIG = 1  # prctl(2)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """This process got a signal, and has ended the command. `number` is the signal, `status` what
    the command ended with, as Popen has it; `is_answered`: workers got the signal and speak for
    themselves."""

    def __init__(self, number: int, status: int, *, is_answered: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.status, self.is_answered = signal.Signals(number), status, is_answered


def is_dry_run() -> bool:
    """Whether commands are printed instead of run."""
    return os.environ.get("MATS_DRY_RUN", "0") not in ("", "0")


def show_words(words: Sequence[object]) -> str:
    """A command as it is printed in a dry run."""
    return "+ " + " ".join(map(quote_word, words))


def run_in_group(
    command: Sequence[str], environment: Mapping[str, str], *, find_workers: Callable[[int], Sequence[int]] | None = None
) -> int:
    """Run the command to its end and return its status as a shell has it: 128 + N after a signal N.

    All processes of its group get SIGTERM when it ends, when this process gets SIGINT, SIGTERM or
    SIGHUP, and (the command alone, on Linux) when this process is killed; those that still run
    after GRACE_SECONDS get SIGKILL. Raises Stopped.

    find_workers: from the command's process to the processes that get such a signal, and a second
    Ctrl-C, before the group does, so that the command ends with their status and not by the signal.
    """
    # a signal that this process was started to ignore (nohup, a background job of a script) stays
    # ignored
    stopping = {number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN}
    awaited = stopping | {signal.SIGCHLD}
    libc = ctypes.CDLL(None)

    def start_group() -> None:  # in the child
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        with contextlib.suppress(AttributeError):
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    received, workers = None, []
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=start_group)
        while child.poll() is None and received is None:
            number = signal.sigwait(awaited)
            received = None if number == signal.SIGCHLD else number
        if received is not None and find_workers is not None:
            workers = list(find_workers(child.pid))
            _end_by_workers(child, workers, received, awaited)
        end_group(child)
    finally:
        if received is not None:
            for number in stopping:  # whoever presses Ctrl-C twice wants the same
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
    if received is not None:
        raise Stopped(received, child.returncode, is_answered=bool(workers))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_by_workers(child: subprocess.Popen, workers: Sequence[int], number: int, awaited: set[int]) -> None:
    """Pass the signal on to the workers, and wait ANSWER_SECONDS for the command to end after
    them."""
    deadline = time.monotonic() + ANSWER_SECONDS
    send = bool(workers)
    while workers and child.poll() is None and time.monotonic() < deadline:
        for worker in workers if send else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(worker, number)
        again = signal.sigtimedwait(awaited, max(0.0, min(0.5, deadline - time.monotonic())))
        # the second Ctrl-C means at once; whatever else comes twice means the same
        send = again is not None and again.si_signo == number == signal.SIGINT


def end_group(child: subprocess.Popen) -> None:
    """SIGTERM for all that is left of the child's process group, and SIGKILL for what is still
    there after GRACE_SECONDS."""
    deadline = time.monotonic() + GRACE_SECONDS
    number = signal.SIGTERM
    while _signal_group(child.pid, number):
        child.poll()  # a child that nobody has waited for counts as there
        if time.monotonic() > deadline:
            _signal_group(child.pid, signal.SIGKILL)
            break
        number = 0
        time.sleep(0.05)
    child.wait()


def _signal_group(group: int, number: int) -> bool:
    """Send the signal; False where the group has no process."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # what is left has become another user's
        return False
    return True
