"""A kill between any two calls that change a disk: the N-th one does not happen, and neither does
any after it.

That is what SIGKILL does to the files. A clean-up in an `except` block would still run after an
ordinary exception, and after SIGKILL it does not: here its calls fail as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "remove", "open", "write", "fsync")


class Killed(BaseException):
    """The process is gone."""


class Killer:
    """Counts the calls below `folder` and lets those from number `at` on fail; None: all happen."""

    def __init__(self, monkeypatch: Any, folder: Path, at: int | None) -> None:
        self.at, self.num_calls, self.folder = at, 0, str(folder)
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))
        # pathlib writes through io.open; what it wrote is torn in the middle
        plain = Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", lambda path, data: self._write(plain, path, data))

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(first: Any, *rest: Any, **named: Any) -> Any:
            is_reading = call.__name__ == "open" and not (rest and rest[0] & (os.O_WRONLY | os.O_RDWR))
            if not is_reading and (isinstance(first, int) or os.fspath(first).startswith(self.folder)):
                self._count()
            # which takes its time
            return None if call.__name__ == "fsync" else call(first, *rest, **named)

        return wrapped

    def _write(self, plain: Callable[..., int], path: Path, data: bytes) -> int:
        try:
            self._count()
        except Killed:
            if self.num_calls == self.at:
                plain(path, data[: len(data) // 2])
            raise
        return plain(path, data)

    def _count(self) -> None:
        self.num_calls += 1
        if self.at is not None and self.num_calls >= self.at:
            raise Killed(f"at call {self.num_calls}")
