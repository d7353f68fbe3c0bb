"""Scores of views become scores of videos: nothing twice, nothing lost, the same bits on any number
of ranks."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mats_ds.core.clips import BadClip
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.scoring import VideoScores, score_videos

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


def test_what_fills_up_the_last_batch_is_no_unreadable_video():
    """On several ranks another rank than the one that read the video may show it as padding."""
    bad = (BadClip("torn.mp4", 1, "torn"), BadClip("torn.mp4", -1, "torn"))
    clips = SimpleNamespace(bad=bad)
    views = [SimpleNamespace(sample=sample, clip=0, crop=0) for sample in (0, 1)] + [None]
    batch = SimpleNamespace(clips=clips, views=views, readable=[True, False, False])
    alone = RankInfo(0, 0, 1, 1, torch.device("cpu"))
    sizes = dict(num_videos=2, num_clips=1, num_crops=1)
    scored = score_videos([batch], lambda clips: torch.ones(3, NUM_CLASSES), **sizes, ranks=alone)
    assert scored.bad == [bad[0]] and [video.num_read for video in scored.videos] == [1, 0]
