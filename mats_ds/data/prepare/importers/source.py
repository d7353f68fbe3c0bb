"""The annotations somebody has: a file read once, or a folder; its lines and JSON entries with their line numbers."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mats_ds.core.storage.documents import parse_json
from mats_ds.data.list_text import decode_text

_files_read: ContextVar[list[Path] | None] = ContextVar("files_read", default=None)


@dataclass(frozen=True)
class Source:
    """text: the file's text with plain line ends, None for a folder."""

    place: Path
    text: str | None

    @property
    def folder(self) -> Path:
        """Where relative paths start and companions (class lists) lie."""
        return self.place if self.text is None else self.place.parent

    @cached_property
    def lines(self) -> list[tuple[int, str]]:
        """Line number (from 1) and text of every line that is not blank; none for a folder."""
        lines = (self.text or "").split("\n")
        return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]

    @cached_property
    def entries(self) -> list[tuple[int, object]] | None:
        """Line number and value of each entry of a JSON list, or of the list under `clips`; None where there is no such list."""
        return None if self.text is None else _read_json_entries(self.text, self.place)

    def where(self, number: int) -> str:
        return f"{self.place}:{number}"


@contextlib.contextmanager
def note_files_read() -> Iterator[list[Path]]:
    """The annotation files that are read inside the block, class lists beside them included."""
    files: list[Path] = []
    before = _files_read.set(files)
    try:
        yield files
    finally:
        _files_read.reset(before)


def open_source(place: str | os.PathLike[str]) -> Source:
    """Read an annotation file, or take a folder. Raises ValueError where there is neither or the file is no text."""
    place = Path(place)
    if place.is_dir():
        return Source(place, None)
    if not place.exists():
        raise ValueError(f"nothing at {place}: give an annotation file, a folder of class folders, or a folder of split files")
    if (noted := _files_read.get()) is not None:
        noted.append(place)
    try:
        text = decode_text(place.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {place}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 text (byte {error.start}): give an annotation file, saved as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{place} {error}: give an annotation file (.csv, .txt, .json) or a folder") from None
    if not text.strip():
        raise ValueError(f"{place} is empty: give an annotation file that lists videos")
    return Source(place, text)


def _read_json_entries(text: str, place: Path) -> list[tuple[int, object]] | None:
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] not in ("[", "{"):
        return None
    try:
        whole = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}:{error.lineno}: broken JSON ({error.msg}): was the download cut off?") from None
    except ValueError as error:
        raise ValueError(f"{place}: no JSON that can be read: {error}") from None
    if isinstance(whole, dict):
        if not isinstance(whole.get("clips"), list):
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
