"""Class lists -> class names by number: one name a line, `number name` from 0 or 1, CSV
`number,name`, or JSON.

UCF101's classInd.txt counts from 1, PaddleVideo's lists from 0; Something-Something's labels.json
maps a name to its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mats_ds.core.format import format_count
from mats_ds.core.storage.documents import parse_json
from mats_ds.data.class_names import merge_names, normalise_name
from mats_ds.data.prepare.importers.source import open_source

MAX_MISTAKES_SHOWN = 5


@dataclass(frozen=True)
class ClassList:
    """names: by number. notes: sentences on what was merged."""

    names: list[str]
    notes: tuple[str, ...] = ()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {normalise_name(name): number for number, name in enumerate(self.names)}

    def number_of(self, name: str) -> int | None:
        """Its number from 0; its spelling does not count (class_names.py)."""
        return self._numbers.get(normalise_name(name))


def read_class_list(path: Path) -> ClassList:
    """Raises ValueError with all that is wrong with the list."""
    source = open_source(path)
    if source.text is None:
        raise ValueError(f"{path} is a folder: --labels takes a file with one class name a line")
    numbered = _read_json(source.text, path) if source.text.lstrip()[0] in "[{" else _read_lines(source.lines)
    return ClassList(_in_order(numbered, path))


def name_classes(names: Iterable[str]) -> ClassList:
    """Classes numbered in the order of their names; give a name as often as it occurs, for the
    usual spelling to stand."""
    merged = merge_names(names)
    return ClassList(merged.names, tuple(merged.describe()))


def _read_lines(lines: list[tuple[int, str]]) -> list[tuple[int | None, str]]:
    if lines and re.fullmatch(r'"?(id|label|number|index)"?\s*,\s*"?(name|class|label)"?', lines[0][1], re.IGNORECASE):
        lines = lines[1:]
    split = [re.fullmatch(r'"?(\d+)"?\s*[\s,]\s*(\S.*)', line) for _, line in lines]
    if all(split):
        return [(int(match[1]), match[2].strip('"')) for match in split]
    return [(None, line.strip('"')) for _, line in lines]


def _read_json(text: str, path: Path) -> list[tuple[int | None, str]]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from None
    except ValueError as error:
        raise ValueError(f"{path}: no JSON that can be read: {error}") from None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(None, name) for name in content]
    try:
        return [(int(number), name) for name, number in content.items()]
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f'{path} is no class list: expected {{"class name": number, ...}} or ["class name", ...]') from None


def _in_order(numbered: list[tuple[int | None, str]], path: Path) -> list[str]:
    """Names in the order of their numbers, which must run from 0 or from 1 without gap."""
    if all(number is None for number, _ in numbered):
        numbered = list(enumerate(name for _, name in numbered))
    numbered = sorted(numbered)
    numbers, names = [number for number, _ in numbered], [name for _, name in numbered]
    if not names:
        raise ValueError(f"{path} names no class: expected one class name a line")
    mistakes = []
    if numbers not in (list(range(len(names))), list(range(1, len(names) + 1))):
        mistakes.append(
            f"its numbers go from {numbers[0]} to {numbers[-1]} for {format_count(len(names), 'class')}: number them "
            f"from 0 (or 1)"
        )
    seen: dict[str, str] = {}
    for name in names:
        if normalise_name(name) in seen:
            mistakes.append(f"it names {name!r} twice: a class has one number")
        seen[normalise_name(name)] = name
    if mistakes:
        raise ValueError(f"{path} is no class list: {'; '.join(mistakes[:MAX_MISTAKES_SHOWN])}")
    return names
