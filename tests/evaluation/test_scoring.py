"""Scores of views become scores of videos: nothing twice, nothing lost, the same bits on any number
of ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mats_ds.config.recipe import ClipSection
from mats_ds.data.loading.build import read_views
from mats_ds.data.manifest import read_manifest
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.scoring import VideoScores, score_videos
from tests.ranks import run_ranks

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


def score_on_ranks(folder):
    """(row and name of each unreadable video, number of views read of each video) on rank 0; None
    on rank 1. And the rows that this rank's batches name as bad."""
    dist.init_process_group("gloo")
    rank, cpu = dist.get_rank(), torch.device("cpu")
    manifest = read_manifest(folder)
    section = ClipSection(num_frames=2, stride=1, height=32, width=32, tubelet=(2, 8, 8))
    options = dict(num_clips=1, num_crops=1, num_frames=2, micro_batch=1, device=cpu, num_workers=0)
    batches = list(read_views(manifest, recipe_clip=section, rank=rank, world_size=2, **options))
    scored = score_videos(
        batches,
        lambda clips: torch.ones(len(clips.label_B), 3),
        num_videos=len(manifest),
        num_clips=1,
        num_crops=1,
        ranks=RankInfo(rank, rank, 2, 2, cpu),
    )
    named = [bad.sample for batch in batches for bad in batch.clips.bad]
    if scored is None:
        return named, None
    return named, ([(bad.sample, bad.path) for bad in scored.bad], [video.num_read for video in scored.videos])


def test_padding_of_an_unreadable_last_video_is_no_video(tmp_path):
    """Three videos on two ranks: the second rank's last clip shows the last video once more."""
    write_synthetic_set(tmp_path / "set", num_videos=2, num_frames=4, height=48, width=48)
    for name in ("manifest.csv", "motion.json"):
        (tmp_path / "set" / name).unlink()
    broken = tmp_path / "set" / "z_broken.mp4"
    broken.write_bytes(b"no video")
    (named, scored), (named_by_padding, nothing) = run_ranks(score_on_ranks, 2, tmp_path / "set")
    assert named == [2] and named_by_padding == [-1] and nothing is None
    assert scored == ([(2, str(broken))], [1, 1, 0])
