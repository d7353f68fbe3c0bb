"""Which file goes into which shard, under which name; decided from paths and sizes before a byte is
written.

Files keep the order of the manifest, so that those of one class or one recording lie beside each
other. A shard is closed before the file that would make it larger than the wanted size.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mats_ds.core.format import format_bytes, format_count, shorten
from mats_ds.core.shards.members import member_name
from mats_ds.core.shards.table import normal_name
from mats_ds.core.storage.output_folder import check_output_folder
from mats_ds.core.terminal import why_not_utf8
from mats_ds.data.manifest import Manifest
from mats_ds.data.prepare.copying.copy_plan import is_inside
from mats_ds.data.prepare.file_identity import FileIdentity, identify
from mats_ds.data.video.containers import describe_read_error

COMMAND = "prepare pack"
JOURNAL = "packed.jsonl"
SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(|[KMGT])(I?)B?\s*", re.IGNORECASE)
POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
MIN_SHARD_BYTES = 1 << 16
BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
NUM_SHOWN = 10


@dataclass(frozen=True)
class PackedFile:
    """A source, its name in the shard, and its identity when the plan was made."""

    source: str
    name: str
    identity: FileIdentity


@dataclass(frozen=True)
class PlannedShard:
    """A shard and its files, in their order. num_bytes: of the archive, almost exactly."""

    target: str
    files: tuple[PackedFile, ...]
    num_bytes: int

    @property
    def digest(self) -> str:
        """SHA-256 of what the shard is made of: names, sources, sizes and times."""
        parts = [(file.name, file.source, file.identity.num_bytes, file.identity.modified_ns) for file in self.files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class PackPlan:
    """shards: of all files that are there. missing: path -> reason, of the others."""

    shards: tuple[PlannedShard, ...]
    missing: dict[str, str]

    @property
    def num_files(self) -> int:
        return sum(len(shard.files) for shard in self.shards)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as "1GB" (10^9), "512MiB" (512 * 2^20) or "300000000". Raises
    ValueError."""
    match = SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"--shard_size is a size like 1GB, 500MB or 512MiB, got {shorten(text, 100)!r}")
    num_bytes = int(float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2].upper()])
    if num_bytes < MIN_SHARD_BYTES:
        raise ValueError(f"--shard_size is at least {format_bytes(MIN_SHARD_BYTES)}, got {text}: a shard holds many files")
    return num_bytes


def plan_shards(manifest: Manifest, out: Path, *, shard_bytes: int, base: Path | None = None) -> PackPlan:
    """The shards of the manifest's files, each file once, named as below `base`.

    Without `base`, or where a file lies outside it, the files' common folder is the base. Raises
    ValueError where two files would get one name, and where `out` is among the sources.
    """
    sources = list(dict.fromkeys(os.path.abspath(path) for path in manifest.paths))
    plain = [member_name(source) for source in sources]
    start = os.path.abspath(base) if base else None
    if start is None or any(os.path.commonpath([start, path]) != start for path in plain):
        start = os.path.commonpath([os.path.dirname(path) for path in plain])
    files, missing, taken = [], {}, {}
    for source, path in zip(sources, plain, strict=True):
        name = os.path.relpath(path, start).replace(os.sep, "/")
        try:
            file = PackedFile(source, name, identify(source))
        except (OSError, ValueError) as error:
            missing[source] = describe_read_error(error)
            continue
        if problem := why_not_utf8(source) or why_no_member(source, name):
            missing[source] = problem
            continue
        other = taken.setdefault(name, source)
        if other is not source:
            raise ValueError(f"{other} and {source} would both be {name} in the shards: give --root a folder above both")
        files.append(file)
    names = {os.path.realpath(source) for source in sources}
    shards = _fill(files, out, shard_bytes)
    if any(os.path.realpath(shard.target) in names for shard in shards):
        raise ValueError(f"--out {out} is where the shards of the manifest lie: give a folder of its own")
    return PackPlan(tuple(shards), missing)


def why_no_member(source: str, name: str) -> str:
    """The reason why a file cannot be a member, or cannot be named in a manifest; "" where it
    can."""
    if os.path.isdir(source):
        return "a directory"
    if "\r" in name or name != name.strip() or normal_name(name) != name:
        return "its name begins or ends with a space, or holds a line break: rename it"
    return ""


def _fill(files: Sequence[PackedFile], out: Path, shard_bytes: int) -> list[PlannedShard]:
    groups: list[list[PackedFile]] = []
    filled = 0
    for file in files:
        need = member_bytes(file)
        if not groups or filled + need > shard_bytes:
            groups.append([])
            filled = RECORD
        groups[-1].append(file)
        filled += need
    folder = out.absolute()
    return [
        PlannedShard(str(folder / f"shard-{number:06d}.tar"), tuple(group), RECORD + sum(map(member_bytes, group)))
        for number, group in enumerate(groups)
    ]


def member_bytes(file: PackedFile) -> int:
    """Bytes of a member with its header, both in whole blocks; names that need a header of their
    own have two more."""
    is_plain = file.name.isascii() and len(file.name) <= 100 and file.identity.num_bytes < 1 << 33
    header = BLOCK if is_plain else 3 * BLOCK + len(file.name.encode()) // BLOCK * BLOCK
    return header + -(-file.identity.num_bytes // BLOCK) * BLOCK


def check_out_folder(out: Path, *, scanned: Path | None = None) -> None:
    """Raises ValueError where `out` holds something else, or lies in the folder whose videos are
    packed."""
    if scanned is not None and (out.resolve() == scanned.resolve() or is_inside(str(out), scanned)):
        raise ValueError(f"--out {out} lies inside {scanned}, which is packed: give a folder outside of it")
    check_output_folder(out, command=COMMAND)


def describe_plan(plan: PackPlan) -> list[str]:
    """Lines on what a run would write."""
    total_bytes = sum(shard.num_bytes for shard in plan.shards)
    lines = [f"{format_count(plan.num_files, 'file')}, {format_bytes(total_bytes)} in {format_count(len(plan.shards), 'shard')}"]
    lines += [
        f"  {shard.target}: {format_count(len(shard.files), 'file')}, {format_bytes(shard.num_bytes)}"
        for shard in plan.shards[:NUM_SHOWN]
    ]
    if len(plan.shards) > NUM_SHOWN:
        lines.append(f"  and {len(plan.shards) - NUM_SHOWN:,} more")
    return lines + [f"left out: {path}: {reason}" for path, reason in plan.missing.items()]
