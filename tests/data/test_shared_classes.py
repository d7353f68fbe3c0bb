"""Labels of two manifests that belong together, and what is said where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from mats_ds.data.classes import count_shared_classes
from mats_ds.data.manifest import Manifest


def make_manifest(*labels: int, name: str) -> Manifest:
    nan_S = np.full(len(labels), np.nan)
    return Manifest([f"{name}{row}.mp4" for row in range(len(labels))], np.array(labels), nan_S, nan_S, name)


def count(train: tuple[int, ...], val: tuple[int, ...]) -> int:
    return count_shared_classes(make_manifest(*train, name="train"), make_manifest(*val, name="val"))


def test_classes_are_counted_up_to_the_largest_label_of_train():
    assert count((0, 4, 1), (4, 4)) == 5


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        ((0, -1, 1), (0,), "1 of 3 videos of train have no label; the first is train1.mp4"),
        ((0, 1), (-1, -1), "2 of 2 videos of val have no label"),
        ((0, 1), (0, 7, 5, 7), "val has videos of class 5, 7, train has none"),
        ((0, 0), (0,), "at least two classes"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(train, val, said):
    with pytest.raises(ValueError, match=said):
        count(train, val)
