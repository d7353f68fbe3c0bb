"""One run in one new folder: whoever claims a folder that holds no run yet has it, and a second one is refused.

The claim is a lock of the operating system on the file `.claim` (fcntl.lockf). It belongs to the process, not to its children,
and ends with it however that ends: what a crash leaves behind blocks nobody. Once the folder holds run.json, that file says that
it is taken.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None

logger = logging.getLogger(__name__)

CLAIM = ".claim"
RUN_FILE = "run.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_held: dict[str, IO[str]] = {}  # folder -> the locked file, open as long as this process lives


def claim_new_run(folder: Path, *, resume: bool) -> None:
    """Take the folder, unless it holds a run already that is to be gone on with.

    Raises ValueError where it holds a run that is not, or where another process is starting one in it.
    """
    name = os.path.realpath(folder)
    if not (folder / RUN_FILE).exists() and name not in _held:
        file = _open_locked(folder / CLAIM)
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        _held[name] = file
        atexit.register(_clean_up, folder / CLAIM, os.getpid())
    if not resume and (folder / RUN_FILE).exists():  # asked with the lock held: the other may just have written it
        raise ValueError(f"{folder} holds a run already: add --resume auto to go on with it, or choose another --out")


def _open_locked(path: Path) -> IO[str]:
    """The file, locked. Raises ValueError where another process has it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(f"another run is starting in {path.parent} ({holder}): choose another --out, or stop that one first")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder ended and took the name away in between


def _clean_up(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a child
        path.unlink(missing_ok=True)


def _lock(file: IO[str]) -> bool:
    """Whether this process has the file now. A filesystem without locks lets everybody in, with a word."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
        logger.warning("%s: this filesystem has no locks (%s): start no second run in this folder", file.name, error.strerror)
    return True
