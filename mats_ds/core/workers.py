"""Worker processes of this project: how a Python without anything of its parent's main module is
started, how it ends with its parent, and how the end of one is told in words.

Two kinds use it: `prepare.py`'s pool (data/prepare/worker_pool.py), whose workers are fresh
interpreters, and the processes that read clips for training (data/loading/readers.py), which are
forked from one that has imported what they need.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
MAX_DEATHS_AT_START = 3  # in a row
MAX_WORKERS = 16  # of one rank, where nobody says how many
# Ctrl-C, a scheduler's notice and the end of a terminal reach all processes of a run: the parent
# decides what follows, and its workers serve it until then.
PARENT_DECIDES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


class WorkersFailed(RuntimeError):
    """Workers end before they can take a task."""


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Cores that this process may use, shared with the other ranks on this machine."""
    # torchrun gives the number of ranks on this machine by the first name, DeepSpeed's launcher by
    # the second.
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return max(1, min(MAX_WORKERS, count_cores() // max(1, num_ranks)))


def python_command(code: str, *arguments: str) -> list[str]:
    """The command of an interpreter that runs `code`, which is to begin with
    `sys.path[:] = sys.argv[1 + NUMBER_OF_ARGUMENTS:]`.

    So it finds every package where this process does, in a checkout, a wheel and any folder, and
    nothing that happens to lie in the current one.
    """
    paths = [path for path in sys.path if isinstance(path, str) and path]
    if ROOT not in paths:  # found through "", the folder of a notebook, or by an editable install
        paths.insert(0, ROOT)
    flags = ["-I"] if sys.flags.isolated else ["-E"] if sys.flags.ignore_environment else []
    return [sys.executable, *flags, "-c", code, *arguments, *paths]


def ignore_signals() -> None:
    """Leave it to the parent what signals to all processes mean."""
    for name in PARENT_DECIDES:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def end_with_parent(parent: int) -> None:
    """End this process within a second of its parent's end; for a thread."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def describe_death(status: int | None, ended: str) -> str:
    """What the death of a worker means for the file that it had. `ended`: how it ended, in
    words."""
    if status == -signal.SIGKILL:
        return f"its worker process was killed ({ended})"
    return f"{'its worker process ended' if status is None or status >= 0 else 'the decoder crashed on it'} ({ended})"


def describe_status(status: int | None) -> str:
    """An exit status in words; below 0 it is the signal that ended the process."""
    if status is None:
        return "its exit status is not known"
    if status >= 0:
        return f"exit status {status}"
    if status == -signal.SIGKILL:
        return "SIGKILL, perhaps out of memory"
    return f"signal {-status}" + (f", {signal.Signals(-status).name}" if -status in iter(signal.Signals) else "")
