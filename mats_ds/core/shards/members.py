"""A path -> the bytes of the file that it names: an ordinary file, or `shard.tar#member`, a member
of an uncompressed tar archive.

A path is a member's only if it has `.tar#` in it and no ordinary file has that very name. The part
up to the first such `#` that follows an existing archive is the shard; all behind it is the
member's name, which may hold further `#`.

All reads are `pread`, so threads share a descriptor.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass

import numpy as np

from mats_ds.core.shards.open_shards import Descriptor, NoMember, OpenShards
from mats_ds.core.shards.table import NOT_COMPRESSED, BadShard, Member, read_index, walk_headers

MAX_SPLITS = 4096  # paths of members that are remembered
SHARD_END = re.compile(r"\.tar#", re.IGNORECASE)
COMPRESSED_END = re.compile(r"\.(?:tar\.\w{1,4}|tgz|tbz2|txz)#", re.IGNORECASE)


@dataclass(frozen=True)
class FileStatus:
    """num_bytes: of the file or member. modified_ns, changed_ns: of the file or shard. place: which
    bytes of which file: device, inode, offset."""

    num_bytes: int
    modified_ns: int
    changed_ns: int
    place: tuple[int, int, int]
    is_regular: bool = True


class FileBytes:
    """An open file, or a member of a shard as if it were one: `pread`, and `read`, `seek`, `tell`
    as FFmpeg needs them.

    name: of the file or the member, whose extension FFmpeg looks at.
    """

    def __init__(self, name: str, opened: Descriptor, offset: int, size: int) -> None:
        self.name, self.size = name, size
        self._opened, self._offset, self._position = opened, offset, 0

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on."""
        return os.pread(self._opened.number, max(0, min(size, self.size - offset)), self._offset + offset)

    def readinto(self, buffer: np.ndarray) -> int:
        """Fill an array of bytes from here on; how many came."""
        view = memoryview(buffer)[: max(0, self.size - self._position)]
        count = 0
        while count < len(view) and (more := os.preadv(self._opened.number, [view[count:]], self._offset + self._position)):
            count, self._position = count + more, self._position + more
        return count

    def read(self, size: int = -1) -> bytes:
        data = self.pread(self.size if size < 0 else size, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Let go of the file; a shard's descriptor stays for the next member."""
        self._opened = None

    def __enter__(self) -> FileBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split_member(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """(shard, member) of a path that names a member, None of any other. Ordinary paths cost no
    system call; whether a path is a member's is asked once in a while."""
    path = os.fspath(path)
    if not isinstance(path, str) or not SHARD_END.search(path):
        return None
    if (known := _SPLITS.get(path)) is not None:
        return known
    if _is_there(path):
        return None
    ends = [match.end() for match in SHARD_END.finditer(path)]
    end = next((end for end in ends if os.path.isfile(path[: end - 1])), None)
    split = path[: (end or ends[0]) - 1], path[end or ends[0] :]
    if end is not None:  # asked several times for each clip; on a network disk each answer is a wait
        if len(_SPLITS) >= MAX_SPLITS:
            _SPLITS.clear()
        _SPLITS[path] = split
    return split


def member_name(path: str | os.PathLike[str]) -> str:
    """The path in which a member's shard is a folder, for names of what is made from it; any other
    as it is."""
    split = split_member(path)
    return os.fspath(path) if split is None else os.path.join(os.path.splitext(split[0])[0], split[1])


def stat_file(path: str | os.PathLike[str]) -> FileStatus:
    """Size and times. Raises OSError where there is none, and ValueError for a NUL in the path."""
    split = split_member(path)
    if split is None:
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if COMPRESSED_END.search(os.fspath(path)):
                raise NoMember(f"a member of a compressed archive: {NOT_COMPRESSED}", os.fspath(path)) from None
            raise
        place = status.st_dev, status.st_ino, 0
        return FileStatus(status.st_size, status.st_mtime_ns, status.st_ctime_ns, place, stat.S_ISREG(status.st_mode))
    shard, member = _SHARDS.find(*split)
    device, inode, _, modified_ns, changed_ns = shard.identity
    return FileStatus(member.size, modified_ns, changed_ns, (device, inode, member.offset))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a regular file or member."""
    if split_member(path) is None:
        return os.path.isfile(path)
    return file_exists(path)


def file_exists(path: str | os.PathLike[str]) -> bool:
    """Whether the path leads to anything: a file, a folder, a member."""
    if split_member(path) is None:
        return os.path.exists(path)
    try:
        stat_file(path)
    except (OSError, ValueError):
        return False
    return True


def why_missing(path: str | os.PathLike[str]) -> str:
    """Why a member of a shard cannot be read, naming the shard; "" for what is there, and for
    paths of ordinary files."""
    try:
        stat_file(path)
    except NoMember as error:
        return error.strerror
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error) if split_member(path) is not None else ""
    return ""


def open_file(path: str | os.PathLike[str]) -> FileBytes:
    """The bytes of a file or member. Raises OSError, and ValueError for a NUL in the path."""
    split = split_member(path)
    if split is None:
        opened = Descriptor(os.open(path, os.O_RDONLY))
        return FileBytes(os.fspath(path), opened, 0, os.fstat(opened.number).st_size)
    shard, member = _SHARDS.find(*split)
    return FileBytes(member.name, shard.opened, member.offset, member.size)


def list_members(shard: str | os.PathLike[str]) -> list[Member]:
    """The members of a shard in its order, those of one name once. Raises OSError and BadShard."""
    opened = Descriptor(os.open(shard, os.O_RDONLY))
    num_bytes = os.fstat(opened.number).st_size
    try:
        members = read_index(shard, num_bytes=num_bytes)
    except BadShard:
        members = None
    if members is None:
        members, _ = walk_headers(opened.number, num_bytes=num_bytes)
    return list({member.name: member for member in members}.values())


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in it
        return False


_SHARDS = OpenShards()
_SPLITS: dict[str, tuple[str, str]] = {}
