"""What a folder held before a start wrote into it, so that a start that fails leaves nothing that
was not there before.

Only names that the starter knows as its own are removed, and folders only where they are empty: a
user may have put a file of theirs beside them in the meantime.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mats_ds.core.storage.files import WrongKindOfFile, read_bytes, replace_file

MAX_BYTES = 1 << 24  # of a file whose content is kept in memory


@dataclass(frozen=True)
class FolderBefore:
    """`names`: of all that was in `folder`, relative to it. `contents`: of small files that a start
    writes over. `made`: the folder and those above it that were not there, the deepest first.
    """

    folder: Path
    names: frozenset[str]
    contents: Mapping[str, bytes]
    made: tuple[Path, ...]

    def put_back(self, *, is_ours: Callable[[str], bool]) -> None:
        """Remove what is new and ours, and write back what was written over. What cannot be removed
        stays."""
        for name in sorted(list_names(self.folder) - self.names, reverse=True):  # what is inside comes first
            path = self.folder / name
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                elif is_ours(name):
                    path.unlink()
        for name, content in self.contents.items():
            with contextlib.suppress(OSError, WrongKindOfFile):
                path = self.folder / name
                if not path.exists() or read_bytes(path, max_bytes=MAX_BYTES) != content:
                    with replace_file(path) as part:
                        part.write_bytes(content)

    def remove_made(self) -> None:
        """Remove the folders that were made for the start, as far as they are empty."""
        for folder in self.made:
            try:
                folder.rmdir()
            except OSError:
                return


def remember(folder: Path, *, rewritten: Iterable[str]) -> FolderBefore:
    """The state of a folder that need not exist. rewritten: names of files that a start may write
    over."""
    absolute = Path(os.path.abspath(folder))
    missing = [path for path in (absolute, *absolute.parents) if not os.path.lexists(path)]
    contents = {}
    for name in rewritten:
        with contextlib.suppress(OSError, ValueError):
            contents[name] = read_bytes(absolute / name, max_bytes=MAX_BYTES)
    return FolderBefore(absolute, frozenset(list_names(absolute)), contents, tuple(missing))


def list_names(folder: Path) -> set[str]:
    """All names below a folder, relative to it; links are not followed."""
    return {
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, folders, files in os.walk(folder)
        for name in folders + files
    }
