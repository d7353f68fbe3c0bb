"""Token grids, counts and crops."""

from __future__ import annotations

import pytest

from mats_ds.core.clips import CropSpec
from mats_ds.core.token_grid import TokenGrid, count_selection, count_tokens


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


def test_crops_are_parts_of_the_shorter_side():
    assert CropSpec(height_scale=0.5, width_scale=0.75, top=1.0, left=0.0).box(100, 200) == (50, 0, 50, 75)
    assert CropSpec().box(1, 1) == (0, 0, 1, 1)
