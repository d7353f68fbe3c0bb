"""Pictures of a test with any names and any number of classes: names are text, and the picture has
a bounded size."""

import warnings

import numpy as np
import pytest
from PIL import Image

from mats_ds.core.proportion import Proportion
from mats_ds.evaluation.accuracy import Accuracy, measure_accuracy
from mats_ds.evaluation.plots import MAX_CELLS, SweepPoint, draw_confusion, draw_sweep, group_classes

NAMES = [r"$\frac{$", r"a$_b$c", "two\nlines", "x" * 10_000, "日本 🎬", "שלום", "\u202e\x1b[2J\x00\udcff"]
TITLE = r"$\frac{$ on $x" + "\n" + "y" * 10_000
MAX_SIDE = 2200  # pixels


def measure(num_classes, num_videos=40):
    generator = np.random.default_rng(3)
    scores_SC = generator.random((num_videos, num_classes))
    return measure_accuracy(scores_SC, generator.integers(num_classes, size=num_videos))


def check_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG" and max(picture.size) < MAX_SIDE


def test_names_are_text_and_nothing_is_said_about_their_letters(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of letters that the font lacks
        draw_confusion(measure(len(NAMES)), NAMES, tmp_path / "a.png", title=TITLE)
        points = [SweepPoint(ratio, measure(7), 10**9, "ours", 3.0) for ratio in (0.3, 1.0)]
        draw_sweep(points, tmp_path / "b.png", title=TITLE, speed_note=r"$\frac{$ GPU")
    check_picture(tmp_path / "a.png")
    check_picture(tmp_path / "b.png")


def test_many_long_names_leave_the_picture_its_size(tmp_path):
    draw_confusion(measure(60), ["$" + "m" * 1000] * 60, tmp_path / "a.png", title=TITLE)
    check_picture(tmp_path / "a.png")


def test_more_classes_than_pixels_are_drawn_in_groups(tmp_path):
    confusion_CC = np.zeros((2501, 2501), np.int64)
    confusion_CC[0, 0], confusion_CC[1, 2], confusion_CC[2500, 3] = 5, 7, 11
    grouped_GG, group = group_classes(confusion_CC)
    assert group == 3 and grouped_GG.shape == (834, 834) and len(grouped_GG) <= MAX_CELLS
    assert grouped_GG[0, 0] == 12 and grouped_GG[833, 1] == 11 and grouped_GG.sum() == 23
    share = Proportion(5, 23)
    draw_confusion(Accuracy(share, share, 5, (share,) * 2501, confusion_CC), ["a"] * 2501, tmp_path / "a.png", title="t")
    check_picture(tmp_path / "a.png")


@pytest.mark.parametrize("num_classes", [1, 2, MAX_CELLS])
def test_fewer_classes_have_a_cell_each(num_classes):
    confusion_CC = np.eye(num_classes, dtype=np.int64)
    grouped_GG, group = group_classes(confusion_CC)
    assert group == 1 and (grouped_GG == confusion_CC).all()
