"""Position tables for grids other than the one they were made for: [N_source, D] -> [N_target, D].

A model's positions are the fixed sine-cosine table over its tokens (VideoMAE, arXiv 2203.12602). Weights that were trained on
another number of frames or another resolution know the table of *that* grid, so it is resized to the new one: bicubic over
rows and columns without aligned corners, as VideoMAE's fine-tuning script does, and linear over time, as Unmasked Teacher
(arXiv 2303.16058) and InternVideo do. No anti-aliasing: the table's fastest channels turn by one radian a token and would
be averaged away.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from mats_ds.clips import TokenGrid
from mats_ds.models.blocks import sine_cosine_positions


def make_positions(grid: TokenGrid, width: int, *, made_for: TokenGrid | None = None) -> torch.Tensor:
    """positions_ND, float32, of a model on `grid`: the sine-cosine table of `made_for` (None: `grid` itself), resized to it."""
    source = made_for or grid
    return interpolate_positions(sine_cosine_positions(source.num_tokens, width), source, grid)


def interpolate_positions(positions_ND: torch.Tensor, source_grid: TokenGrid, target_grid: TokenGrid) -> torch.Tensor:
    """positions_ND of the target grid, of the source's type; the very same tensor where both grids have as many tokens a side.

    positions_ND: one row for each token of `source_grid`, time-major. Space is resized first (bicubic), then time (linear).
    Raises ValueError when the table has another number of rows than the source grid has tokens.
    """
    if positions_ND.shape[0] != source_grid.num_tokens:
        raise ValueError(
            f"the position table has {positions_ND.shape[0]} rows but its grid has {source_grid.num_tokens} tokens: {source_grid}"
        )
    source, target = sides(source_grid), sides(target_grid)
    if source == target:
        return positions_ND
    maps = rearrange(positions_ND.float(), "(t h w) d -> t d h w", t=source[0], h=source[1], w=source[2])
    if source[1:] != target[1:]:
        maps = F.interpolate(maps, size=target[1:], mode="bicubic", align_corners=False)
    if source[0] != target[0]:
        lines = rearrange(maps, "t d h w -> (h w) d t")
        lines = F.interpolate(lines, size=target[0], mode="linear", align_corners=False)
        maps = rearrange(lines, "(h w) d t -> t d h w", h=target[1])
    return rearrange(maps, "t d h w -> (t h w) d").to(positions_ND.dtype)


def sides(grid: TokenGrid) -> tuple[int, int, int]:
    """(tau, rows, columns): two grids with the same sides number their tokens alike, whatever their tubelets measure."""
    return grid.tau, grid.rows, grid.columns
