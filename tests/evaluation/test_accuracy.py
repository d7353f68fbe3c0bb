"""Scores become an accuracy: by hand, with its interval, and with NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mats_ds.evaluation.accuracy import (
    measure_accuracy,
    rank_labels,
    summarize_accuracy,
    top_classes,
)
from mats_ds.evaluation.plots import SweepPoint
from mats_ds.evaluation.results import describe_points
from mats_ds.metering.proportion import Proportion, wilson_interval


@pytest.mark.parametrize(("hits", "total"), [(30, 50), (1, 7), (6, 7), (0, 10), (10, 10)])
def test_the_interval_ends_where_the_share_lies_just_within_its_95_percent(hits, total):
    """Wilson's interval by its definition: at both ends the share is 1.96 standard errors of that
    end away."""
    low, high = wilson_interval(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(hits / total - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / total), rel=1e-12)
    assert (low == 0) == (hits == 0) and (high == 1) == (hits == total)


def test_no_video_has_no_accuracy():
    assert math.isnan(Proportion(0, 0).value)
    empty = measure_accuracy(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert summarize_accuracy(empty)["top1"]["value"] is None
    assert summarize_accuracy(empty)["mean_class_accuracy"] is None


def test_accuracy_by_hand():
    scores_SC = np.array(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],  # true 0: first
            [0.5, 0.4, 0.1, 0.0, 0.0, 0.0, 0.0],  # true 1: second
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],  # true 0: last of seven
            # true 6: five classes before it, three of them with its own score
            [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1],
        ]
    )
    label_S = np.array([0, 1, 0, 6])
    assert rank_labels(scores_SC, label_S).tolist() == [0, 1, 6, 6]
    accuracy = measure_accuracy(scores_SC, label_S)
    assert (accuracy.top1, accuracy.top5, accuracy.num_top) == (Proportion(1, 4), Proportion(2, 4), 5)
    assert accuracy.classes == (Proportion(1, 2), Proportion(0, 1), *[Proportion(0, 0)] * 4, Proportion(0, 1))
    assert accuracy.mean_class == pytest.approx((1 / 2 + 0 + 0) / 3)
    rows, columns = np.nonzero(accuracy.confusion_CC)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 0), (0, 6), (1, 0), (6, 0)]


def test_a_diverged_model_predicts_class_0():
    """As argmax has it, in torch and NumPy; it is not right by comparing false with NaN."""
    accuracy = measure_accuracy(np.full((3, 7), np.nan), np.array([0, 1, 6]))
    assert (accuracy.top1, accuracy.top5, accuracy.classes[0]) == (Proportion(1, 3), Proportion(2, 3), Proportion(1, 1))


def test_the_likeliest_classes_of_equal_scores_are_the_lower_ones():
    assert top_classes(np.array([0.1, 0.4, 0.4, 0.0, 0.1]), 3) == [1, 2, 0]
    assert len(top_classes(np.array([0.5, 0.5]))) == 2


@pytest.mark.parametrize(("num_classes", "is_named"), [(2, False), (4, False), (5, False), (6, True)])
def test_the_top_5_is_named_only_where_there_are_more_classes(num_classes, is_named):
    accuracy = measure_accuracy(np.eye(num_classes), np.arange(num_classes))
    text = "\n".join(describe_points([SweepPoint(0.5, accuracy, 10**9, "ours", None)]))
    assert "top-1 100.00%" in text and "mean of classes 100.00%" in text
    assert ("top-5" in text) == is_named and text.count("top-") == 1 + is_named
