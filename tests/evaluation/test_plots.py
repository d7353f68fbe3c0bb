"""Pictures of a test with any names and any number of classes: names are text, and the picture has
a bounded size."""

import warnings

import numpy as np
import pytest
from PIL import Image

from mats_ds.evaluation import plots
from mats_ds.evaluation.accuracy import Accuracy, measure_accuracy
from mats_ds.evaluation.plots import MAX_CELLS, SweepPoint, draw_confusion, draw_sweep, find_confused, group_classes
from mats_ds.metering.proportion import Proportion

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


@pytest.mark.parametrize("names", [["up", "down"], ["no", "yes"], list("abcdefg"), ["left", "only", "rise"]])
def test_few_classes_of_short_names_have_a_picture(tmp_path, names):
    draw_confusion(measure(len(names)), names, tmp_path / "a.png", title="run on val.csv")
    check_picture(tmp_path / "a.png")


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


def test_the_most_confused_pairs_come_first_and_nobody_right_is_among_them():
    confusion_CC = np.diag([9, 9, 9, 9])
    confusion_CC[0, 1], confusion_CC[2, 3], confusion_CC[3, 0] = 2, 5, 2
    confusion_CC[3, 3] = 0  # both of class 3 are wrong, 2 of 11 of class 0
    assert find_confused(confusion_CC) == [(2, 3, 5), (3, 0, 2), (0, 1, 2)]
    assert find_confused(np.eye(3, dtype=int)) == []
    assert len(find_confused(np.ones((30, 30), int))) == plots.MAX_PAIRS


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been saved."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def written_in(figure):
    """The texts of a figure that can be seen, and where they stand in pixels."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent()) for text in texts]


@pytest.mark.parametrize("num_classes", [2, 5, 25, 40, 60, 101, 400])
def test_names_or_pairs_can_be_read_inside_the_picture(drawn, num_classes):
    names = [f"Playing a very long instrument {number}" for number in range(num_classes)]
    draw_confusion(measure(num_classes, 400), names, None, title="t " * 40)
    figure, texts = drawn[0], written_in(drawn[0])
    assert max(figure.get_size_inches()) * figure.dpi < MAX_SIDE
    for text, extent in texts:
        if text.get_text().lstrip("\N{MINUS SIGN}").replace(".", "").isdigit():
            continue  # of ticks that lie beyond their axis and are not drawn
        assert extent.x0 > -2 and extent.y0 > -2, text.get_text()
        assert extent.x1 < figure.bbox.width + 2 and extent.y1 < figure.bbox.height + 2, text.get_text()
    shown = " ".join(text.get_text() for text, _ in texts)
    assert ("\N{RIGHTWARDS ARROW}" in shown) == (num_classes > 25)
    axis = figure.axes[0]
    assert axis.get_window_extent().width > 0.35 * figure.bbox.height, "names left no room for the matrix"
    if num_classes <= 60:
        assert all(name in shown for name in names)
        sides = sorted(label.get_window_extent().y0 for label in axis.get_yticklabels())
        heights = [label.get_window_extent().height for label in axis.get_yticklabels()]
        assert np.diff(sides).min() >= 0.8 * max(heights), "names stand on each other"


def test_pairs_of_names_that_differ_at_their_end_can_be_told_apart(drawn):
    names = [f"Moving something across a surface until it falls down, variant {number}" for number in range(30)]
    draw_confusion(measure(30, 400), names, None, title="t")
    pairs = [text.get_text() for text, _ in written_in(drawn[0]) if "\N{RIGHTWARDS ARROW}" in text.get_text()]
    assert len(set(pairs)) == len(pairs) == plots.MAX_PAIRS
    assert all(one != other for one, other in (pair.split(" \N{RIGHTWARDS ARROW} ") for pair in pairs))


def overlaps(one, other):
    return min(one.x1, other.x1) > max(one.x0, other.x0) and min(one.y1, other.y1) > max(one.y0, other.y0)


@pytest.mark.parametrize("ratios", [(0.6,), (0.3, 0.6, 1.0), (0.3, 0.32, 0.34, 1.0), tuple(np.arange(1, 11) / 10)])
def test_no_label_of_a_sweep_covers_a_line_or_another_label(drawn, ratios):
    points = [SweepPoint(ratio, measure(7, 150), int(1e11 * ratio), "ours", 20 - 12 * ratio) for ratio in ratios]
    draw_sweep(points, None, title="t", speed_note="CPU")
    written_in(drawn[0])
    for axis in drawn[0].axes:
        labels = [text.get_window_extent() for text in axis.texts if text.get_text()]
        assert sorted(text.get_text() for text in axis.texts if text.get_text()) == sorted(f"{ratio:g}" for ratio in ratios)
        curve = axis.transData.transform(np.stack(axis.lines[0].get_data(), axis=1))
        for number, box in enumerate(labels):
            assert not any(overlaps(box, other) for other in labels[number + 1 :])
            for start, end in zip(curve[:-1], curve[1:], strict=True):
                line = start + (end - start) * np.linspace(0, 1, 200)[:, None]
                assert not ((line > box.min) & (line < box.max)).all(axis=1).any()
        assert axis.get_xlabel() and drawn[0].axes[0].get_ylabel().count("%")


def test_a_sweep_without_speeds_says_so(drawn):
    draw_sweep([SweepPoint(0.5, measure(7), 10**9, "ours", None)], None, title="t", speed_note="CPU")
    assert "not measured" in [text.get_text() for text in drawn[0].axes[1].texts]
