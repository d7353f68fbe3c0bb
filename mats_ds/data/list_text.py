"""Text of lists and tables -> lines, columns and fields: the one reader for `data.manifest=` and
for `prepare.py import`.

UTF-8 with or without byte order mark, or UTF-16 with one; lines end in LF, CRLF or CR; a table's
columns are parted by commas, tabs or semicolons. A line of a list is a path and the whole numbers
behind it, parted by spaces, tabs or commas: a path may hold spaces and commas, so what lies between
a path and its numbers is never taken for a part of the path where it could be a column.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from dataclasses import dataclass

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts", ".m2ts", ".ogv")
)
DELIMITERS = (",", "\t", ";")
SEPARATORS = re.compile(r"([\s,]+)")
NUMBER = re.compile(r'("?)(-?\d{1,18})\1')
DECIMAL = re.compile(r"-?\d*\.\d+|-?\d+\.\d*|-?\d+(\.\d*)?[eE][-+]?\d+")
NUMBER_FIRST = re.compile(r'"?-?\d+"?\s*[,\t]')
_ANY_EXTENSION = "|".join(sorted(map(re.escape, VIDEO_EXTENSIONS), key=len, reverse=True))
ENDS_A_VIDEO = re.compile(rf'({_ANY_EXTENSION})"?[\s,;]+', re.IGNORECASE)
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class ListLine:
    """A path and the whole numbers that end its line. problem: why the path is none, such as
    another column in it."""

    path: str
    numbers: tuple[int, ...]
    problem: str | None = None

    @property
    def is_video(self) -> bool:
        return has_video_extension(self.path)


def has_video_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


def decode_text(content: bytes) -> str:
    """The text with LF as line ends. Raises UnicodeDecodeError, and ValueError for binary data."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    if "\0" in text:
        raise ValueError("holds binary data")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def find_delimiter(line: str) -> str:
    """The separator of the columns of a table with this first line."""
    return next((mark for mark in DELIMITERS if mark in line), DELIMITERS[0])


def column_names(line: str) -> list[str]:
    """The fields of a table's first line, in lower case; none where it is no line of a table."""
    try:
        return [name.strip().lower() for name in next(csv.reader([line], delimiter=find_delimiter(line)), [])]
    except csv.Error:
        return []


def split_line(line: str) -> ListLine:
    """`some path.mp4 0 -1 3` -> its path and numbers; the path is empty where there is none."""
    line = line.strip()
    parts = SEPARATORS.split(line)  # fields, and between them what parts them
    first = len(parts)
    while first > 2 and NUMBER.fullmatch(parts[first - 1]):
        first -= 2
    numbers = tuple(int(NUMBER.fullmatch(part)[2]) for part in parts[first + 1 :: 2])
    path = "".join(parts[:first])
    separator = parts[first] if numbers else ""
    problem = None if _is_quoted(path) else _find_column(path, separator)
    if any(mark.count(",") > 1 for mark in parts[first::2]):
        problem = "a column is empty"
    return ListLine(_unquote(path), numbers, problem)


def _find_column(path: str, separator: str) -> str | None:
    """The sign that `path` is more than one column."""
    if NUMBER_FIRST.match(path) and has_video_extension(path):
        return "a number comes before the path: is it the label, or a part of the name?"
    video = ENDS_A_VIDEO.search(path)
    if video and (not has_video_extension(path) or "," in video[0]):
        return f"{_shorten(path[video.end() :])} stands behind the file {_shorten(path[: video.end(1)])}"
    if has_video_extension(path):
        return None
    for mark, name in ((",", "comma"), ("\t", "tab")):
        if mark in separator and mark in path:
            return f"several columns parted by a {name} come before the numbers: {_shorten(path)}"
    if any(DECIMAL.fullmatch(field) for field in path.split()[1:]):
        return f"{_shorten(path)} holds a number with a fraction: seconds, or coordinates?"
    return None


def _is_quoted(path: str) -> bool:
    return len(path) > 1 and path.startswith('"') and path.endswith('"') and '"' not in path[1:-1].replace('""', "")


def _unquote(path: str) -> str:
    return path[1:-1].replace('""', '"') if _is_quoted(path) else path.strip('"')


def _shorten(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")
