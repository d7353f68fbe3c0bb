"""One picture of what the model saw and made of a clip: original frames | motion map | kept tokens | reconstruction."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import repeat

from mats_ds.core.drawing import fit_title, plain_drawing
from mats_ds.core.storage.files import replace_file
from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.mae import Reconstruction
from mats_ds.models.vit import UINT8_MAX, join_patches, split_patches

COLUMNS = ("original frames", "motion map", "kept tokens", "reconstruction")
DROPPED_BRIGHTNESS = 0.15
VISIBLE_TINT = (0.10, 0.75, 0.35)
TARGET_TINT = (0.98, 0.65, 0.10)
TINT = 0.45


def token_map(values_BN: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """[B, T, H, W]: every token's value on all the pixels it covers."""
    patches_BNP = repeat(values_BN, "b n -> b n p", p=grid.patch_values)
    return join_patches(patches_BNP, grid)[..., 0]


def kept_frames(reconstruction: Reconstruction, grid: TokenGrid) -> torch.Tensor:
    """frames_BTHWC float 0 to 1: dropped tokens dark, visible ones tinted green, targets tinted orange."""
    patches_BNP = split_patches(reconstruction.frames_BTHWC, grid).float() / UINT8_MAX
    shown = patches_BNP * DROPPED_BRIGHTNESS
    for index_BK, colour in (
        (reconstruction.selection.visible_BV, VISIBLE_TINT),
        (reconstruction.selection.target_BM, TARGET_TINT),
    ):
        index = index_BK[..., None].expand(-1, -1, patches_BNP.shape[-1])
        tint_P = torch.tensor(colour, device=shown.device).repeat(patches_BNP.shape[-1] // 3)
        shown.scatter_(1, index, patches_BNP.gather(1, index) * (1 - TINT) + tint_P * TINT)
    return join_patches(shown, grid)


def draw_reconstruction(reconstruction: Reconstruction, grid: TokenGrid, path: Path, *, clip: int = 0, title: str = "") -> None:
    """Write a PNG with one row per shown frame and the four columns of COLUMNS for clip number `clip`."""
    with plain_drawing():
        _draw_reconstruction(reconstruction, grid, path, clip=clip, title=fit_title(title))


def _draw_reconstruction(reconstruction: Reconstruction, grid: TokenGrid, path: Path, *, clip: int, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step = max(1, grid.num_frames // 4)
    frames = range(step // 2, grid.num_frames, step)
    motion = token_map(reconstruction.motion_BN, grid)[clip].cpu()
    columns = (
        reconstruction.frames_BTHWC[clip].cpu(),
        motion,
        kept_frames(reconstruction, grid)[clip].cpu(),
        reconstruction.predicted_BTHWC[clip].cpu(),
    )
    aspect = grid.height / grid.width
    size = 2.6
    figure = Figure(figsize=(4 * size + 0.6, len(frames) * size * aspect + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(frames), 4, squeeze=False)
    for row, frame in enumerate(frames):
        for column, values in enumerate(columns):
            axis = axes[row][column]
            if column == 1:
                axis.imshow(values[frame].numpy(), cmap="magma", vmin=0, vmax=max(float(motion.max()), 1e-6))
            else:
                axis.imshow(values[frame].numpy())
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title(COLUMNS[column], fontsize=11)
        axes[row][0].set_ylabel(f"frame {frame + 1}", fontsize=9)
    visible, targets = reconstruction.selection.visible_BV.shape[1], reconstruction.selection.target_BM.shape[1]
    dropped = grid.num_tokens - visible - targets
    legend = f"green: {visible} tokens seen by the encoder, orange: {targets} to be reconstructed, dark: {dropped} dropped"
    figure.suptitle(f"{title}\n{legend}" if title else legend, fontsize=10)
    with replace_file(path) as aside:
        figure.savefig(aside, dpi=110, format="png")
