"""Scores of runs against a loop over tokens, against the published rule, and what a drift and a
threshold do to them."""

from __future__ import annotations

import pytest
import torch

from mats_ds import TokenGrid, select_tokens
from mats_ds.tokens.run_length import score_runs

# 5 tubelets of 3 x 5 places, 75 tokens of 96 values
GRID = TokenGrid(num_frames=10, height=12, width=20, tubelet=(2, 4, 4))


def random_patches(grid=GRID, batch=2, spread=40):
    """Patches whose frames wander by a few grey levels, so that a threshold among them ends some
    runs and not others."""
    generator = torch.Generator().manual_seed(0)
    frame_values = grid.patch_values // grid.tubelet[0]
    steps = torch.randint(-spread, spread + 1, (batch, grid.num_frames, grid.tokens_per_tubelet, 1), generator=generator)
    frames = (128 + steps.cumsum(dim=1) + torch.randint(0, 9, (1, 1, 1, frame_values), generator=generator)).clamp(0, 255)
    # batch, tubelet, place, frame, value
    tubelets = frames.unflatten(1, (grid.tau, grid.tubelet[0])).movedim(2, 3)
    return tubelets.reshape(batch, grid.num_tokens, grid.patch_values).to(torch.uint8)


def difference(earlier, later, frame_values):
    """Mean absolute difference, front of the earlier patch against back of the later one, in parts
    of the whole range."""
    pairs = zip(earlier[:frame_values], later[-frame_values:], strict=True)
    return sum(abs(a - b) for a, b in pairs) / frame_values / 255


def looped_scores(patches, grid, threshold):
    places, frame_values = grid.tokens_per_tubelet, grid.patch_values // grid.tubelet[0]
    scores = torch.zeros(patches.shape[:2])
    for clip, tokens in enumerate(patches.tolist()):
        for place in range(places):
            start = tokens[place]
            for tubelet in range(1, grid.tau):
                now = tokens[tubelet * places + place]
                scores[clip, tubelet * places + place] = score = difference(start, now, frame_values)
                start = now if score > threshold else start
            scores[clip, place] = 1 + scores[clip, places + place]
    return scores


@pytest.mark.parametrize("threshold", [0.05, 0.15, 0.9])
def test_scores_equal_the_loop(threshold):
    patches = random_patches()
    torch.testing.assert_close(score_runs(patches, GRID, threshold=threshold), looped_scores(patches, GRID, threshold))


def test_the_threshold_decides_which_patches_begin_a_run():
    patches = random_patches()
    begun = [int((score_runs(patches, GRID, threshold=threshold) > threshold).sum()) for threshold in (0.05, 0.15, 0.9)]
    assert 150 > begun[0] > begun[1] > begun[2] == 30, "all, some, and the first tubelet alone"


def test_with_a_threshold_that_every_change_passes_it_is_the_published_comparison_of_neighbours():
    # one frame a patch: front and back are one
    grid = TokenGrid(num_frames=5, height=4, width=12, tubelet=(1, 4, 4))
    patches = random_patches(grid)
    tubelets = patches.float().unflatten(1, (5, 3))
    neighbours = (tubelets[:, 1:] - tubelets[:, :-1]).abs().mean(dim=-1).flatten(1) / 255
    assert neighbours.min() > 0
    torch.testing.assert_close(score_runs(patches, grid, threshold=1e-9)[:, 3:], neighbours)


def test_as_many_as_begin_runs_are_exactly_those_and_the_count_stays_what_was_asked_for():
    patches, threshold = random_patches(batch=1), 0.15
    score = score_runs(patches, GRID, threshold=threshold)
    begins = (score > threshold)[0].nonzero()[:, 0]
    share = len(begins) / 75 + 1e-6
    kept = select_tokens(score, strategy="run_length", keep_ratio=share, visible_ratio=share, grid=GRID).visible_BV[0]
    assert torch.equal(kept, begins)
    # fewer than the first tubelet, as many, more than begin runs
    for keep_ratio in (0.04, 0.2, 0.6):
        picked = select_tokens(score, strategy="run_length", keep_ratio=keep_ratio, visible_ratio=keep_ratio, grid=GRID)
        assert picked.visible_BV.shape == (1, round(keep_ratio * 75))
        if keep_ratio <= 0.2:
            assert picked.visible_BV.max() < 15, "the first tubelet comes first"


def test_a_slow_drift_adds_up_until_it_begins_a_run():
    patches = torch.full((1, 75, 96), 100, dtype=torch.uint8)
    for tubelet in range(5):
        patches[0, tubelet * 15 + 7] += 10 * tubelet  # place 7 drifts by 10 grey levels a tubelet
    score = score_runs(patches, GRID, threshold=25 / 255)[0, 7::15]
    torch.testing.assert_close(score * 255, torch.tensor([255.0 + 10, 10, 20, 30, 10]))


def test_a_static_clip_keeps_its_first_tubelet():
    score = score_runs(torch.full((2, 75, 96), 9, dtype=torch.uint8), GRID, threshold=0.02)
    kept = select_tokens(score, strategy="run_length", keep_ratio=0.2, visible_ratio=0.2, grid=GRID).visible_BV
    assert kept.tolist() == [list(range(15))] * 2


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="74 tokens but the grid has 75"):
        score_runs(torch.zeros(1, 74, 96, dtype=torch.uint8), GRID, threshold=0.1)
    with pytest.raises(ValueError, match="at least two tubelets"):
        score_runs(torch.zeros(1, 15, 96, dtype=torch.uint8), GRID.with_tau(1), threshold=0.1)
