"""Select the frames and tokens of a clip that the encoder computes: frames [B, T, H, W, 3] uint8 ->
patches, token indices.

Shared by the masked autoencoder and the classifier: score the motion of the candidates (METHOD
section 1 of arXiv 2211.10636), pick frames where there are more candidates than frames (section 3),
pick tokens (section 2). No gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange

from mats_ds.core.token_grid import TokenGrid, TokenPruning, TokenSelection
from mats_ds.models.token_merging import MergedPatches, merge_dropped
from mats_ds.models.vit import gather_tokens, split_patches
from mats_ds.tokens.frames import select_frames
from mats_ds.tokens.motion import score_local_motion, score_motion
from mats_ds.tokens.run_length import score_runs
from mats_ds.tokens.seeded_random import sample_seeds
from mats_ds.tokens.selection import select_tokens


@dataclass(frozen=True)
class PrunedClip:
    """The frames and tokens of a batch that are computed.

    patches_BNP: uint8, all patches of the selected frames. motion_BN: their float32 scores, zero
    where no option needs them.
    tubelets_BT: the selected frames as int64 indices into the candidates' tubelets. merged: the
    visible tokens with the dropped ones averaged into them, where `merge_dropped` is on.
    """

    patches_BNP: torch.Tensor
    motion_BN: torch.Tensor
    selection: TokenSelection
    tubelets_BT: torch.Tensor
    merged: MergedPatches | None = None


@torch.no_grad()
def prune_clip(
    frames_BTHWC: torch.Tensor,
    *,
    pruning: TokenPruning,
    grid: TokenGrid,
    candidate_grid: TokenGrid,
    motion_feature: Callable[[torch.Tensor], torch.Tensor],
    seed_B: torch.Tensor | None,
    pick_frames: Callable[..., torch.Tensor] | None = None,
) -> PrunedClip:
    """Score the motion, then pick frames (where there are more candidates than frames) and tokens.

    `motion_feature` maps patches_BNP to the features whose distances are the motion, [B, N, X].
    `seed_B` None samples seeds from torch's global generator. `pick_frames` None samples frames by
    the seed; else it is called as `select_fullest_frames` is.
    Raises ValueError for frames that are not uint8 or not of the candidate grid's size.
    """
    if frames_BTHWC.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (0 to 255), got {frames_BTHWC.dtype}: the model normalises them itself")
    patches_BNP = split_patches(frames_BTHWC, candidate_grid)
    if seed_B is None:
        seed_B = sample_seeds(len(patches_BNP), device=patches_BNP.device)
    adaptive = candidate_grid.tau > grid.tau
    merges = pruning.merge_dropped and not pruning.keeps_all
    score = partial(score_local_motion if pruning.compensate_camera else score_motion, distance=pruning.distance)
    if pruning.ranks_by_motion or adaptive or merges:
        feature_BNX = motion_feature(patches_BNP)
    if pruning.ranks_by_motion or adaptive:
        motion_BN = score(feature_BNX, candidate_grid)
    else:  # no option needs motion: spare the embedding of all tokens
        motion_BN = torch.zeros(patches_BNP.shape[:2], device=patches_BNP.device)
    if adaptive:
        pick_frames = pick_frames or partial(select_frames, seed_B=seed_B)
        tubelets_BT = pick_frames(motion_BN, candidate_grid, keep_ratio=pruning.keep_ratio, num_tubelets=grid.tau)
        patches_BNP = take_tubelets(patches_BNP, tubelets_BT, candidate_grid)
        feature_BNX = take_tubelets(feature_BNX, tubelets_BT, candidate_grid)
        # neighbours have changed: the distance is to the tubelet that now comes before
        motion_BN = score(feature_BNX, grid)
    else:
        tubelets_BT = torch.arange(grid.tau, device=patches_BNP.device).expand(len(patches_BNP), -1)
    # it keeps all as well, and needs no score
    strategy = "random_drop" if pruning.keeps_all else pruning.strategy
    if strategy == "run_length":
        motion_BN = score_runs(patches_BNP, grid, threshold=pruning.run_threshold)
    ratios = {"keep_ratio": pruning.keep_ratio, "visible_ratio": pruning.visible_ratio}
    selection = select_tokens(motion_BN, strategy=strategy, grid=grid, seed_B=seed_B, **ratios)
    merged = merge_dropped(patches_BNP, feature_BNX, selection.visible_BV) if merges else None
    return PrunedClip(patches_BNP, motion_BN, selection, tubelets_BT, merged)


def take_tubelets(values_BNX: torch.Tensor, tubelets_BT: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """[B, T * L, X]: the L tokens of each selected tubelet, in the order of `tubelets_BT`."""
    token_L = torch.arange(grid.tokens_per_tubelet, device=tubelets_BT.device)
    index_BN = rearrange(tubelets_BT[..., None] * grid.tokens_per_tubelet + token_L, "b t l -> b (t l)")
    return gather_tokens(values_BNX, index_BN)
