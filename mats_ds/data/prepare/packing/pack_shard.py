"""ShardTask -> ShardOutcome: write one tar shard and its index, whole or not at all.

A plain POSIX archive (pax, ISO/IEEE 1003.1): every member begins on a multiple of 512 bytes and is
not compressed. Owner, mode and time are the same for all members, so that equal files give equal
bytes, whoever packs them and when.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mats_ds.core.shards.members import FileBytes, open_file
from mats_ds.core.shards.table import BLOCK, Member, dump_index, index_path
from mats_ds.data.prepare.packing.pack_plan import PackedFile, PlannedShard
from mats_ds.data.prepare.publishing import Publisher, publish
from mats_ds.data.video.containers import describe_read_error

FILE_MODE = 0o644


@dataclass(frozen=True)
class ShardTask:
    """`publisher`: which files that are there already may be replaced."""

    shard: PlannedShard
    publisher: Publisher


@dataclass(frozen=True)
class ShardOutcome:
    """What a shard became. num_bytes, modified_ns: of the archive. failed: source ->
    reason, of files that are not in it.

    problem: why there is no shard, "" where there is one.
    """

    target: str
    num_files: int = 0
    num_bytes: int = 0
    modified_ns: int = 0
    failed: dict[str, str] | None = None
    problem: str = ""


class SourceFailed(Exception):
    """A file that cannot be read as it was planned; the message says why."""


class _Content:
    """A source as tarfile reads it: hashed on the way, and its faults kept apart from those
    of the archive."""

    def __init__(self, file: FileBytes, on_heartbeat: Callable[[], None]) -> None:
        self._file, self._on_heartbeat = file, on_heartbeat
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise SourceFailed(describe_read_error(error)) from None
        if len(data) < size:
            raise SourceFailed("it became shorter while it was packed")
        self.digest.update(data)
        self._on_heartbeat()
        return data


def pack_one(task: ShardTask, *, on_heartbeat: Callable[[], None] = lambda: None) -> ShardOutcome:
    """Do one task. Faults of single files are part of the outcome; `on_heartbeat` is called as
    bytes come."""
    shard, publisher = task.shard, task.publisher
    target = Path(shard.target)
    index = Path(index_path(target))
    try:
        publisher.check_target(target)
        publisher.check_target(index)
        part, index_part = publisher.open_part(target.parent, "tar"), publisher.open_part(target.parent, "index")
        try:
            members, failed = write_shard(part, shard.files, on_heartbeat)
            if not members:
                return ShardOutcome(shard.target, failed=failed)
            num_bytes = os.path.getsize(part)
            index_part.write_text(dump_index(members, num_bytes=num_bytes), encoding="utf-8")
            for made, name in ((part, target), (index_part, index)):
                publisher.note(made, name)
            publish(part, target)
            publish(index_part, index)
        finally:
            for left in (part, index_part):
                with contextlib.suppress(FileNotFoundError):
                    left.unlink()
    except OSError as error:  # no room, no permission
        return ShardOutcome(shard.target, problem=f"cannot be written: {error}")
    return ShardOutcome(shard.target, len(members), num_bytes, os.stat(target).st_mtime_ns, failed)


def write_shard(
    path: Path, files: tuple[PackedFile, ...], on_heartbeat: Callable[[], None] = lambda: None
) -> tuple[list[Member], dict[str, str]]:
    """Write the archive of these files. Returns its members and source -> reason of what is not in
    it. Raises OSError where it cannot be written."""
    members, failed = [], {}
    with path.open("w+b") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            begin = archive.offset
            try:
                members.append(_add(archive, stream, file, on_heartbeat))
            except SourceFailed as fault:
                failed[file.source] = str(fault)
                stream.seek(begin)
                stream.truncate()
                archive.offset = begin
            archive.members.clear()
    return members, failed


def _add(archive: tarfile.TarFile, stream, file: PackedFile, on_heartbeat: Callable[[], None]) -> Member:
    size = file.identity.num_bytes
    info = tarfile.TarInfo(file.name)
    info.size, info.mode = size, FILE_MODE  # all else of it is 0 or empty
    try:
        source = open_file(file.source)
    except (OSError, ValueError) as error:
        raise SourceFailed(describe_read_error(error)) from None
    with source:
        if source.size != size:
            raise SourceFailed(f"it has {source.size:,} bytes and had {size:,} when the shards were planned: start again")
        content = _Content(source, on_heartbeat)
        archive.addfile(info, content)
    offset = archive.offset - -(-size // BLOCK) * BLOCK
    stream.flush()
    header = os.pread(stream.fileno(), BLOCK, offset - BLOCK)
    return Member(file.name, offset, size, zlib.crc32(header), content.digest.hexdigest())


def is_intact(path: str, num_bytes: int, modified_ns: int) -> bool:
    """Whether a shard is there as it was written: by size and time."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (num_bytes, modified_ns) and os.path.isfile(index_path(path))
