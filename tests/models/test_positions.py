"""Position tables on other grids than the one they were made for."""

from __future__ import annotations

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.models.layers import interpolate_positions, make_positions, sine_cosine_positions

GRID = TokenGrid(num_frames=6, height=16, width=40, tubelet=(2, 4, 8))  # 3 tubelets of 4 x 5 places
WIDTH = 6


def ramp(grid):
    """A table whose three channels are the time, row and column of each token's centre, in parts of
    the clip."""
    axes = [(torch.arange(size) + 0.5) / size for size in (grid.tau, grid.rows, grid.columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def test_a_grid_of_its_own_keeps_the_exact_table():
    table = sine_cosine_positions(60, WIDTH)
    assert torch.equal(make_positions(GRID, WIDTH), table)
    # as many tokens a side
    other_pixels = TokenGrid(num_frames=3, height=64, width=40, tubelet=(1, 16, 8))
    assert torch.equal(make_positions(other_pixels, WIDTH, made_for=GRID), table)
    assert interpolate_positions(table, GRID, GRID) is table


@pytest.mark.parametrize("tau, rows, columns", [(6, 4, 5), (3, 8, 10), (2, 6, 5), (9, 3, 7)])
def test_a_position_in_the_clip_keeps_its_meaning(tau, rows, columns):
    target = TokenGrid(tau, rows, columns, (1, 1, 1))
    moved = interpolate_positions(ramp(GRID), GRID, target)
    assert moved.shape == (target.num_tokens, 3)
    inside = torch.ones(tau, rows, columns, dtype=torch.bool)
    # borders have no neighbour to interpolate with
    for axis, size in enumerate((tau, rows, columns)):
        margin = -(-2 * size // (GRID.tau, GRID.rows, GRID.columns)[axis]) if size != (3, 4, 5)[axis] else 0
        inside.narrow(axis, 0, min(margin, size)).fill_(False)
        inside.narrow(axis, size - min(margin, size), min(margin, size)).fill_(False)
    close = inside.flatten()
    torch.testing.assert_close(moved[close], ramp(target)[close], atol=0.02, rtol=0)
    assert (moved - ramp(target)).abs().max() < 0.2


def test_time_is_interpolated_linearly_between_centres():
    table = torch.arange(4.0)[:, None]  # 4 tubelets of one place, one channel
    moved = interpolate_positions(table, TokenGrid(4, 1, 1, (1, 1, 1)), TokenGrid(8, 1, 1, (1, 1, 1)))
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(moved[:, 0], expected)


def test_a_model_takes_the_positions_of_the_grid_its_weights_come_from():
    longer = GRID.with_tau(6)
    sizes = dict(width=12, depth=1, heads=3, decoder_width=8, decoder_heads=2, decoder_depth=1)
    own = MaskedAutoencoder(grid=longer, **sizes)
    moved = MaskedAutoencoder(grid=longer, position_grid=GRID, **sizes)
    assert torch.equal(own.positions_ND, sine_cosine_positions(120, 12))
    assert torch.equal(moved.positions_ND, interpolate_positions(sine_cosine_positions(60, 12), GRID, longer))
    assert torch.equal(moved.decoder_positions_ND, interpolate_positions(sine_cosine_positions(60, 8), GRID, longer))
    assert (own.position_grid, moved.position_grid) == (longer, GRID)


def test_a_table_of_another_length_is_refused():
    with pytest.raises(ValueError, match="59 rows but its grid has 60 tokens"):
        interpolate_positions(torch.zeros(59, WIDTH), GRID, GRID)
