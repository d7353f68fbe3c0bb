"""Adaptive frame selection: motion of alpha * tau candidate tubelets [B, N_candidates] -> the
selected ones [B, tau].

Source: arXiv 2211.10636, "information-intensive frame selection"; METHOD section 3. The authors'
public code has no such step.
"""

from __future__ import annotations

import torch

from mats_ds.core.token_grid import TokenGrid, count_tokens
from mats_ds.tokens.seeded_random import random_uniform, sample_seeds
from mats_ds.tokens.selection import rank_by_motion

STREAM_FRAMES = 5


def select_frames(
    motion_BN: torch.Tensor,
    grid_of_candidates: TokenGrid,
    *,
    keep_ratio: float = 0.3,
    num_tubelets: int = 8,
    generator: torch.Generator | None = None,
    seed_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """tubelets_BT, int64, ascending: `num_tubelets` distinct candidate tubelets of each clip.

    motion_BN: scores over all candidates. The top `keep_ratio` of all candidate tokens is marked;
    tubelet i, with c_i marked tokens, is sampled without replacement with probability c_i / sum(c).
    Tubelets without a marked token are taken only when there are not enough others. This is the
    Gumbel form of successive sampling: the largest of log c_i + Gumbel noise. Randomness as in
    `select_tokens`.
    Raises ValueError when there are fewer candidates than `num_tubelets`, or another number of
    scores than the grid has tokens.
    """
    count_BT = count_marked(motion_BN, grid_of_candidates, keep_ratio=keep_ratio, num_tubelets=num_tubelets)
    if seed_B is None:
        seed_B = sample_seeds(len(motion_BN), device=motion_BN.device, generator=generator)
    gumbel_BT = -torch.log(-torch.log(random_uniform(seed_B, grid_of_candidates.tau, stream=STREAM_FRAMES)))
    # Gumbel noise of 23 random bits lies between -2.9 and 16.6, so an empty tubelet at -60 comes
    # after every other one.
    weight_BT = torch.where(count_BT > 0, torch.log(count_BT.clamp(min=1)), torch.full_like(count_BT, -60.0))
    return highest(weight_BT + gumbel_BT, num_tubelets)


def select_fullest_frames(
    motion_BN: torch.Tensor, grid_of_candidates: TokenGrid, *, keep_ratio: float = 0.3, num_tubelets: int = 8
) -> torch.Tensor:
    """tubelets_BT, int64, ascending: the `num_tubelets` candidate tubelets with the most marked
    tokens; the earlier one of a tie.

    The same clip always gives the same frames, as evaluation wants it. Arguments and errors as for
    `select_frames`.
    """
    count_BT = count_marked(motion_BN, grid_of_candidates, keep_ratio=keep_ratio, num_tubelets=num_tubelets)
    return highest(count_BT, num_tubelets)


def count_marked(motion_BN: torch.Tensor, grid_of_candidates: TokenGrid, *, keep_ratio: float, num_tubelets: int) -> torch.Tensor:
    """count_BT, float32: how many of each tubelet's tokens are among the clip's top `keep_ratio` by
    motion."""
    batch, num_tokens = motion_BN.shape
    if num_tokens != grid_of_candidates.num_tokens:
        raise ValueError(f"motion has {num_tokens} tokens but the candidates have {grid_of_candidates.num_tokens}")
    if not 1 <= num_tubelets <= grid_of_candidates.tau:
        raise ValueError(f"cannot choose {num_tubelets} of {grid_of_candidates.tau} candidate tubelets: read more frames")
    num_marked = max(1, count_tokens(keep_ratio, num_tokens))
    marked_BK = rank_by_motion(motion_BN)[:, :num_marked]
    tubelet_BK = marked_BK // grid_of_candidates.tokens_per_tubelet
    count_BT = torch.zeros(batch, grid_of_candidates.tau, device=motion_BN.device)
    return count_BT.scatter_add_(1, tubelet_BK, torch.ones_like(tubelet_BK, dtype=count_BT.dtype))


def highest(weight_BT: torch.Tensor, count: int) -> torch.Tensor:
    """[B, count] ascending indices of the largest entries, the first of equal ones."""
    return weight_BT.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
