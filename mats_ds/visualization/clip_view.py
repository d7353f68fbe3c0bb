"""One clip as a model sees it, ready to be drawn: frames [T, H, W, 3] uint8 -> ClipView, in numpy
arrays on the CPU.

C candidate frames (those that are read), T frames used. A reconstruction is shown only if the
decoder is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.mae import MaskedAutoencoder, Reconstruction
from mats_ds.models.vit import UINT8_MAX, join_patches, split_patches
from mats_ds.tokens.motion import score_motion


@dataclass(frozen=True)
class ClipView:
    """One clip as a model sees it.

    frames_THWC: uint8, the frames used; frame_T: which of the C candidate frames they are.
    motion_N: float32 scores. kept_N and visible_N: bool (of a classifier the same). predicted_THWC:
    uint8, visible tokens as they are, targets as predicted, the others grey; None without a trained
    decoder. loss: of the targets.
    """

    grid: TokenGrid
    frames_THWC: np.ndarray
    frame_T: np.ndarray
    motion_N: np.ndarray
    kept_N: np.ndarray
    visible_N: np.ndarray
    predicted_THWC: np.ndarray | None = None
    loss: float | None = None


@torch.no_grad()
def look_with_decoder(model: MaskedAutoencoder, frames_CHWC: torch.Tensor, *, seed: int) -> ClipView:
    """The clip with its reconstruction. frames_CHWC: uint8 of the candidate grid's size, on the
    model's device. seed: of the random choice of tokens. Raises ValueError for frames of another
    shape.
    """
    seen = model.reconstruct(frames_CHWC[None], torch.tensor([seed], device=frames_CHWC.device))
    motion_BN = fill_in_motion(model, seen.motion_BN, seen.frames_BTHWC)
    return view_reconstruction(replace(seen, motion_BN=motion_BN), model.grid)


def view_reconstruction(seen: Reconstruction, grid: TokenGrid, *, clip: int = 0) -> ClipView:
    """Clip number `clip` of a reconstruction; its loss is known where it is the only one."""
    predicted_THWC = (seen.predicted_BTHWC[clip] * UINT8_MAX).round().to(torch.uint8).cpu().numpy()
    visible_N = mask_of(seen.selection.visible_BV[clip], grid.num_tokens)
    return ClipView(
        grid=grid,
        frames_THWC=seen.frames_BTHWC[clip].cpu().numpy(),
        frame_T=frames_of_tubelets(seen.tubelets_BT[clip], grid),
        motion_N=seen.motion_BN[clip].float().cpu().numpy(),
        kept_N=visible_N | mask_of(seen.selection.target_BM[clip], grid.num_tokens),
        visible_N=visible_N,
        predicted_THWC=predicted_THWC,
        loss=float(seen.loss) if len(seen.motion_BN) == 1 else None,
    )


@torch.no_grad()
def look_without_decoder(model: MaskedAutoencoder | VideoClassifier, frames_CHWC: torch.Tensor, *, seed: int) -> ClipView:
    """The clip with its selected tokens: for a classifier, or where only the patch embedding is
    trained. Arguments and errors as for `look_with_decoder`.
    """
    chosen = model.choose(frames_CHWC[None], torch.tensor([seed], device=frames_CHWC.device))
    frames_BTHWC = join_patches(chosen.patches_BNP, model.grid)
    visible_N = mask_of(chosen.selection.visible_BV[0], model.grid.num_tokens)
    target_N = mask_of(chosen.selection.target_BM[0], model.grid.num_tokens)
    return ClipView(
        grid=model.grid,
        frames_THWC=frames_BTHWC[0].cpu().numpy(),
        frame_T=frames_of_tubelets(chosen.tubelets_BT[0], model.grid),
        motion_N=fill_in_motion(model, chosen.motion_BN, frames_BTHWC)[0].float().cpu().numpy(),
        # a classifier drops its targets
        kept_N=visible_N if isinstance(model, VideoClassifier) else visible_N | target_N,
        visible_N=visible_N,
    )


def fill_in_motion(
    model: MaskedAutoencoder | VideoClassifier, motion_BN: torch.Tensor, frames_BTHWC: torch.Tensor
) -> torch.Tensor:
    """The scores, computed for the picture alone where the model's strategy ignores motion and left
    them zero."""
    if motion_BN.any():
        return motion_BN
    feature_BNX = model.motion_feature(split_patches(frames_BTHWC, model.grid))
    return score_motion(feature_BNX, model.grid, distance=model.pruning.distance)


def mask_of(index_K: torch.Tensor, num_tokens: int) -> np.ndarray:
    """mask_N, true at the indices."""
    mask_N = np.zeros(num_tokens, bool)
    mask_N[index_K.cpu().numpy()] = True
    return mask_N


def frames_of_tubelets(tubelets_T: torch.Tensor, grid: TokenGrid) -> np.ndarray:
    """frame_T int64: the candidate frames that the tubelets consist of."""
    frames = grid.tubelet[0]
    return (tubelets_T.cpu().numpy()[:, None] * frames + np.arange(frames)).reshape(-1)
