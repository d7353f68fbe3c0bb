"""Adaptive frame selection: the draw of tubelets."""

from __future__ import annotations

import itertools

import pytest
import torch

from mats_ds import TokenGrid, select_frames
from mats_ds.tokens.frames import select_fullest_frames

# 4 candidate tubelets of 6 places
GRID = TokenGrid(num_frames=8, height=8, width=12, tubelet=(2, 4, 4))


def motion_with_counts(counts, batch):
    """Scores whose top 50% (12 of 24 tokens) lie in the tubelets as often as `counts` says."""
    motion = torch.zeros(4, 6)
    for tubelet, count in enumerate(counts):
        motion[tubelet, :count] = 1.0
    return motion.flatten().expand(batch, -1)


def test_tubelets_are_distinct_and_in_the_order_of_time():
    tubelets = select_frames(torch.rand(50, 24), GRID, num_tubelets=3)
    assert tubelets.shape == (50, 3) and tubelets.dtype == torch.int64
    assert (tubelets.diff(dim=1) > 0).all()


def test_frames_follow_successive_sampling():
    counts, draws = (6, 3, 2, 1), 20_000
    tubelets = select_frames(motion_with_counts(counts, draws), GRID, keep_ratio=0.5, num_tubelets=2, seed_B=torch.arange(draws))
    total = sum(counts)
    for pair in itertools.combinations(range(4), 2):
        probability = sum(counts[a] / total * counts[b] / (total - counts[a]) for a, b in (pair, pair[::-1]))
        seen = float((tubelets == torch.tensor(pair)).all(dim=1).float().mean())
        spread = (probability * (1 - probability) / draws) ** 0.5
        assert abs(seen - probability) < 5 * spread, (pair, seen, probability)


def test_a_tubelet_without_marked_tokens_comes_last_and_breaks_nothing():
    motion = motion_with_counts((6, 0, 6, 0), 200)
    assert (select_frames(motion, GRID, keep_ratio=0.5, num_tubelets=2) == torch.tensor([0, 2])).all()
    three = select_frames(motion, GRID, keep_ratio=0.5, num_tubelets=3)
    assert ((three == 0) | (three == 2)).sum(dim=1).eq(2).all()
    assert {1, 3} <= set(three.flatten().tolist())


def test_the_seed_fixes_the_frames():
    motion = torch.rand(2, 24)
    seeds = torch.tensor([3, 4])
    assert torch.equal(
        select_frames(motion, GRID, num_tubelets=2, seed_B=seeds), select_frames(motion, GRID, num_tubelets=2, seed_B=seeds)
    )


def test_the_fullest_tubelets_are_the_mode_and_ties_go_to_the_earlier():
    motion = torch.cat([motion_with_counts(counts, 1) for counts in ((6, 0, 4, 2), (3, 3, 3, 3), (0, 1, 6, 5))])
    tubelets = select_fullest_frames(motion, GRID, keep_ratio=0.5, num_tubelets=2)
    assert tubelets.tolist() == [[0, 2], [0, 1], [2, 3]]


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="cannot choose 5 of 4"):
        select_frames(torch.zeros(1, 24), GRID, num_tubelets=5)
    with pytest.raises(ValueError, match="23 tokens but the candidates have 24"):
        select_frames(torch.zeros(1, 23), GRID, num_tubelets=2)
