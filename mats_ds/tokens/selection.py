"""Select the tokens that the encoder sees and those that are reconstructed: motion [B, N] ->
TokenSelection(visible [B, V], target [B, M]).

`mats` is the method (arXiv 2211.10636, METHOD section 2). `tube` and `random` are VideoMAE's masks
(arXiv 2203.12602), `running_cell` is VideoMAE V2's decoder mask (arXiv 2303.16727), and
`random_drop` is the control: MATS's counts, at random. `run_length` keeps the highest scores as
`mats` does, but those of run-length tokenization (arXiv 2411.05222). Every strategy gives the same
number of tokens for every clip, so batches need no padding and no attention mask. Each clip's
selection depends on its seed alone.
"""

from __future__ import annotations

import torch

from mats_ds.core.token_grid import TokenCounts, TokenGrid, TokenSelection, count_selection
from mats_ds.tokens.seeded_random import random_bits, random_order, sample_seeds

# Streams of one seed, so that the random numbers of one clip are independent of each other.
# 5 is that of frames.py
STREAM_VISIBLE, STREAM_KEPT, STREAM_TUBES, STREAM_CELLS, STREAM_PHASE = 1, 2, 3, 4, 6

CELL_SIDE = 2
NUM_PHASES = CELL_SIDE**2


def select_tokens(
    motion_BN: torch.Tensor,
    *,
    strategy: str = "mats",
    keep_ratio: float = 0.3,
    visible_ratio: float = 0.1,
    grid: TokenGrid | None = None,
    generator: torch.Generator | None = None,
    seed_B: torch.Tensor | None = None,
) -> TokenSelection:
    """Visible and target token indices of each clip; int64, ascending, disjoint.

    motion_BN: scores of `score_motion`, for run_length of `score_runs`; higher = more motion
    (strategies that ignore motion use only its shape and device). `keep_ratio` and `visible_ratio`
    are fractions of all N tokens (0.3 and 0.1 keep 470 of 1568 and show 156); for tube, random and
    running_cell everything that is not visible may become a target and `keep_ratio` has no meaning.
    With equal ratios all kept tokens are visible and there are no targets (fine-tuning). `grid` is
    needed by tube and running_cell. Randomness comes from `seed_B` (int64, one seed per clip), else
    from `generator`, else from torch's global generator. Equal scores are ranked by token index, so
    a static clip still gives a valid, deterministic pick.
    Raises ValueError for an unknown strategy, a missing or different grid, or ratios that leave no
    token.
    """
    batch, num_tokens = motion_BN.shape
    if grid is None:
        if strategy in ("tube", "running_cell"):
            raise ValueError(f"strategy {strategy!r} works on positions in the frame: pass grid=TokenGrid(...)")
        grid = TokenGrid(num_tokens, 1, 1, (1, 1, 1))
    if grid.num_tokens != num_tokens:
        raise ValueError(f"motion has {num_tokens} tokens but the grid has {grid.num_tokens}: {grid}")
    counts = count_selection(grid, strategy=strategy, keep_ratio=keep_ratio, visible_ratio=visible_ratio)
    if counts.visible < 1 or counts.targets < 0:
        raise ValueError(
            f"keep_ratio={keep_ratio} and visible_ratio={visible_ratio} of {num_tokens} tokens give {counts.visible} visible and "
            f"{counts.targets} target tokens: raise visible_ratio, or keep_ratio above it"
        )
    if seed_B is None:
        seed_B = sample_seeds(batch, device=motion_BN.device, generator=generator)
    if strategy in ("mats", "run_length"):
        return split_kept(rank_by_motion(motion_BN)[:, : counts.kept], counts, seed_B)
    if strategy == "random_drop":
        return split_kept(random_order(seed_B, num_tokens, stream=STREAM_KEPT)[:, : counts.kept], counts, seed_B)
    if strategy == "random":
        return split_kept(random_order(seed_B, num_tokens, stream=STREAM_KEPT), counts, seed_B)
    if strategy == "tube":
        return select_tube(grid, counts, seed_B)
    return select_running_cell(grid, counts, seed_B)


