"""Token grids, the options of the method, and counts of tokens."""

from __future__ import annotations

import pytest
import torch

from mats_ds.core.token_grid import STRATEGIES, TokenGrid, TokenPruning, count_selection, count_tokens
from mats_ds.tokens.selection import select_tokens


def test_the_usual_grid_has_1568_tokens():
    grid = TokenGrid(num_frames=16, height=224, width=224, tubelet=(2, 16, 16))
    assert (grid.tau, grid.rows, grid.columns, grid.tokens_per_tubelet, grid.num_tokens) == (8, 14, 14, 196, 1568)
    assert grid.patch_values == 1536


def test_any_shape_that_divides():
    grid = TokenGrid(num_frames=6, height=64, width=160, tubelet=(3, 8, 32))
    assert (grid.tau, grid.rows, grid.columns, grid.num_tokens) == (2, 8, 5, 80)
    assert grid.with_tau(5).num_frames == 15


def test_a_side_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"width=230 .* multiple of 16"):
        TokenGrid(width=230)


@pytest.mark.parametrize(
    ("ratio", "num_tokens", "expected"),
    [(0.3, 1568, 470), (0.1, 1568, 156), (0.6, 1568, 940), (0.1, 10, 1), (0.3, 10, 3), (1 / 3, 9, 3)],
)
def test_counts_are_the_integer_part_of_the_exact_product(ratio, num_tokens, expected):
    assert count_tokens(ratio, num_tokens) == expected


def test_a_ratio_above_one_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        count_tokens(1.5, 10)


@pytest.mark.parametrize(
    ("strategy", "visible", "targets"),
    [("mats", 156, 314), ("random_drop", 156, 314), ("random", 156, 1412), ("tube", 160, 1408), ("running_cell", 160, 704)],
)
def test_counts_of_each_strategy_on_the_usual_grid(strategy, visible, targets):
    counts = count_selection(TokenGrid(), strategy=strategy, keep_ratio=0.3, visible_ratio=0.1)
    assert (counts.visible, counts.targets, counts.kept) == (visible, targets, visible + targets)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strategy": "mat"}, "mats, random_drop, run_length, tube, random, running_cell"),
        ({"distance": "l3"}, "l2, l1, cosine"),
        ({"feature": "flow"}, "embedding, pixels"),
        ({"keep_ratio": 0.0}, "keep_ratio is above 0 and at most 1"),
        ({"visible_ratio": 1.5}, "visible_ratio is above 0 and at most 1"),
        ({"compensate_camera": True, "distance": "cosine"}, "choose l2 or l1"),
        ({"compensate_camera": True, "strategy": "run_length"}, "run_length has its own"),
    ],
)
def test_options_of_the_method_that_do_not_go_together_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        TokenPruning(**options)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_counts_and_selects(strategy):
    grid = TokenGrid(num_frames=6, height=8, width=12, tubelet=(2, 2, 2))  # 3 x 4 x 6 = 72 tokens
    counts = TokenPruning(strategy, keep_ratio=0.5, visible_ratio=0.25).counts(grid)
    selection = select_tokens(torch.rand(2, 72), strategy=strategy, keep_ratio=0.5, visible_ratio=0.25, grid=grid)
    assert selection.visible_BV.shape == (2, counts.visible) and selection.target_BM.shape == (2, counts.targets)
