"""Work -> the exit status of a program, and one line of text for what ended it early.

return run_script(lambda: convert(parse_arguments(arguments)))
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from mats_ds.core.interrupts import AGAIN, is_first_here, leave_quietly, raise_signals
from mats_ds.core.storage.package_files import describe_missing
from mats_ds.core.terminal import drop_notices, make_tolerant
from mats_ds.core.text import clean_line, describe_crash, describe_error

FINISHED, RUN_ERROR, USAGE_ERROR = 0, 1, 2
INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, to be started again
KILLED_BY_USER = 130  # as a shell has it after Ctrl-C
EXIT_SECONDS = 10.0
_OUT_OF_MEMORY = (
    "outofmemoryerror",
    "out of memory",
    "out_of_memory",
    "can't allocate memory",
    "cannot allocate memory",
    "memoryerror",
)


class ProgramEnd(RuntimeError):
    """Ends a program with `status` and the line "LABEL: MESSAGE".

    Unless `is_local`, all ranks raise it together: the first rank of every host prints the line, as
    it may be the only one to know. A local end is printed by every rank that meets it.
    """

    status = RUN_ERROR
    label = "stopped"
    is_local = False


def run_script(work: Callable[[], int | None], *, advice: str | None = None, standing: Callable[[], str] = lambda: AGAIN) -> int:
    """The exit status of a program that does `work`; what ends it early is one line on stderr, and
    a bug a traceback.

    0, or what `work` returns; 2 for a ValueError, which is wrong input or arguments, and for a
    package that is not installed; the status of a ProgramEnd; 130 after Ctrl-C, and 128 + N after
    another signal N that asked it to end; 1 where memory ran out and for errors that nobody
    expected.

    advice: what to do after a fault of the machine (OSError), whose status then is 1. Without
    advice it counts as wrong input: an output that cannot be written, say. standing: asked after an
    interruption or such a fault, what is kept and how to go on.
    """
    make_tolerant()
    drop_notices()
    try:
        with raise_signals():
            return _run_to_end(work, advice, standing)
    except KeyboardInterrupt:  # another one, while the first was answered
        return KILLED_BY_USER


def _run_to_end(work: Callable[[], int | None], advice: str | None, standing: Callable[[], str]) -> int:
    try:
        status = work() or FINISHED
        _leave_ranks()
        return status
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        who = "stopped" if number == signal.SIGINT else f"stopped by {number.name}"
        kept = clean_line(str(error)) or standing()  # before the folder is released
        _release_folders()
        return _end(128 + number, f"{_host()}{who}: {kept}") if is_first_here() else 128 + number
    except ProgramEnd as error:
        if error.is_local:
            return _end(error.status, f"{_host()}{error.label}: rank {_rank()}: {describe_error(error)}")
        return _end_together(error.status, f"{error.label}: {describe_error(error)}")
    except ValueError as error:
        return _end_together(USAGE_ERROR, f"error: {describe_error(error)}")
    except OSError as error:
        if advice is None:
            return _end_together(USAGE_ERROR, f"error: {describe_error(error)}")
        how = advice if standing() == AGAIN else f"{advice}; {standing()}"
        return _end(RUN_ERROR, f"{_host()}stopped: rank {_rank()}: {describe_error(error)}; {how}")
    except Exception as error:
        if lacking := describe_missing(error):
            return _end_together(USAGE_ERROR, f"error: {lacking}")
        if not (isinstance(error, (RuntimeError, MemoryError)) and is_out_of_memory(error)):
            return _end(RUN_ERROR, describe_crash(error))
        first = clean_line(str(error).partition("\n")[0] or type(error).__name__)
        return _end(RUN_ERROR, f"{_host()}stopped: rank {_rank()} is out of memory: {first}")
    finally:
        _release_folders()
        sys.stdout.flush()


def leave(status: int) -> NoReturn:
    """End the process with this status, within EXIT_SECONDS: threads of a broken process group may
    not want to end."""
    leave_quietly(ignore=status not in (FINISHED, USAGE_ERROR))
    if status not in (FINISHED, USAGE_ERROR):
        timer = threading.Timer(EXIT_SECONDS, os._exit, [status])
        timer.daemon = True
        timer.start()
    sys.exit(status)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error, or the outcome that a run recorded of it, says that the device or the host
    had no memory left."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return any(mark in text.lower() for mark in _OUT_OF_MEMORY)


def say_once(line: str) -> None:
    """Print a line on stderr, from the first rank of this host; that of another host than rank 0's
    begins with its name."""
    if is_first_here():
        print(f"{_host()}{line}", file=sys.stderr, flush=True)


def _end(status: int, line: str) -> int:
    print(line, file=sys.stderr, flush=True)
    return status


def _end_together(status: int, line: str) -> int:
    """As `_end` where all ranks do the same: the first of every host prints, and all leave the
    process group."""
    say_once(line)
    _leave_ranks()
    return status


def _rank() -> str:
    return clean_line(os.environ.get("RANK", "0"))


def _host() -> str:
    """The beginning of a line from a rank other than 0: its host."""
    return "" if _rank() == "0" else f"{clean_line(socket.gethostname())}: "


def _leave_ranks() -> None:
    """Leave the process group; without torch there is none."""
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _release_folders() -> None:
    """Let go of the folders that this process holds; it holds none where nobody has loaded the
    module."""
    if locks := sys.modules.get("mats_ds.core.storage.folder_lock"):
        locks.release_all_folders()
