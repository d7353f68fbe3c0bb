"""How many classes a manifest has, and what is wrong with its labels."""

from __future__ import annotations

import numpy as np
import pytest

from mats_ds.data.classes import Classes, check_labels, check_test_set, count_shared_classes, resolve_classes
from mats_ds.data.manifest import Manifest, read_manifest


def make_manifest(labels, name="set/train.csv"):
    nan = np.full(len(labels), np.nan)
    return Manifest([f"{place}.mp4" for place in range(len(labels))], np.asarray(labels, np.int64), nan, nan, name=name)


def test_labels_names_and_the_recipe_tell_in_this_order(tmp_path):
    manifest, source = make_manifest([0, 2, 1]), tmp_path / "train.csv"
    assert resolve_classes(manifest, source, asked=None).count == 3
    (tmp_path / "train.csv.classes.txt").write_text("run\njump high\nsit\n3 point shot\n")
    named = resolve_classes(manifest, source, asked=None)
    assert (named.count, named.names) == (4, ("run", "jump high", "sit", "3 point shot"))
    assert resolve_classes(manifest, source, asked=7) == type(named)(7, ())


@pytest.mark.parametrize(
    ("labels", "asked", "words"),
    [
        ([0, -1, 1], None, ["1 of 3 videos of set/train.csv has no label", "1.mp4"]),
        ([0, 4, 5], 4, ["2 of 3", "none of the 4 classes 0 to 3", "1.mp4 (4)"]),
        ([0, 0], None, ["at least two classes"]),
    ],
)
def test_labels_that_do_not_fit_are_one_clear_error(labels, asked, words):
    with pytest.raises(ValueError) as caught:
        resolve_classes(make_manifest(labels), None, asked=asked)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_test_set_may_lack_classes():
    check_labels(make_manifest([0, 1]), 9, advice="")


def make_folder(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "clip.mp4").touch()
    return folder


def test_folders_name_the_classes_and_a_test_set_that_numbers_them_otherwise_is_refused(tmp_path):
    train, val = make_folder(tmp_path / "train", ["jump", "run", "sit"]), make_folder(tmp_path / "val", ["run", "sit"])
    classes = resolve_classes(read_manifest(train), train, asked=None)
    assert classes == Classes(3, ("jump", "run", "sit"))
    check_test_set(read_manifest(train), train, classes)
    with pytest.raises(ValueError, match="class 0 is 'run' in val and 'jump' in the training set"):
        check_test_set(read_manifest(val), val, classes)


def count(train: tuple[int, ...], val: tuple[int, ...]) -> int:
    return count_shared_classes(make_manifest(train, "train"), make_manifest(val, "val"))


def test_classes_are_counted_up_to_the_largest_label_of_train():
    assert count((0, 4, 1), (4, 4)) == 5


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        ((0, -1, 1), (0,), "1 of 3 videos of train has no label .*; the first is 1.mp4"),
        ((0, 1), (-1, -1), "2 of 2 videos of val have no label"),
        ((0, 1), (0, 7, 5, 7), "val has videos of class 5, 7, train has none"),
        ((0, 0), (0,), "at least two classes"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(train, val, said):
    with pytest.raises(ValueError, match=said):
        count(train, val)
