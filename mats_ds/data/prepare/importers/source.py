"""Inputs of an import: annotations (a file or a folder) with their line numbers, and the videos
that they name.

A list made elsewhere rarely fits to the letter: it may carry folders of another machine, or the
videos may since have been transcoded to another extension. Such a file is found by the rest of its
path, and the import reports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.file_kind import describe_file, not_a
from mats_ds.data.class_names import normalise_name
from mats_ds.data.list_text import decode_text, has_video_extension
from mats_ds.data.manifest import list_packed, list_videos

OTHER_FOLDERS, OTHER_EXTENSION, SEVERAL_FOLDERS = "other folders", "other extension", "several folders"
_files_read: ContextVar[list[Path] | None] = ContextVar("files_read", default=None)


@dataclass(frozen=True)
class Source:
    """text: the file's text with plain line ends, None for a folder."""

    path: Path
    text: str | None

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from, with the companions (class lists)."""
        return self.path if self.text is None else self.path.parent

    @cached_property
    def lines(self) -> list[tuple[int, str]]:
        """Line number (from 1) and text of every line that is not blank; none for a folder."""
        lines = (self.text or "").split("\n")
        return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]

    @cached_property
    def entries(self) -> list[tuple[int, object]] | None:
        """Line number and value of each entry of a JSON list, or of the list under `clips`; None
        where there is no such list."""
        return None if self.text is None else _read_json_entries(self.text, self.path)

    def where(self, number: int) -> str:
        return f"{self.path}:{number}"


@contextlib.contextmanager
def note_files_read() -> Iterator[list[Path]]:
    """The annotation files that are read inside the block, class lists beside them included."""
    files: list[Path] = []
    before = _files_read.set(files)
    try:
        yield files
    finally:
        _files_read.reset(before)


def open_source(path: str | os.PathLike[str]) -> Source:
    """Read an annotation file, or take a folder. Raises ValueError where there is neither or the
    file is no text."""
    path = Path(path)
    if path.is_dir():
        return Source(path, None)
    if not path.exists():
        raise ValueError(f"nothing at {path}: give an annotation file, a folder of class folders, or a folder of split files")
    if (noted := _files_read.get()) is not None:
        noted.append(path)
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError) as error:
        if (kind := describe_file(path)) in (None, "a text file", "a table (CSV)") and isinstance(error, UnicodeDecodeError):
            raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): give an annotation file, saved as UTF-8") from None
        what = f"{path} {error}" if kind is None else not_a("annotation file", path)
        raise ValueError(f"{what}: give a .csv, .txt or .json that lists videos, or a folder") from None
    if not text.strip():
        raise ValueError(f"{path} is empty: give an annotation file that lists videos")
    return Source(path, text)


def _read_json_entries(text: str, path: Path) -> list[tuple[int, object]] | None:
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("[", "{"):
        return None
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: broken JSON ({error.msg}): was the download cut off?") from None
    except ValueError as error:
        raise ValueError(f"{path}: no JSON that can be read: {error}") from None
    if isinstance(document, dict):
        if not isinstance(document.get("clips"), list):
            return None
        key = re.search(r'"clips"\s*:\s*\[', text)
        start = key.end() - 1
    decoder = json.JSONDecoder()
    entries: list[tuple[int, object]] = []
    at, line = start + 1, 1 + text.count("\n", 0, start + 1)
    gap = re.compile(r"[\s,]*")
    while True:
        begin = gap.match(text, at).end()
        if text[begin] == "]":
            return entries
        line += text.count("\n", at, begin)
        entry, at = decoder.raw_decode(text, begin)
        entries.append((line, entry))
        line += text.count("\n", begin, at)


class VideoFiles:
    """Relative paths of the videos below `root`; with root=None nothing is known, and every name is
    taken as it stands."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.paths: set[str] = set()
        # name of a file in a shard -> its path below root
        self._packed: dict[str, str] = {}
        # how -> (asked, found), for the report
        self.looser: dict[str, list[tuple[str, str]]] = defaultdict(list)
        # file name without folder and extension
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        # relative path without extension
        self._by_stem_path: dict[str, list[str]] = defaultdict(list)
        for path in list_videos(root) if root is not None else ():
            self.paths.add(path)
        # Files in shards are found by their own names; what lies unpacked comes first.
        for path, name in list_packed(root) if root is not None else ():
            if name not in self.paths:
                self.paths.add(name)
                self._packed[name] = path
        for path in sorted(self.paths):
            self._by_stem_path[os.path.splitext(path)[0]].append(path)
            self._by_stem[os.path.splitext(os.path.basename(path))[0]].append(path)

    @property
    def known(self) -> bool:
        return self.root is not None

    def find(self, path: str) -> str | None:
        """The file that a list calls `path`: as it stands, else without leading folders or with
        spaces for underscores in them (or the reverse), else with another extension."""
        if not self.known:
            return path
        tidy = os.path.normpath(path.replace("\\", "/"))
        if tidy in self.paths:
            return tidy
        if (os.path.isabs(tidy) or tidy.startswith("..")) and os.path.isfile(os.path.join(self.root, tidy)):
            return tidy
        name = os.path.basename(tidy)
        if name not in self._by_stem and os.path.splitext(name)[0] not in self._by_stem:
            return None  # most often: a long list with few of its videos here
        parts = [part for part in tidy.split("/") if part not in ("", "..")]
        tails = [tail for first in range(len(parts)) for tail in _spell_folders(parts[first:])]
        for tail in tails:
            if tail in self.paths:
                self.looser[OTHER_FOLDERS].append((path, tail))
                return tail
        for tail in tails:
            if found := self.find_stem(tail):
                self.looser[OTHER_EXTENSION].append((path, found))
                return found
        return None

    def find_stem(self, path: str) -> str | None:
        """The video at `path` but for the extension, which `path` may have or not."""
        found = self._by_stem_path.get(path) or self._by_stem_path.get(_without_video_extension(path)) or []
        return self._first(path, sorted(found))

    def find_named(self, stem: str, *, folders: Iterable[str] = ()) -> str | None:
        """The video called `stem` in any folder; of several, one below a folder of `folders`, tried
        in their order."""
        found = sorted(self._by_stem.get(stem, []))
        if len(found) > 1:
            for folder in map(normalise_name, folders):
                inside = [path for path in found if folder in map(normalise_name, path.split("/")[:-1])]
                found = inside or found
        return self._first(stem, found)

    def _first(self, asked: str, found: list[str]) -> str | None:
        if len(found) > 1:
            self.looser[SEVERAL_FOLDERS].append((asked, " and ".join(found[:3])))
        return found[0] if found else None

    def locate(self, path: str) -> str:
        """The path below `root` of a file that was found, `shard.tar#file` for one in a shard."""
        return self._packed.get(path, path)

    def describe_looser(self) -> list[str]:
        """One sentence for each way in which names did not fit to the letter."""
        reasons = {
            OTHER_FOLDERS: "found in other folders than the list names",
            OTHER_EXTENSION: "found with another extension",
            SEVERAL_FOLDERS: "found more than once (the first by name was taken)",
        }
        sentences = []
        for how, pairs in self.looser.items():
            asked, found = pairs[0]
            sentences.append(f"{len(pairs)} {'file was' if len(pairs) == 1 else 'files were'} {reasons[how]}: {asked} -> {found}")
        return sentences


def _spell_folders(parts: list[str]) -> list[str]:
    """The path as it stands, with underscores and with spaces in its folders, each once."""
    folders, name = "/".join(parts[:-1]), parts[-1]
    spellings = dict.fromkeys((folders, folders.replace(" ", "_"), folders.replace("_", " ")))
    return [f"{spelling}/{name}" if spelling else name for spelling in spellings]


def _without_video_extension(path: str) -> str:
    return os.path.splitext(path)[0] if has_video_extension(path) else path
