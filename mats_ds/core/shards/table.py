"""A tar archive -> the offset and size of each member: from the index file beside it, or else from
the archive's own headers.

SHARD.index is text: one JSON object that names the format and the shard's size, then one JSON list
a member, `[name, offset, size, sha256, header]`; `header` is the CRC-32 of the 512 bytes before the
member's first one, which are its header. A member's header is compared before its first reading, so
that an archive that was replaced is noticed even where its size is the same. An index may be
copied, moved or deleted with its shard: without it the headers are walked once for each process, a
read of 512 bytes a member.

Only regular files count. Links, devices, sparse files, absolute names and names with `..` are not
members here; of two members with one name the later one counts, as for `tar x`.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mats_ds.core.storage.documents import parse_json

INDEX_SUFFIX = ".index"
FORMAT, FORMAT_VERSION = "mats_ds tar index", 1
BLOCK = tarfile.BLOCKSIZE
# Long names and the like: far below this; a header that claims more would be read into memory.
MAX_HEADER_BYTES = 1 << 20
MAX_INDEX_BYTES = 1 << 30
MAX_NAME_CHARACTERS = 1 << 16
MAX_OTHERS = 1 << 12
NOT_COMPRESSED = "its files cannot be read by offset; unpack it, and let the command `prepare pack` write the shards"


class BadShard(ValueError):
    """An archive that cannot be read as an uncompressed tar; the message says why, without its
    path."""


@dataclass(frozen=True)
class Member:
    """A regular file in an archive. offset: of its first byte; header: CRC-32 of its last header
    block; sha256: of its content, "" where it is not known."""

    name: str
    offset: int
    size: int
    header: int
    sha256: str = ""


@dataclass(frozen=True, eq=False)
class MemberTable:
    """M members, by ascending digest of their names: 28 bytes a member instead of its name.

    digest_M uint64, offset_M, size_M int64, header_M uint32. from_index: not from the headers, so
    that a difference makes the index wrong and not the archive. others: name -> kind of what is in
    the archive and is no member.
    """

    digest_M: np.ndarray
    offset_M: np.ndarray
    size_M: np.ndarray
    header_M: np.ndarray
    from_index: bool
    is_cut_off: bool = False
    others: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Member | None:
        """The member of this name."""
        digest = digest_name(name)
        row = int(np.searchsorted(self.digest_M, digest))
        if row == len(self.digest_M) or self.digest_M[row] != digest:
            return None
        return Member(name, int(self.offset_M[row]), int(self.size_M[row]), int(self.header_M[row]))

    def first(self) -> Member | None:
        """Some member, without its name; None where there is none."""
        return Member("", int(self.offset_M[0]), int(self.size_M[0]), int(self.header_M[0])) if len(self.offset_M) else None


def digest_name(name: str) -> np.uint64:
    """64 bits of a name's BLAKE2; two of a million members share them once in 10^7 shards."""
    content = name.encode("utf-8", "surrogateescape")
    return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))


def make_table(
    members: Iterable[Member], *, from_index: bool, is_cut_off: bool = False, others: Mapping[str, str] | None = None
) -> MemberTable:
    """The table of these members; of two with one name, the later one."""
    rows = {int(digest_name(member.name)): (member.offset, member.size, member.header) for member in members}
    digest_M = np.fromiter(rows, np.uint64, len(rows))
    columns = np.array(list(rows.values()), np.int64).reshape(-1, 3)
    order = np.argsort(digest_M)
    offset_M, size_M, header_M = (column[order] for column in columns.T)
    return MemberTable(digest_M[order], offset_M, size_M, header_M.astype(np.uint32), from_index, is_cut_off, others or {})


def index_path(shard: str | os.PathLike[str]) -> str:
    """The index file that belongs to a shard."""
    return os.fspath(shard) + INDEX_SUFFIX


def dump_index(members: Iterable[Member], *, num_bytes: int) -> str:
    """The text of the index of a shard of `num_bytes`."""
    lines = [json.dumps({"format": FORMAT, "version": FORMAT_VERSION, "shard_bytes": num_bytes})]
    lines += [json.dumps([member.name, member.offset, member.size, member.sha256, member.header]) for member in members]
    return "\n".join(lines) + "\n"


