"""One writer in one folder: whoever holds a folder has it, and a second process is refused with who
holds it.

The hold is a lock of the operating system on the file `.lock` in the folder (fcntl.lockf, which NFS
passes on to other hosts). It belongs to the process, not to its children, and ends with it however
that ends: what a crash leaves behind blocks nobody. Nothing else may open that file in the process
that holds it: closing any of its descriptors gives the lock up.

The processes of one run hold a byte each, its first one byte 0. A folder is only given to another
run when all of them are gone: those that outlive their first one for some seconds would write among
the other's files.

Where a filesystem has no locks, the content of the file alone counts (lock_file.py).
`lock_until_closed` is the simpler lock of one file that is open.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mats_ds.core.processes import identify_process
from mats_ds.core.storage.files import refuse_wrong_kind
from mats_ds.core.storage.lock_file import (
    CONTENT_BYTES,
    WHAT_TO_DO,
    claim_by_content,
    describe_holder,
    make_holder,
    parse_holder,
    read_holder,
    write_holder,
)

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
LEADER, EVERYBODY = (1, 0), (0, 0)  # length and start of what is locked; length 0 is "to the end"
# how long another process may take between letting go of a lock and removing the file
RELEASE_SECONDS = 0.5
# ranks that notice the death of another one end within 5 s, or 25 s after SIGTERM
RANKS_END_SECONDS = 20.0
POLL_SECONDS = 0.1


@dataclass
class _Hold:
    """A lock of this process. `has_locks`: the filesystem keeps it; else the file's content does.
    `before`, `after`: called around the release."""

    folder: os.stat_result
    path: Path
    descriptor: int
    process: int
    has_locks: bool
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None


_holds: list[_Hold] = []


def hold_folder(folder: Path, *, command: str) -> None:
    """Keep other processes out of `folder`, which exists, until this one ends or calls
    `release_folder`.

    Holding it a second time changes nothing. Waits RANKS_END_SECONDS where the first process of a
    run is gone and others of that run are not yet.

    command: what this process does there, named to a process that is refused, e.g. "prepare
    transcode".
    Raises ValueError that names command, host, process and time of the holder where another process
    has it, and for a `.lock` that no program of ours wrote; OSError where the folder cannot be
    written.
    """
    if _find_hold(folder) is not None:
        return
    path = folder / LOCK_FILE
    descriptor, has_locks = _take(path)
    holder = make_holder(command)
    try:
        if has_locks:
            write_holder(descriptor, holder)
        else:
            logger.warning("%s: this filesystem has no locks, the file alone keeps other programs out of the folder", path)
            claim_by_content(path, descriptor, holder)
    except BaseException:
        os.close(descriptor)
        raise
    _keep(folder, path, descriptor, has_locks=has_locks)


def admit_ranks(folder: Path) -> None:
    """Called by the first process of a run, which holds the folder: the others may now call
    `join_hold`."""
    hold = _find_hold(folder)
    assert hold is not None, "hold_folder comes first"
    if hold.has_locks:
        fcntl.lockf(hold.descriptor, fcntl.LOCK_UN, 0, 1)


def join_hold(folder: Path, *, rank: int) -> None:
    """Hold the folder together with the first process of the run; for `rank` 1 and up, after
    `admit_ranks`.

    Where that is not possible (a filesystem without locks) nothing is held, and nothing logged: the
    first process has logged it.
    """
    if fcntl is None or _find_hold(folder) is not None:
        return
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
    except OSError:
        os.close(descriptor)
        return
    _keep(folder, path, descriptor, has_locks=True)


def call_on_release(folder: Path, *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None) -> None:
    """Have these called when this process lets go of the folder, before and after its file goes, in
    place of what was given earlier; nothing where it is not held."""
    if (hold := _find_hold(folder)) is not None:
        hold.before, hold.after = before, after


def release_folder(folder: Path) -> None:
    """Let other processes into a folder again; nothing where it is not held."""
    hold = _find_hold(folder)
    if hold is not None:
        _release(hold)


def release_all_folders() -> None:
    """Let other processes into every folder that this one holds."""
    for hold in list(_holds):
        _release(hold)


def find_held_folders() -> list[Path]:
    """The folders that this process holds, in the order in which it took them; as relative paths
    where they lie below the current folder."""
    held = (hold.path.parent for hold in _holds if hold.process == os.getpid())
    return [path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path for path in held]


def lock_until_closed(file: IO[Any], *, waits: bool = False) -> bool:
    """Keep out other processes that call this on the same file, until it is closed; False where one
    of them has it.

    waits: for that one to end, instead. Where a system or filesystem has no locks, nobody is kept
    out.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _find_hold(folder: Path) -> _Hold | None:
    """By the folder itself and not by its name: a second descriptor of the file, opened by another
    name, would end the lock."""
    # a forked child has a copy of the list, and no lock
    mine = [hold for hold in _holds if hold.process == os.getpid()]
    try:
        status = folder.stat()
    except OSError:
        return next((hold for hold in mine if str(hold.path.parent) == os.path.abspath(folder)), None)
    return next((hold for hold in mine if os.path.samestat(hold.folder, status)), None)


