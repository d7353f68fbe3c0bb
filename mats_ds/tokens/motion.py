"""The change of each token since the tubelet before: embedding [B, N, D] -> motion [B, N].

Source: arXiv 2211.10636, "motion-aware token selection"; METHOD section 1. Nothing is learned for
it: the embedding is the patch embedding that the model computes anyway, without positions and
without gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from mats_ds.core.token_grid import CAMERA_DISTANCES, DISTANCES, TokenGrid

NORM_ORDERS = {"l2": 2, "l1": 1}


def score_motion(embedding_BND: torch.Tensor, grid: TokenGrid, *, distance: str = "l2") -> torch.Tensor:
    """motion_BN, float32: the distance of each token to the token at the same position one tubelet
    earlier.

    embedding_BND: any float type, N = grid.num_tokens, time-major. `distance`: "l2" (Euclidean),
    "l1" (sum of absolute differences) or "cosine" (1 - cosine similarity). The first tubelet has no
    predecessor and takes the second one's scores, as the authors' code does. Differences are taken
    in float32.
    Raises ValueError for another N than the grid's, fewer than two tubelets, or an unknown
    distance.
    """
    steps_BTLD = split_tubelets(embedding_BND, grid)
    later, earlier = steps_BTLD[:, 1:], steps_BTLD[:, :-1]
    if distance in NORM_ORDERS:
        change = torch.linalg.vector_norm(later - earlier, ord=NORM_ORDERS[distance], dim=-1)
    elif distance == "cosine":
        change = 1.0 - F.cosine_similarity(later, earlier, dim=-1)
    else:
        raise ValueError(f"unknown distance {distance!r}: choose one of {', '.join(DISTANCES)}")
    return join_tubelets(change)


def split_tubelets(embedding_BND: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """[B, T, L, D] float32, without gradient: the L tokens of each of the T tubelets. Errors as for
    `score_motion`."""
    _, num_tokens, _ = embedding_BND.shape
    if num_tokens != grid.num_tokens:
        raise ValueError(f"embedding has {num_tokens} tokens but the grid has {grid.num_tokens}: {grid}")
    if grid.tau < 2:
        raise ValueError(f"motion needs at least two tubelets along time, the grid has {grid.tau}: use more frames")
    return rearrange(embedding_BND.detach().float(), "b (t l) d -> b t l d", t=grid.tau)


def join_tubelets(change_BTL: torch.Tensor) -> torch.Tensor:
    """motion_BN of all tubelets from the changes of all but the first, which takes the second
    one's."""
    return rearrange(torch.cat([change_BTL[:, :1], change_BTL], dim=1), "b t l -> b (t l)")


def score_local_motion(embedding_BND: torch.Tensor, grid: TokenGrid, *, distance: str = "l2") -> torch.Tensor:
    """motion_BN, float32, without the motion of the camera; half of every tubelet's scores are at
    most zero.

    From each tubelet's differences to the one before, the median over its tokens is subtracted in
    every channel; from the lengths of the residuals, again the median over the tokens. (Of an even
    number of tokens, the lower of the two in the middle.) A clip without any motion scores zero
    throughout. Arguments and errors as for `score_motion`, without the distance "cosine".
    """
    if distance not in CAMERA_DISTANCES:
        raise ValueError(f"distance {distance!r} is not the length of a difference: choose {' or '.join(CAMERA_DISTANCES)}")
    steps_BTLD = split_tubelets(embedding_BND, grid)
    change_BTLD = steps_BTLD[:, 1:] - steps_BTLD[:, :-1]
    residual_BTLD = change_BTLD - change_BTLD.median(dim=2, keepdim=True).values
    length_BTL = torch.linalg.vector_norm(residual_BTLD, ord=NORM_ORDERS[distance], dim=-1)
    return join_tubelets(length_BTL - length_BTL.median(dim=2, keepdim=True).values)
