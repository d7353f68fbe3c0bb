"""Two manifests -> the videos that are in both: what was trained on is no test.

A video is its file, however it is spelled: relative or absolute, by a link, by a hard link, or as a
copy with the same bytes. Rows of one file with times (`start`, `end`) that do not meet are other
clips; they are kept apart, since neighbouring parts of one recording may still look alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mats_ds.core.format import format_count
from mats_ds.core.shards.members import open_file, stat_file
from mats_ds.core.text import Lines
from mats_ds.data.manifest import Manifest, read_manifest

logger = logging.getLogger("mats_ds")

SHOWN = 3
THREADS = 16  # looking at files on a network disk is waiting
PIECE_BYTES = 1 << 16  # what is read first, of files of equal size: their beginning, middle and end
# files with equal pieces are read whole until so much has been read; then the pieces have to do
MOST_COMPARED_BYTES = 1 << 32
MOST_LIST_BYTES = 1 << 28
CHUNK_BYTES = 1 << 20
Key = tuple[int | str | tuple[int, int], ...]


@dataclass(frozen=True)
class SharedVideos:
    """Rows (of `test`, of `train`) that are the same clip, in whole or in part, and rows of the
    same file at other times; each row of `test` is named once.
    """

    test: Manifest
    train: Manifest
    same: list[tuple[int, int]]
    other_times: list[tuple[int, int]]

    def describe(self, pairs: list[tuple[int, int]], what: str) -> list[str]:
        """The number of these pairs, and the first few."""
        lines = [f"  - {self.test.paths[row]}{self._alias(row, other)}" for row, other in pairs[:SHOWN]]
        more = [f"  and {len(pairs) - SHOWN:,} more"] if len(pairs) > SHOWN else []
        return [f"{len(pairs):,} of {format_count(len(self.test), 'video')} of {self.test.name} {what}:", *lines, *more]

    def _alias(self, row: int, other: int) -> str:
        path, train_path = self.test.paths[row], self.train.paths[other]
        return "" if path == train_path else f" (there: {train_path})"


def refuse_shared(test: Manifest, train: Manifest, *, allowed: bool, fix: str) -> int:
    """The number of test videos that are trained on as well: where that is `allowed` they are
    warned of, else ValueError, which ends with `fix`: how to allow it. Parts of one file at
    different times are only warned of.
    """
    shared = find_shared(test, train)
    if shared.other_times:
        what = f"are other times of files that {train.name} has as well"
        first, *rest = shared.describe(shared.other_times, what)
        logger.warning(Lines(f"warning: {first}", *rest))
    if not shared.same:
        return 0
    first, *rest = shared.describe(shared.same, f"are in {train.name} as well, so an accuracy on them is none of unseen videos")
    if not allowed:
        raise ValueError(Lines(first, *rest, f"take them out of one of the two manifests, or {fix} to be warned only"))
    logger.warning(Lines(f"warning: {first}", *rest))
    return len(shared.same)


def is_list(path: str, *, may_be_folder: bool) -> bool:
    """Whether a path is a file that can be read as a manifest without end, or a folder where that
    may be one."""
    try:
        if os.path.isdir(path):
            return may_be_folder
        return os.path.isfile(path) and os.path.getsize(path) <= MOST_LIST_BYTES
    except (OSError, ValueError):
        return False


def count_known(test: Manifest, sources: Mapping[str, tuple[str, str | None]]) -> dict[str, int]:
    """The number of test videos in each manifest of `sources` (name -> manifest, root), of those
    that are here."""
    counts = {}
    for name, (source, root) in sources.items():
        # that manifest, or its videos, may be on another machine
        with contextlib.suppress(ValueError, OSError):
            counts[name] = len(find_shared(test, read_manifest(source, root=root)).same)
    return counts


def find_shared(test: Manifest, train: Manifest) -> SharedVideos:
    """The rows of `test` whose videos are in `train`, too. A file that is not there counts by its
    path."""
    with ThreadPoolExecutor(THREADS) as pool:
        test_keys, train_keys = identify(test.paths, pool), identify(train.paths, pool)
        merge_copies(test_keys, train_keys, pool)
    rows: dict[Key, list[int]] = {}
    for row, path in enumerate(train.paths):
        rows.setdefault(train_keys[path], []).append(row)
    same, other_times = [], []
    for row, path in enumerate(test.paths):
        candidates = rows.get(test_keys[path], [])
        meeting = next((other for other in candidates if times_meet(test, row, train, other)), None)
        if meeting is not None:
            same.append((row, meeting))
        elif candidates:
            other_times.append((row, candidates[0]))
    return SharedVideos(test, train, same, other_times)


def times_meet(test: Manifest, row: int, train: Manifest, other: int) -> bool:
    """Whether [start, end) of two rows have a moment in common; without a start or an end a row
    reaches to the file's."""
    (first, last), (other_first, other_last) = (
        (_or(manifest.first_seconds_S[number], 0.0), _or(manifest.last_seconds_S[number], math.inf))
        for manifest, number in ((test, row), (train, other))
    )
    return first < other_last and other_first < last


