"""The classes of a labelled manifest: how many there are, and their names where they are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mats_ds.data.manifest import Manifest

NAMES_SUFFIX = ".classes.txt"  # what `prepare.py import` writes beside a manifest: one name a line, in the order of the labels


@dataclass(frozen=True)
class Classes:
    """Labels are 0 to `count` - 1. `names` is empty where they are not known."""

    count: int
    names: tuple[str, ...] = ()


def settle_classes(manifest: Manifest, source: str | Path | None, *, asked: int | None) -> Classes:
    """As many classes as are `asked` for, else as the names beside the manifest `source` tell, else as the labels do.

    Raises ValueError where videos have no label, or one that is none of the classes.
    """
    names = read_class_names(source)
    count = asked or len(names) or int(manifest.label_S.max()) + 1
    check_labels(manifest, count)
    if count < 2:
        raise ValueError(f"all videos of {manifest.name} have the label 0: a classifier needs at least two classes")
    return Classes(count, names if len(names) == count else ())


def read_class_names(source: str | Path | None) -> tuple[str, ...]:
    """The names that lie beside a manifest file; empty if there are none."""
    if source is None:
        return ()
    place = Path(f"{source}{NAMES_SUFFIX}")
    return tuple(place.read_text(encoding="utf-8").split("\n")[:-1]) if place.is_file() else ()


def check_labels(manifest: Manifest, num_classes: int) -> None:
    """Raises ValueError where a video has no label, or one that is none of the classes, and names the first."""
    for wrong_S, what in (
        (manifest.label_S < 0, "no label"),
        (manifest.label_S >= num_classes, f"a label that is none of the {num_classes} classes 0 to {num_classes - 1}"),
    ):
        if wrong_S.any():
            first = int(np.argmax(wrong_S))
            label = f" ({manifest.label_S[first]})" if manifest.label_S[first] >= 0 else ""
            raise ValueError(
                f"{int(wrong_S.sum())} of {len(manifest)} videos of {manifest.name} have {what}; the first is "
                f"{manifest.paths[first]}{label}: mend the manifest, or set finetune.num_classes"
            )