def _keep(folder: Path, path: Path, descriptor: int, *, has_locks: bool) -> None:
    hold = _Hold(folder.stat(), Path(os.path.abspath(path)), descriptor, os.getpid(), has_locks)
    _holds.append(hold)
    atexit.register(_release, hold)


def _release(hold: _Hold) -> None:
    """The last process of a run takes the file away; where the folder is gone or another one, there
    is nothing to do."""
    if hold.process != os.getpid() or hold not in _holds:  # in a child, or released before
        return
    if hold.before is not None:
        hold.before()
    _holds.remove(hold)
    with contextlib.suppress(OSError):
        is_last = True
        if hold.has_locks:
            fcntl.lockf(hold.descriptor, fcntl.LOCK_UN)
            is_last = _lock(hold.descriptor, EVERYBODY) is True
        else:
            holder = read_holder(hold.path)
            is_last = holder is not None and holder.identity == identify_process()
        if is_last and _is_at(hold.path, hold.descriptor):
            hold.path.unlink()
    os.close(hold.descriptor)
    if hold.after is not None:
        hold.after()


def _take(path: Path) -> tuple[int, bool]:
    """The file, all of it locked, and whether the filesystem has locks. Raises ValueError where
    another process has it."""
    began = time.monotonic()
    while True:
        descriptor = _open(path)
        try:
            got = _lock(descriptor, LEADER)
            if got is None:
                return descriptor, False
            is_all_mine = got and _wait_for_ranks(path, descriptor, until=began + RANKS_END_SECONDS)
            if is_all_mine and _is_at(path, descriptor):
                return descriptor, True
            if got and not is_all_mine:
                raise ValueError(
                    f"{path.parent} is still in use by ranks of {describe_holder(path)}: its first one has ended, and they "
                    "have not: wait until they have, end them, or choose another --out"
                )
            if not got and time.monotonic() - began > RELEASE_SECONDS:
                raise ValueError(f"{path.parent} is in use by {describe_holder(path)}: {WHAT_TO_DO}")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder is about to end, or took the name away in between
        if not got:
            time.sleep(POLL_SECONDS)


def _wait_for_ranks(path: Path, descriptor: int, *, until: float) -> bool:
    """Whether the rest of the file is ours too, in time: the ranks of a run that lost its first one
    notice it and end."""
    for number in itertools.count():
        if _lock(descriptor, EVERYBODY):
            return True
        if time.monotonic() > until:
            return False
        if number == 0:
            logger.warning("%s: waiting until the other ranks of the run that ended here are gone too", path.parent)
        time.sleep(POLL_SECONDS)
    raise AssertionError


def _open(path: Path) -> int:
    """Raises ValueError for a file of another program: it would be overwritten."""
    refuse_wrong_kind(path)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if os.fstat(descriptor).st_size and parse_holder(os.pread(descriptor, CONTENT_BYTES, 0)) is None:
        os.close(descriptor)
        raise ValueError(f"{path} is of another program: choose another --out, or remove it if nothing needs it")
    return descriptor


def _lock(descriptor: int, part: tuple[int, int]) -> bool | None:
    """Whether this process has that part of the file now; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *part)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the file that is open here is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        return False
