"""The classes of a labelled manifest: how many there are, and their names where they are known."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mats_ds.core.format import format_count
from mats_ds.data.class_names import merge_names, normalise_name
from mats_ds.data.manifest import Manifest

logger = logging.getLogger("mats_ds")

# what `prepare.py import` writes beside a manifest: one name a line, in the order of the labels
NAMES_SUFFIX = ".classes.txt"


TRAINING_ADVICE = "mend the manifest, or set finetune.num_classes={needed}"
UNLABELLED_ADVICE = "number the classes from 0 in its label column, or leave these videos out"
NUM_SHOWN = 5


@dataclass(frozen=True)
class Classes:
    """Labels are 0 to `count` - 1. `names` is empty where they are not known."""

    count: int
    names: tuple[str, ...] = ()


def resolve_classes(manifest: Manifest, source: str | Path | None, *, asked: int | None) -> Classes:
    """As many classes as are `asked` for, else as the names beside the manifest `source` are, else
    as the labels need.

    Raises ValueError where videos have no label, or one that is none of the classes.
    """
    names = read_class_names(manifest, source)
    count = asked or len(names) or int(manifest.label_S.max()) + 1
    check_labels(manifest, count, advice=TRAINING_ADVICE)
    if count < 2:
        raise ValueError(f"all videos of {manifest.name} have the label 0: a classifier needs at least two classes")
    return Classes(count, names if len(names) == count else ())


def read_class_names(manifest: Manifest, source: str | Path | None) -> tuple[str, ...]:
    """The names that lie beside a manifest file, or the class folders of a folder; empty if there
    are none."""
    if source is None:
        return ()
    if Path(source).is_dir():
        if manifest.label_S.min() < 0:
            return ()
        return tuple(merge_names(Path(path).parent.name for path in manifest.paths).names)
    path = Path(f"{source}{NAMES_SUFFIX}")
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1]) if path.is_file() else ()


def check_test_set(manifest: Manifest, source: str | Path, classes: Classes) -> None:
    """Raises ValueError where the labels of a test set are none of the classes, or have other
    names.

    Folders are numbered in their own order, so that a class that is missing from one of two folders
    shifts all after it.
    """
    check_labels(manifest, classes.count, advice=TRAINING_ADVICE)
    names = read_class_names(manifest, source)
    for label, (name, trained) in enumerate(zip(names, classes.names, strict=False)):
        if normalise_name(name) != normalise_name(trained):
            raise ValueError(
                f"class {label} is {name!r} in {manifest.name} and {trained!r} in the training set: number the classes of both "
                "alike, with manifests of `path label` lines"
            )


def check_labels(manifest: Manifest, num_classes: int, *, advice: str) -> None:
    """Raises ValueError where a video has no label, or one that is not in 0 to `num_classes` - 1;
    names the first.

    advice: what to do about a label that is too large; `{needed}` in it is the number of classes
    that the labels ask for.
    """
    needed = int(manifest.label_S.max(initial=0)) + 1
    for wrong_S, problem, fix in (
        (manifest.label_S < 0, "no label (-1 is none)", UNLABELLED_ADVICE),
        (
            manifest.label_S >= num_classes,
            f"a label that is none of the {format_count(num_classes, 'class')} 0 to {num_classes - 1:,}"
            if num_classes > 1
            else "a label that is not 0, the only class",
            advice,
        ),
    ):
        if wrong_S.any():
            first, count = int(np.argmax(wrong_S)), int(wrong_S.sum())
            label = f" ({manifest.label_S[first]})" if manifest.label_S[first] >= 0 else ""
            fix = fix.replace("{needed}", str(needed))
            raise ValueError(
                f"{count:,} of {format_count(len(manifest), 'video')} of {manifest.name} {'has' if count == 1 else 'have'} "
                f"{problem}; the first is {manifest.paths[first]}{label}: {fix}"
            )


def warn_of_names(manifest: Manifest, source: str | Path, classes: Classes) -> None:
    """Folders, and manifests with a list of names beside them, may number the classes otherwise
    than a model."""
    try:
        check_test_set(manifest, source, classes)
    except ValueError as error:  # the labels are in order: it is about names, which may also be spelt otherwise
        logger.warning("warning: %s", error)


def count_shared_classes(train: Manifest, val: Manifest) -> int:
    """One more than the largest label of `train`. Raises ValueError for videos without a label,
    classes of `val` of which `train` has no video, or a single class.
    """
    for manifest in (train, val):
        check_labels(manifest, int(manifest.label_S.max()) + 1, advice="every video needs one")
    unknown = np.setdiff1d(val.label_S, train.label_S).tolist()
    if unknown:
        more = ", ..." if len(unknown) > NUM_SHOWN else ""
        raise ValueError(
            f"{val.name} has videos of class {', '.join(map(str, unknown[:NUM_SHOWN]))}{more}, {train.name} has none: "
            "number the classes of both alike"
        )
    num_classes = int(train.label_S.max()) + 1
    if num_classes < 2:
        raise ValueError(f"all videos of {train.name} have the label 0: at least two classes are needed")
    return num_classes