def rank_by_motion(motion_BN: torch.Tensor) -> torch.Tensor:
    """[B, N] token indices from the most motion to the least; equal scores in the order of their
    index."""
    return motion_BN.argsort(dim=1, descending=True, stable=True)


def split_kept(kept_BK: torch.Tensor, counts: TokenCounts, seed_B: torch.Tensor) -> TokenSelection:
    """A uniformly random part of the kept tokens becomes visible, the others become targets."""
    kept_BK = kept_BK.sort(dim=1).values
    order_BK = random_order(seed_B, counts.kept, stream=STREAM_VISIBLE)
    visible_BV = kept_BK.gather(1, order_BK[:, : counts.visible]).sort(dim=1).values
    target_BM = kept_BK.gather(1, order_BK[:, counts.visible :]).sort(dim=1).values
    return TokenSelection(visible_BV, target_BM)


def sample_tubes(grid: TokenGrid, num_visible: int, seed_B: torch.Tensor) -> torch.Tensor:
    """[B, tau * L] bool: of the L positions in the frame the same random ones visible in every
    tubelet."""
    visible_per_tubelet = num_visible // grid.tau
    order_BL = random_order(seed_B, grid.tokens_per_tubelet, stream=STREAM_TUBES)
    visible_BL = torch.zeros_like(order_BL, dtype=torch.bool).scatter_(1, order_BL[:, :visible_per_tubelet], True)
    return visible_BL.repeat(1, grid.tau)


def indices_where(mask_BN: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count] ascending indices of the true entries of a mask that has `count` of them in every
    row."""
    return mask_BN.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]


def select_tube(grid: TokenGrid, counts: TokenCounts, seed_B: torch.Tensor) -> TokenSelection:
    """VideoMAE's tube mask: positions sampled once per clip; every other token is a target."""
    visible_BN = sample_tubes(grid, counts.visible, seed_B)
    return TokenSelection(indices_where(visible_BN, counts.visible), indices_where(~visible_BN, counts.targets))


def running_cells(grid: TokenGrid, phase_B: torch.Tensor) -> torch.Tensor:
    """[B, N] bool: of every cell of 2 x 2 positions two are kept, and the pair moves on by one
    position each tubelet.

    phase_B: int64, the pair's position in the first tubelet. Source: VideoMAE V2's decoder mask
    (arXiv 2303.16727), with the order of its public code: positions row by row, 0 1 over 2 3, so
    that rows take turns with diagonals.
    """
    time, row, column = torch.meshgrid(
        torch.arange(grid.tau, device=phase_B.device),
        torch.arange(grid.rows, device=phase_B.device),
        torch.arange(grid.columns, device=phase_B.device),
        indexing="ij",
    )
    position_N = (CELL_SIDE * (row % CELL_SIDE) + column % CELL_SIDE + time).flatten()
    return (position_N + phase_B[:, None]) % NUM_PHASES >= NUM_PHASES // 2


def select_running_cell(grid: TokenGrid, counts: TokenCounts, seed_B: torch.Tensor) -> TokenSelection:
    """Encoder: a tube mask. Targets: the running cell's half of the tokens, less the visible ones
    among them. The cell's phase is sampled for each clip, as its authors do: over the clips every
    token is a target equally often.

    Where the grid does not divide into full cells, the static number of targets is reached by
    leaving out or adding tokens at random.
    """
    visible_BN = sample_tubes(grid, counts.visible, seed_B)
    phase_B = random_bits(seed_B, 1, stream=STREAM_PHASE)[:, 0] % NUM_PHASES
    cells_BN = running_cells(grid, phase_B)
    tier_BN = torch.where(visible_BN, 2, torch.where(cells_BN, 0, 1))
    noise_BN = random_bits(seed_B, grid.num_tokens, stream=STREAM_CELLS) >> 2
    ranked_BN = ((tier_BN << 61) + noise_BN).argsort(dim=1, stable=True)
    target_BM = ranked_BN[:, : counts.targets].sort(dim=1).values
    return TokenSelection(indices_where(visible_BN, counts.visible), target_BM)
