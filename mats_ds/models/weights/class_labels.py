"""config.json of a Hugging Face folder -> the names of the classes, each at the row of the head that it belongs to.

`id2label` may have gaps, ids that the head has not, or ids that are no numbers: a name is never moved to another row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Labels:
    """`names` in the order of the head's rows, none where they are not known, and what is odd about them."""

    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_labels(config: Mapping[str, Any], num_classes: int) -> Labels:
    """The names of the head's rows by their ids; rows without one are called `LABEL_3` as transformers does, and noted.

    No names where all are LABEL_0, LABEL_1, ..., or where the ids are no numbers.
    """
    table = config.get("id2label") or {}
    if not isinstance(table, Mapping):
        return Labels((), (f"id2label is a {type(table).__name__}, expected an object: the classes have no names",))
    named = {int(key): str(name) for key, name in table.items() if re.fullmatch(r"-?\d{1,9}", str(key).strip())}
    notes = []
    if len(named) < len(table):
        strange = next(key for key in table if not re.fullmatch(r"-?\d{1,9}", str(key).strip()))
        notes.append(f"id2label has {len(table) - len(named)} ids that are no whole numbers, such as {strange!r}: left out")
    outside = sorted(label for label in named if not 0 <= label < num_classes)
    if outside:
        notes.append(
            f"id2label names {len(outside)} classes that the head of {num_classes} has not, such as {outside[0]}: left out"
        )
    missing = [label for label in range(num_classes) if label not in named]
    if missing and len(missing) < num_classes:
        notes.append(
            f"id2label has no name for {len(missing)} of {num_classes} classes, such as {missing[0]}: called LABEL_{missing[0]}"
        )
    names = tuple(named.get(label, f"LABEL_{label}") for label in range(num_classes))
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return Labels((), tuple(notes))
    return Labels(names, tuple(notes))
