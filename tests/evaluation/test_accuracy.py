"""Scores of views become an accuracy: nothing twice, nothing lost, the same bits on any number of ranks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mats_ds.core.proportion import Proportion, wilson_interval
from mats_ds.evaluation.accuracy import (
    VideoScores,
    measure_accuracy,
    rank_labels,
    summarize_accuracy,
    top_classes,
)

NUM_VIDEOS, NUM_VIEWS, NUM_CLASSES = 5, 6, 7


def view_scores():
    """{(sample, view): scores}; view 2 of video 1 and all of video 3 are unreadable."""
    draw = np.random.default_rng(3)
    scores = {
        (sample, view): draw.random(NUM_CLASSES, np.float32) / 3
        for sample, view in itertools.product(range(NUM_VIDEOS), range(NUM_VIEWS))
    }
    return scores | {(1, 2): None} | {(3, view): None for view in range(NUM_VIEWS)}


def scores_of_ranks(world_size, *, block):
    """The views dealt out in blocks, as a ViewSampler does, and merged."""
    ranks = [VideoScores(NUM_VIEWS) for _ in range(world_size)]
    for position, ((sample, view), scores) in enumerate(view_scores().items()):
        ranks[position // block % world_size].add(sample, view, scores)
    for other in ranks[1:]:
        ranks[0].merge(other)
    return ranks[0].finish(NUM_VIDEOS)


@pytest.mark.parametrize(("world_size", "block"), [(2, 6), (2, 4), (3, 1), (4, 5)])
def test_any_split_over_ranks_gives_the_same_bits(world_size, block):
    alone, split = scores_of_ranks(1, block=1), scores_of_ranks(world_size, block=block)
    for one, other in zip(alone, split, strict=True):
        assert one.num_read == other.num_read
        assert (one.mean is None) == (other.mean is None)
        assert one.mean is None or one.mean.tobytes() == other.mean.tobytes()


def test_a_video_has_the_mean_of_its_readable_views():
    merged = scores_of_ranks(1, block=1)
    assert [video.num_read for video in merged] == [6, 5, 6, 0, 6]
    given = view_scores()
    wanted = np.mean([given[1, view].astype(np.float64) for view in (0, 1, 3, 4, 5)], axis=0)
    np.testing.assert_allclose(merged[1].mean, wanted, rtol=1e-15)
    assert merged[3].mean is None


def test_a_view_counted_twice_or_lost_is_noticed():
    scores = VideoScores(2)
    scores.add(0, 1, np.ones(3))
    with pytest.raises(AssertionError, match="twice"):
        scores.add(0, 1, np.ones(3))
    with pytest.raises(AssertionError, match="missing"):
        scores.finish(1)
    scores.add(0, 0, np.ones(3))
    with pytest.raises(AssertionError, match="missing"):
        scores.finish(2)
    other = VideoScores(2)
    other.add(0, 0, np.ones(3))
    with pytest.raises(AssertionError, match="twice"):
        scores.merge(other)


@pytest.mark.parametrize(("hits", "total"), [(30, 50), (1, 7), (6, 7), (0, 10), (10, 10)])
def test_the_interval_ends_where_the_share_lies_just_within_its_95_percent(hits, total):
    """Wilson's interval by its definition: at both ends the share is 1.96 standard errors of that end away."""
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
            [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1],  # true 6: five classes before it, three of them with its own score
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


def test_the_likeliest_classes_of_equal_scores_are_the_lower_ones():
    assert top_classes(np.array([0.1, 0.4, 0.4, 0.0, 0.1]), 3) == [1, 2, 0]
    assert len(top_classes(np.array([0.5, 0.5]))) == 2
