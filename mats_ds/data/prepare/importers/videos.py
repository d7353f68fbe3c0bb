"""The video files below a folder, listed once, and how a name in an annotation file finds its own among them.

A list made elsewhere rarely fits to the letter: it may carry folders of another machine, or the videos may since have been
transcoded to another extension. Such a file is found by what is left of its path, and the import says so.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mats_ds.data.class_names import normalise_name
from mats_ds.data.list_text import has_video_extension
from mats_ds.data.manifest import list_videos

OTHER_FOLDERS, OTHER_EXTENSION, SEVERAL_PLACES = "other folders", "other extension", "several places"


class VideoFiles:
    """Relative paths of the videos below `root`; with root=None nothing is known, and every name is taken as it stands."""

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self.paths: set[str] = set()
        self.looser: dict[str, list[tuple[str, str]]] = defaultdict(list)  # how -> (asked, found), for the report
        self._by_stem: dict[str, list[str]] = defaultdict(list)  # file name without folder and extension
        self._by_stem_path: dict[str, list[str]] = defaultdict(list)  # relative path without extension
        for path in list_videos(root) if root is not None else ():
            self.paths.add(path)
            self._by_stem_path[os.path.splitext(path)[0]].append(path)
            self._by_stem[os.path.splitext(os.path.basename(path))[0]].append(path)

    @property
    def known(self) -> bool:
        return self.root is not None

    def find(self, path: str) -> str | None:
        """The file that a list calls `path`: as it stands, else without leading folders or with spaces for underscores in
        them (or the reverse), else with another extension."""
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
        """The video called `stem` in any folder; of several, one below a folder of `folders`, tried in their order."""
        found = sorted(self._by_stem.get(stem, []))
        if len(found) > 1:
            for folder in map(normalise_name, folders):
                inside = [path for path in found if folder in map(normalise_name, path.split("/")[:-1])]
                found = inside or found
        return self._first(stem, found)

    def _first(self, asked: str, found: list[str]) -> str | None:
        if len(found) > 1:
            self.looser[SEVERAL_PLACES].append((asked, " and ".join(found[:3])))
        return found[0] if found else None

    def describe_looser(self) -> list[str]:
        """One sentence for each way in which names did not fit to the letter."""
        words = {
            OTHER_FOLDERS: "found in other folders than the list names",
            OTHER_EXTENSION: "found with another extension",
            SEVERAL_PLACES: "found more than once (the first by name was taken)",
        }
        sentences = []
        for how, pairs in self.looser.items():
            asked, found = pairs[0]
            sentences.append(f"{len(pairs)} {'file was' if len(pairs) == 1 else 'files were'} {words[how]}: {asked} -> {found}")
        return sentences


def _spell_folders(parts: list[str]) -> list[str]:
    """The path as it stands, with underscores and with spaces in its folders, each once."""
    folders, name = "/".join(parts[:-1]), parts[-1]
    spellings = dict.fromkeys((folders, folders.replace(" ", "_"), folders.replace("_", " ")))
    return [f"{spelling}/{name}" if spelling else name for spelling in spellings]


def _without_video_extension(path: str) -> str:
    return os.path.splitext(path)[0] if has_video_extension(path) else path
