"""Many files of one program with a record of their sums: what still has its sum may be replaced or
deleted.

A record is a text file of JSON lines. The line `{"wrote": NAME, "sha256": SUM}` is added before a
file gets its name, so that a kill in between leaves nothing unknown. NAME counts from the record's
folder: the folder may be moved or copied. What somebody has changed since has another sum, and is
theirs.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import hash_file, is_same_file, refuse_wrong_kind

SUFFIX_KEPT = ".old"
MAX_LINE_CHARACTERS = 10_000  # of a record's line: a name has 4096 bytes at most


class OwnFiles:
    """The sums of all that a program has written below one folder, as its record lists them."""

    def __init__(self, folder: str | os.PathLike[str], lines: Iterable[str] = ()) -> None:
        self.folder = os.path.realpath(folder)
        self._sums: dict[str, set[str]] = defaultdict(set)
        for line in lines:
            if not line.lstrip().startswith('{"wrote"') or len(line) > MAX_LINE_CHARACTERS:
                continue
            try:
                entry = parse_json(line)
                name, checksum = str(entry["wrote"]), str(entry["sha256"])
            except (ValueError, KeyError, TypeError):  # torn, or somebody else's
                continue
            self._sums[name].add(checksum)

    def __bool__(self) -> bool:
        return bool(self._sums)

    def knows(self, path: str | os.PathLike[str]) -> bool:
        """Whether the program ever wrote a file of this name."""
        return self.name(path) in self._sums

    def names(self) -> list[str]:
        """Of all files ever written, counted from the folder."""
        return list(self._sums)

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether the file is a regular one and its content is what the program wrote."""
        path = Path(path)
        return self.knows(path) and path.is_file() and not path.is_symlink() and hash_file(path) in self._sums[self.name(path)]

    def note(self, path: str | os.PathLike[str], checksum: str) -> str:
        """Remember that the program writes this file; the line of the record that says so, "" where
        it does already."""
        name = self.name(path)
        if checksum in self._sums[name]:
            return ""
        self._sums[name].add(checksum)
        return record_line(name, checksum)

    def name(self, path: str | os.PathLike[str]) -> str:
        """A file's name counted from the folder, links on the way to it followed."""
        folder, name = os.path.split(os.path.abspath(path))
        return os.path.relpath(os.path.join(os.path.realpath(folder), name), self.folder)


def record_line(name: str, checksum: str) -> str:
    """One line of a record, without its end."""
    return json.dumps({"wrote": name, "sha256": checksum})


def claim_name(path: Path) -> None:
    """Take a free name with an empty file, to be replaced at once. Raises FileExistsError where
    another process was faster."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def set_aside(path: Path) -> Path:
    """Give a file that is in the way the first free of the names NAME.old, NAME.old2, ...; it is
    not copied and not changed."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}{SUFFIX_KEPT}{number if number > 1 else ''}")):
        number += 1
    os.rename(path, kept)
    return kept


def find_same_target(path: str | os.PathLike[str], targets: Iterable[Path]) -> Path | None:
    """The first of `targets` that is the file `path`, or would be if both were there; whatever
    links or spelling lead to it."""
    for target in targets:
        if is_same_file(path, target) or os.path.realpath(path) == os.path.realpath(target):
            return target
    return None


def find_same_path(target: Path, paths: Iterable[str | os.PathLike[str]]) -> str | None:
    """The first of many `paths` that is the file `target`; only those of its name, upper and lower
    case alike, are looked at."""
    wanted, length = target.name.casefold(), len(target.name)
    for path in map(os.fspath, paths):
        if path[-length:].casefold() == wanted and find_same_target(path, [target]):
            return path
    return None


def refuse_sources(target: Path, *, option: str, sources: Iterable[str | os.PathLike[str]], listed: Iterable[str] = ()) -> None:
    """Raises ValueError where `target` is one of the files that are read, or cannot be a regular
    file at all."""
    refuse_wrong_kind(target)
    if any(find_same_target(source, [target]) for source in sources):
        raise ValueError(f"{option} {target} is the source itself, which would be lost: give another name")
    if video := find_same_path(target, listed):
        raise ValueError(f"{option} {target} is the listed video {video}, which would be lost: give another name")
