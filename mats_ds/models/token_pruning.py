"""What of a clip is computed at all: frames [B, T, H, W, 3] uint8 -> the patches of the frames used, and the tokens kept.

Shared by the masked autoencoder and the classifier: score the motion of the candidates (METHOD section 1 of arXiv 2211.10636),
pick frames where there are more candidates than frames (section 3), pick tokens (section 2). No gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange

from mats_ds.core.token_grid import RUN_THRESHOLD, TokenGrid, TokenSelection
from mats_ds.models.token_merging import MergedPatches, merge_dropped
from mats_ds.models.vit import gather_tokens, split_patches
from mats_ds.tokens.frames import select_frames
from mats_ds.tokens.motion import score_local_motion, score_motion
from mats_ds.tokens.run_length import score_runs
from mats_ds.tokens.seeded_random import sample_seeds
from mats_ds.tokens.selection import select_tokens


@dataclass(frozen=True)
class PrunedClip:
    """The frames and tokens of a batch that are computed: patches_BNP uint8 and motion_BN of the frames that are used,
    tubelets_BT: which of the candidates' tubelets they are. motion_BN is zero where nothing looks at motion. `merged`, where
    asked for: the visible tokens with the others merged into them.
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
    grid: TokenGrid,
    candidate_grid: TokenGrid,
    motion_feature: Callable[[torch.Tensor], torch.Tensor],
    strategy: str,
    keep_ratio: float,
    visible_ratio: float,
    distance: str,
    seed_B: torch.Tensor | None,
    pick_frames: Callable[..., torch.Tensor] | None = None,
    compensate_camera: bool = False,
    run_threshold: float = RUN_THRESHOLD,
    merge: bool = False,
) -> PrunedClip:
    """Score the motion, then pick frames (where there are more candidates than frames) and tokens.

    `motion_feature` maps patches_BNP to what distances are taken of, [B, N, X]. `seed_B` None draws seeds from torch's global
    generator. `pick_frames` None draws frames with the seed; else it is called as `select_fullest_frames` is. `run_threshold` is
    run_length's; `merge` asks for `merged`.
    Raises ValueError for frames that are not uint8 or not of the candidate grid's size.
    """
    if frames_BTHWC.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (0 to 255), got {frames_BTHWC.dtype}: the model normalises them itself")
    patches_BNP = split_patches(frames_BTHWC, candidate_grid)
    if seed_B is None:
        seed_B = sample_seeds(len(patches_BNP), device=patches_BNP.device)
    adaptive = candidate_grid.tau > grid.tau
    score = partial(score_local_motion if compensate_camera else score_motion, distance=distance)
    if strategy == "mats" or adaptive or merge:
        feature_BNX = motion_feature(patches_BNP)
    if strategy == "mats" or adaptive:
        motion_BN = score(feature_BNX, candidate_grid)
    else:  # these strategies look at no motion: spare them the embedding of the whole clip
        motion_BN = torch.zeros(patches_BNP.shape[:2], device=patches_BNP.device)
    if adaptive:
        pick_frames = pick_frames or partial(select_frames, seed_B=seed_B)
        tubelets_BT = pick_frames(motion_BN, candidate_grid, keep_ratio=keep_ratio, num_tubelets=grid.tau)
        patches_BNP = take_tubelets(patches_BNP, tubelets_BT, candidate_grid)
        feature_BNX = take_tubelets(feature_BNX, tubelets_BT, candidate_grid)
        motion_BN = score(feature_BNX, grid)  # neighbours have changed: the distance is to the tubelet that now comes before
    else:
        tubelets_BT = torch.arange(grid.tau, device=patches_BNP.device).expand(len(patches_BNP), -1)
    if strategy == "run_length":
        motion_BN = score_runs(patches_BNP, grid, threshold=run_threshold)
    selection = select_tokens(
        motion_BN, strategy=strategy, keep_ratio=keep_ratio, visible_ratio=visible_ratio, grid=grid, seed_B=seed_B
    )
    merged = merge_dropped(patches_BNP, feature_BNX, selection.visible_BV) if merge else None
    return PrunedClip(patches_BNP, motion_BN, selection, tubelets_BT, merged)


def take_tubelets(values_BNX: torch.Tensor, tubelets_BT: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """The tokens of the chosen tubelets, in the order of `tubelets_BT`: [B, T * places, X]."""
    places = torch.arange(grid.tokens_per_tubelet, device=tubelets_BT.device)
    index_BN = rearrange(tubelets_BT[..., None] * grid.tokens_per_tubelet + places, "b t l -> b (t l)")
    return gather_tokens(values_BNX, index_BN)
