"""The change of each patch since its run began: patches [B, N, P] uint8 -> score [B, N].

Source: run-length tokenization, "Don't Look Twice: Faster Video Transformers with Run-Length
Tokenization" (arXiv 2411.05222): a patch that repeats the one before it belongs to its run, and
only the first patch of a run is a token. As there, two patches are compared by the mean absolute
difference between the front frame of the earlier and the back frame of the later one, and the first
tubelet begins a run everywhere. Two things differ, because every clip keeps the same number of
tokens here:
- tokens are ranked by the score, so beginnings of runs come first, the largest change first, and
  repeats fill up what is left;
- a patch is compared with the beginning of its run and not with its neighbour, so that a slow drift
  adds up until it passes the threshold. Compared with its neighbour, the threshold would have no
  part in the ranking.
The positional code for the length of a run is left out: the models' positions are those of the
pre-trained weights.
"""

from __future__ import annotations

import torch
from einops import rearrange

from mats_ds.core.token_grid import TokenGrid

UINT8_MAX = 255.0


def score_runs(patches_BNP: torch.Tensor, grid: TokenGrid, *, threshold: float) -> torch.Tensor:
    """score_BN, float32: above `threshold` a patch begins a run, at or below it repeats the patch
    that its run began with.

    patches_BNP: uint8, N = grid.num_tokens, the values of a patch in the order (frame, row, column,
    colour). Score and `threshold` are in parts of the range from black to white. The first
    tubelet's scores are the second one's plus 1, the largest difference there is, so that it ranks
    first, and within it the patches that change soonest.
    Raises ValueError for another N than the grid's or fewer than two tubelets.
    """
    _, num_tokens, num_values = patches_BNP.shape
    if num_tokens != grid.num_tokens:
        raise ValueError(f"the patches have {num_tokens} tokens but the grid has {grid.num_tokens}: {grid}")
    if grid.tau < 2:
        raise ValueError(f"runs need at least two tubelets along time, the grid has {grid.tau}: use more frames")
    tubelets_BTLP = rearrange(patches_BNP, "b (t l) p -> b t l p", t=grid.tau)
    frame_values = num_values // grid.tubelet[0]
    fronts, backs = tubelets_BTLP[..., :frame_values], tubelets_BTLP[..., -frame_values:]
    start_BLP = fronts[:, 0].float()
    scores = []
    for tubelet in range(1, grid.tau):
        score_BL = (backs[:, tubelet].float() - start_BLP).abs().mean(dim=-1) / UINT8_MAX
        start_BLP = torch.where(score_BL[..., None] > threshold, fronts[:, tubelet].float(), start_BLP)
        scores.append(score_BL)
    return rearrange(torch.stack([1 + scores[0], *scores], dim=1), "b t l -> b (t l)")