def read_index(shard: str | os.PathLike[str], *, num_bytes: int) -> list[Member] | None:
    """The members that the index beside a shard of `num_bytes` lists; None without an index.

    Raises BadShard for an index of another shard, and for what is none.
    """
    path = index_path(shard)
    try:
        if os.path.getsize(path) > MAX_INDEX_BYTES:
            raise BadShard(f"{path} is longer than {MAX_INDEX_BYTES:,} bytes")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            first, *lines = file.read().split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadShard(f"{path} cannot be read ({error.strerror})") from None
    try:
        head = parse_json(first)
        if head["format"] != FORMAT or head["version"] != FORMAT_VERSION:
            raise BadShard(f"{path} is no index of version {FORMAT_VERSION}")
        if head["shard_bytes"] != num_bytes:
            raise BadShard(f"{path} is of a shard of {head['shard_bytes']:,} bytes, this one has {num_bytes:,}")
        members = [_read_line(line, num_bytes) for line in lines if line]
    except (ValueError, KeyError, TypeError) as error:
        raise error if isinstance(error, BadShard) else BadShard(f"{path} is torn or no index") from None
    return members


def _read_line(line: str, num_bytes: int) -> Member:
    name, offset, size, sha256, header = parse_json(line)
    member = Member(str(name), int(offset), int(size), int(header), str(sha256))
    if not (BLOCK <= member.offset <= member.offset + member.size <= num_bytes and 0 <= member.header < 1 << 32):
        raise ValueError(f"{name} lies outside of the shard")
    return member


def walk_headers(descriptor: int, *, num_bytes: int, others: dict[str, str] | None = None) -> tuple[list[Member], bool]:
    """The members by an archive's own headers, in its order, and whether it breaks off.

    A member that reaches beyond the end of the file is among them. `others` gains the name and the
    kind of the first MAX_OTHERS entries that are no members. Raises BadShard.
    """
    members: list[Member] = []
    try:
        for info in _infos(_HeaderReader(descriptor, num_bytes)):
            name = normal_name(info.name)
            if info.isreg() and not info.issparse() and name is not None:
                header = os.pread(descriptor, BLOCK, info.offset_data - BLOCK)
                members.append(Member(name, info.offset_data, info.size, zlib.crc32(header)))
            elif others is not None and name is not None and len(others) < MAX_OTHERS:
                others[name] = _kind(info)
    except (tarfile.TarError, OverflowError) as error:
        if not members:
            raise BadShard(_why_no_tar(os.pread(descriptor, BLOCK, 0), error)) from None
        return members, True
    return members, False


def normal_name(name: str) -> str | None:
    """A member's name without `./` before it; None for one that leads out of the archive's
    folder."""
    plain = posixpath.normpath(name)
    is_inside = not plain.startswith(("/", "../")) and plain not in ("..", ".")
    return plain if is_inside and "\0" not in plain and len(plain) <= MAX_NAME_CHARACTERS else None


def _kind(info: tarfile.TarInfo) -> str:
    if info.issparse():
        return "a sparse file"
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}"
    return "a folder" if info.isdir() else "a device or pipe"


def _infos(reader: _HeaderReader) -> Iterator[tarfile.TarInfo]:
    end = -1
    with tarfile.open(fileobj=reader, mode="r:", errors="surrogateescape", encoding="utf-8") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # it would keep all of them
            if info.size < 0 or info.offset_data <= end:  # a header that leads backwards has no end
                raise tarfile.ReadError("a header leads backwards")
            end = info.offset_data
            yield info


class _HeaderReader:
    """The part of a file object that tarfile needs to walk headers; it never reads a content."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self._descriptor, self._num_bytes, self._position = descriptor, num_bytes, 0
        self._reads_left = 1024 + 8 * (num_bytes // BLOCK)

    def read(self, size: int) -> bytes:
        self._reads_left -= 1
        if not 0 <= size <= MAX_HEADER_BYTES or self._reads_left < 0:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = os.pread(self._descriptor, size, self._position)
        self._position += len(data)
        return data

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if position < 0 or whence != os.SEEK_SET:
            raise tarfile.ReadError("a header leads backwards")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def _why_no_tar(head: bytes, error: Exception) -> str:
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0" or head[:4] == b"\x28\xb5\x2f\xfd":
        return f"it is compressed: {NOT_COMPRESSED}"
    return f"no tar archive, or its beginning is damaged ({str(error) or type(error).__name__})"
