"""How much each token changed since the tubelet before: embedding [B, N, D] -> motion [B, N].

Source: arXiv 2211.10636, "motion-aware token selection"; METHOD section 1. Nothing is learned for it: the embedding is the
patch embedding that the model computes anyway, without positions and without gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from mats_ds.clips import TokenGrid

DISTANCES = ("l2", "l1", "cosine")


def score_motion(embedding_BND: torch.Tensor, grid: TokenGrid, *, distance: str = "l2") -> torch.Tensor:
    """motion_BN, float32: the distance of each token to the token at the same place one tubelet earlier.

    embedding_BND: any float type, N = grid.num_tokens, time-major. `distance`: "l2" (Euclidean), "l1" (sum of absolute
    differences) or "cosine" (1 - cosine similarity). The first tubelet has no predecessor and takes the second one's
    scores, as the authors' code does. Differences are taken in float32.
    Raises ValueError for another N than the grid's, fewer than two tubelets, or an unknown distance.
    """
    _, num_tokens, _ = embedding_BND.shape
    if num_tokens != grid.num_tokens:
        raise ValueError(f"embedding has {num_tokens} tokens but the grid has {grid.num_tokens}: {grid}")
    if grid.tau < 2:
        raise ValueError(f"motion needs at least two tubelets along time, the grid has {grid.tau}: use more frames")
    steps = rearrange(embedding_BND.detach().float(), "b (t l) d -> b t l d", t=grid.tau)
    later, earlier = steps[:, 1:], steps[:, :-1]
    if distance == "l2":
        change = torch.linalg.vector_norm(later - earlier, ord=2, dim=-1)
    elif distance == "l1":
        change = torch.linalg.vector_norm(later - earlier, ord=1, dim=-1)
    elif distance == "cosine":
        change = 1.0 - F.cosine_similarity(later, earlier, dim=-1)
    else:
        raise ValueError(f"unknown distance {distance!r}: choose one of {', '.join(DISTANCES)}")
    motion = torch.cat([change[:, :1], change], dim=1)
    return rearrange(motion, "b t l -> b (t l)")
