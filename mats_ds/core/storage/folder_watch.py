"""FileWatch: whether an open file still has its name in its folder. Two system calls, cheap enough
for every step.

A folder that was deleted, moved away or exchanged for another is not a disk that does not answer
for a moment: only the answer "there is no such file", or another file of that name, counts. What a
disk that does not answer loses, the next write reports.
"""

from __future__ import annotations

import os
from pathlib import Path


class FileWatch:
    """Watches a file that this process has open; `folder` is what a message names."""

    def __init__(self, path: Path, descriptor: int, *, folder: Path) -> None:
        self._path, self._descriptor, self._folder = path, descriptor, folder
        # Some filesystems number a file anew whenever they are asked; there only its absence can be
        # seen.
        self._has_numbers = self._is_same() is True

    def what_is_lost(self) -> str | None:
        """The reason, in a sentence, that nothing written arrives any more; None while all is well
        or cannot be known."""
        is_same = self._is_same()
        if is_same or is_same is None:
            return None
        if os.path.exists(self._path):
            return f"{self._folder} is another folder than the one that this run began in" if self._has_numbers else None
        what = self._path if os.path.exists(self._folder) else self._folder
        return f"{what} is gone: it was deleted or moved away"

    def _is_same(self) -> bool | None:
        """None: the disk does not say."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return None