def identify(paths: Iterable[str], pool: ThreadPoolExecutor) -> dict[str, Key]:
    """(device, inode, size) of the file behind every path, or the path itself where there is
    none."""

    def look(path: str) -> Key:
        try:
            status = stat_file(path)
        except (OSError, ValueError):
            return (os.path.realpath(path),)
        device, inode, offset = status.place
        # some network disks number no files; the members of a shard have its number
        return device, inode and (inode, offset) or os.path.realpath(path), status.num_bytes

    unique = list(dict.fromkeys(paths))
    return dict(zip(unique, pool.map(look, unique), strict=True))


def merge_copies(test_keys: dict[str, Key], train_keys: Mapping[str, Key], pool: ThreadPoolExecutor) -> None:
    """Give files of the test that are copies of a training file that file's key. Only files of
    equal size are opened."""
    known = set(train_keys.values())
    test_paths = {key: path for path, key in test_keys.items() if len(key) == 3 and key[2] and key not in known}
    sizes = {key[2] for key in test_paths}
    train_paths = {key: path for path, key in train_keys.items() if len(key) == 3 and key[2] in sizes}
    sizes &= {key[2] for key in train_paths}
    by_pieces: dict[tuple[int, bytes], list[Key]] = {}
    for key, pieces in zip(train_paths, pool.map(read_pieces, train_paths.values()), strict=True):
        by_pieces.setdefault((key[2], pieces), []).append(key)
    alike = {key: path for key, path in test_paths.items() if key[2] in sizes}
    copies: dict[Key, Key] = {}
    num_bytes = 0
    for key, pieces in zip(alike, pool.map(read_pieces, alike.values()), strict=True):
        for other in by_pieces.get((key[2], pieces), []) if pieces else []:
            if key[2] > 3 * PIECE_BYTES and num_bytes < MOST_COMPARED_BYTES:
                num_bytes += 2 * key[2]
                if not has_same_bytes(alike[key], train_paths[other]):
                    continue
            copies[key] = other
            break
    for path, key in test_keys.items():
        test_keys[path] = copies.get(key, key)


def read_pieces(path: str) -> bytes:
    """A digest of the beginning, middle and end of a file, which is all of a small one; empty where
    it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_file(path) as stream:
            size = stream.size
            for start in (0, max(PIECE_BYTES, size // 2 - PIECE_BYTES // 2), max(2 * PIECE_BYTES, size - PIECE_BYTES)):
                digest.update(stream.pread(PIECE_BYTES, start))
    except OSError:
        return b""
    return digest.digest()


def has_same_bytes(path: str, other: str) -> bool:
    """Whether two files of one size are equal throughout."""
    try:
        with open_file(path) as left, open_file(other) as right:
            while chunk := left.read(CHUNK_BYTES):
                if chunk != right.read(CHUNK_BYTES):
                    return False
    except OSError:
        return False
    return True


def _or(value: float, default: float) -> float:
    return default if math.isnan(value) else float(value)
