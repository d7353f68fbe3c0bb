"""How often each token is visible and how often a target, over many clips: what every strategy
promises.

Visible are V and targets M of N tokens. A strategy that looks at no motion gives each token the
same V / N and M / N over its seeds. mats and run_length look at the scores: with scores that any
order is as likely for, the same; with fixed scores only kept tokens occur, each as often as the
next (test_selection.py); with equal scores the first tokens are kept, in every clip.
"""

from __future__ import annotations

import pytest
import torch

from mats_ds import TokenGrid, select_tokens

# 4 tubelets of 6 x 10 places: 240 tokens
GRID = TokenGrid(num_frames=8, height=24, width=40, tubelet=(2, 4, 4))
# 6 tubelets of 4 x 6: no whole round of a cell
SHORT = TokenGrid(num_frames=12, height=16, width=24, tubelet=(2, 4, 4))
# 3 tubelets of 5 x 3: cells do not divide it
ODD = TokenGrid(num_frames=6, height=20, width=12, tubelet=(2, 4, 4))
NUM_KEYS = 3000
# standard deviations; the seeds are fixed, so that nothing here is left to chance
MAX_DEVIATIONS = 5.0


def count_times(strategy: str, grid: TokenGrid, seeds: torch.Tensor, motion: torch.Tensor | None = None, **ratios):
    """(times visible [N], times a target [N], V, M)."""
    motion = torch.zeros(len(seeds), grid.num_tokens) if motion is None else motion
    selection = select_tokens(motion, strategy=strategy, grid=grid, seed_B=seeds, **ratios)
    indices = (selection.visible_BV, selection.target_BM)
    return *(torch.bincount(index.flatten(), minlength=grid.num_tokens) for index in indices), *(i.shape[1] for i in indices)


def deviations(times: torch.Tensor, share: float) -> torch.Tensor:
    """How far from `share` of the clips, in standard deviations of independent draws."""
    return (times - NUM_KEYS * share) / (NUM_KEYS * share * (1 - share)) ** 0.5


SEEDS = {
    "counted": torch.arange(NUM_KEYS),
    "drawn": torch.randint(0, 1 << 62, (NUM_KEYS,), generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize(("grid", "seeds"), [(GRID, "counted"), (GRID, "drawn"), (SHORT, "counted"), (ODD, "counted")])
@pytest.mark.parametrize("strategy", ["random_drop", "tube", "random", "running_cell", "mats", "run_length"])
def test_every_token_is_visible_and_a_target_equally_often(strategy, grid, seeds):
    scores = torch.rand(NUM_KEYS, grid.num_tokens, generator=torch.Generator().manual_seed(4))
    motion = scores if strategy in ("mats", "run_length") else None
    visible, target, num_visible, num_targets = count_times(strategy, grid, SEEDS[seeds], motion, visible_ratio=0.2)
    assert deviations(visible, num_visible / grid.num_tokens).abs().max() < MAX_DEVIATIONS
    assert deviations(target, num_targets / grid.num_tokens).abs().max() < MAX_DEVIATIONS


@pytest.mark.parametrize("strategy", ["mats", "run_length"])
def test_scores_decide_what_is_kept_and_the_seed_what_of_it_is_visible(strategy):
    motion = torch.rand(1, 240, generator=torch.Generator().manual_seed(5)).expand(NUM_KEYS, -1)
    visible, target, num_visible, num_targets = count_times(strategy, GRID, SEEDS["counted"], motion)
    kept = motion[0].argsort(descending=True)[: num_visible + num_targets]
    assert torch.equal(visible + target, torch.zeros(240, dtype=torch.int64).index_fill(0, kept, NUM_KEYS))
    assert deviations(visible[kept], num_visible / len(kept)).abs().max() < MAX_DEVIATIONS


def test_equal_scores_keep_the_first_tokens_of_every_clip():
    """By design, so that a clip that stands still gives the same tokens everywhere; real scores are
    hardly ever equal."""
    visible, target, num_visible, num_targets = count_times("mats", GRID, SEEDS["counted"])
    num_kept = num_visible + num_targets
    assert (visible + target).tolist() == [NUM_KEYS] * num_kept + [0] * (240 - num_kept)
