"""Shards that a process reads from: opened once, their tables kept, found by path and member.

At most MAX_OPEN_SHARDS stay open, the least recently used closed first once nobody reads from it; a
shard whose size, time or inode has changed is opened anew.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mats_ds.core.shards.table import (
    BLOCK,
    BadShard,
    Member,
    MemberTable,
    index_path,
    make_table,
    normal_name,
    read_index,
    walk_headers,
)

logger = logging.getLogger("mats_ds")

MAX_OPEN_SHARDS = 64
MAX_WARNINGS = 1000  # of shards that were warned of, each once


class NoMember(OSError):
    """A member that is not in its shard or cannot be read; `strerror` says why and names the
    shard."""

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(errno.ENOENT, reason, path)


class Descriptor:
    """A file descriptor that is closed when the last one that refers to it is gone."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True, eq=False)
class Shard:
    """An open shard. identity: device, inode, size, times of modification and change. checked:
    offsets of members whose headers are as the table says. is_replaced: whether the index beside it
    is of another shard."""

    opened: Descriptor
    identity: tuple[int, int, int, int, int]
    table: MemberTable
    checked: set[int]
    is_replaced: bool


class OpenShards:
    """The shards that this process reads from, at most MAX_OPEN_SHARDS open; safe among threads."""

    def __init__(self) -> None:
        self._shards: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def find(self, path: str, name: str) -> tuple[Shard, Member]:
        """A shard and its member. Raises NoMember, and FileNotFoundError where there is no
        shard."""
        shown = os.path.basename(path)
        try:
            identity = _identity(os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, f"its shard {shown} is not there", f"{path}#{name}") from None
        with self._lock:
            shard = self._shards.get(path)
            if shard is None or shard.identity != identity:
                shard = self._shards[path] = _open_shard(path, member=name, warn=self._warn)
            self._shards.move_to_end(path)
            while len(self._shards) > MAX_OPEN_SHARDS:
                self._shards.popitem(last=False)
            member = _find(shard, name)
            # a name that the index has not is probed with one that it has
            if shard.table.from_index and not _is_at(shard, member or shard.table.first()):
                self._warn(f"{index_path(path)} does not fit its shard, whose headers are read instead")
                shard = self._shards[path] = _open_shard(path, member=name, warn=self._warn, by_index=False)
                member = _find(shard, name)
        if member is None:
            raise NoMember(_why_no_member(shard, name, shown), f"{path}#{name}")
        if member.offset + member.size > shard.identity[2]:
            raise NoMember(f"the shard {shown} breaks off in the middle of this file: copy the shard again", f"{path}#{name}")
        return shard, member

    def _warn(self, text: str) -> None:
        """Log it once: a shard that cannot be opened is tried for each of its members."""
        if text not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(text)
            logger.warning("%s", text)


def _find(shard: Shard, name: str) -> Member | None:
    """The member of this name, which may be as `tar tf` prints it, with `./` before it."""
    return shard.table.find(name) or ((plain := normal_name(name)) and shard.table.find(plain)) or None


def _why_no_member(shard: Shard, name: str, shown: str) -> str:
    if kind := shard.table.others.get(normal_name(name) or name):
        return f"{name!r} in the shard {shown} is {kind}, no regular file"
    more = "; the shard breaks off: copy it again" if shard.table.is_cut_off else ""
    if shard.is_replaced:
        more += "; the index beside it is of another shard: one of them was replaced after packing"
    return f"no regular file {name!r} in the shard {shown}{more}"


def _open_shard(path: str, *, member: str, warn: Callable[[str], None], by_index: bool = True) -> Shard:
    """Open it. Raises NoMember, with the path of `member`, for what is no archive."""
    shown = os.path.basename(path)
    opened = Descriptor(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
    status = os.fstat(opened.number)
    if not stat.S_ISREG(status.st_mode):
        raise NoMember(f"its shard {shown} is not a regular file", f"{path}#{member}")
    members = None
    if by_index:
        try:
            members = read_index(path, num_bytes=status.st_size)
        except BadShard as bad:
            warn(f"{bad}: the headers of the shard are read instead")
    is_cut_off, from_index, others = False, members is not None, {}
    if members is None:
        try:
            members, is_cut_off = walk_headers(opened.number, num_bytes=status.st_size, others=others)
        except BadShard as bad:
            raise NoMember(f"its shard {shown}: {bad}", f"{path}#{member}") from None
    table = make_table(members, from_index=from_index, is_cut_off=is_cut_off, others=others)
    return Shard(opened, _identity(status), table, set(), is_replaced=not by_index)


def _is_at(shard: Shard, member: Member | None) -> bool:
    """Whether the header before a member is the one that the index was made from; True of none."""
    if member is not None and member.offset not in shard.checked:
        if zlib.crc32(os.pread(shard.opened.number, BLOCK, member.offset - BLOCK)) != member.header:
            return False
        shard.checked.add(member.offset)
    return True


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
