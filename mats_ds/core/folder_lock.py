"""One writer in one folder: whoever holds a folder has it, and a second process is refused with who holds it.

The hold is a lock of the operating system on a file in the folder (fcntl.lockf). It belongs to the process, not to its children,
and ends with it however that ends: what a crash leaves behind blocks nobody.
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

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_held: dict[str, IO[str]] = {}  # folder -> the locked file, open as long as this process holds it


def hold_folder(folder: Path, *, command: str) -> None:
    """Keep other processes out of `folder`, which exists, until this one ends or calls `release_folder`.

    Holding it a second time changes nothing.

    command: what this process does there, as another one is told, e.g. "prepare transcode".
    Raises ValueError that names command, host, process and time of the holder where another process has it.
    """
    name = os.path.realpath(folder)
    if name in _held:
        return
    path = folder / LOCK_FILE
    file = _open_locked(path)
    file.truncate(0)
    file.write(f"{command} on host {socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    _held[name] = file
    atexit.register(_release, name, path, os.getpid())


def release_folder(folder: Path) -> None:
    """Let other processes into a folder again; nothing where it is not held."""
    _release(os.path.realpath(folder), folder / LOCK_FILE, os.getpid())


def _release(name: str, path: Path, process: int) -> None:
    if os.getpid() != process or name not in _held:  # in a child, or released before
        return
    path.unlink(missing_ok=True)
    _held.pop(name).close()


def _open_locked(path: Path) -> IO[str]:
    """The file, locked. Raises ValueError where another process has it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "r+", encoding="utf-8")
        if not _lock(file):
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(f"{path.parent} is in use by {holder}: stop that one first, wait for it, or choose another --out")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder ended and took the name away in between


def _lock(file: IO[str]) -> bool:
    """Whether this process has the file now. A filesystem without locks lets everybody in, with a word."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
        logger.warning("%s: this filesystem has no locks (%s): start no second program in this folder", file.name, error.strerror)
    return True
