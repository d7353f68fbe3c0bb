"""Class names as people vary them -> one class each: `riding a bike`, `riding_a_bike` and
`Riding a  bike ` are the same.

Case, spaces for underscores, quotes around a name, typographic apostrophes and the two ways in
which Unicode writes an accent (NFC, NFD) do not count. Everything else does: hyphens, plurals,
digits.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
MAX_SHOWN = 5


def normalise_name(name: str) -> str:
    """The common form of all spellings of one class."""
    plain = unicodedata.normalize("NFC", name).translate(QUOTES).replace("_", " ").casefold()
    return " ".join(_strip_quotes(plain.strip()).split())


def _strip_quotes(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"" else name


@dataclass(frozen=True)
class MergedNames:
    """names: one spelling a class, in their order. merged: {name: all its spellings} where there
    are several."""

    names: list[str]
    merged: Mapping[str, list[str]]

    def describe(self) -> list[str]:
        """A sentence on what was merged, if anything was."""
        if not self.merged:
            return []
        shown = [" and ".join(map(repr, spellings)) for spellings in list(self.merged.values())[:MAX_SHOWN]]
        more = f", and {len(self.merged) - MAX_SHOWN:,} more" if len(self.merged) > MAX_SHOWN else ""
        count = f"{len(self.merged)} {'class is' if len(self.merged) == 1 else 'classes are'}"
        return [f"{count} spelt in more than one way, and each is one class: {'; '.join(shown)}{more}"]


def merge_names(names: Iterable[str]) -> MergedNames:
    """Classes in the order of their names; of several spellings the most frequent stands, the first
    in order among equals."""
    spellings: dict[str, Counter[str]] = {}
    for name in names:
        spellings.setdefault(normalise_name(name), Counter())[name] += 1
    chosen = {min(counts, key=lambda name: (-counts[name], name)): sorted(counts) for counts in spellings.values()}
    return MergedNames(sorted(chosen), {name: chosen[name] for name in sorted(chosen) if len(chosen[name]) > 1})
