"""The pictures that stand side by side for a clip: ClipView -> panels, uint8 [T, H, W, 3] each,
tokens with sharp edges.

original | motion | kept tokens | visible tokens | reconstruction; without a trained decoder the
last one is missing, for a classifier, which sees all that is kept, the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mats_ds.core.format import format_figure
from mats_ds.core.token_grid import TokenGrid

if TYPE_CHECKING:  # it needs torch, and the names of the panels do not
    from mats_ds.visualization.clip_view import ClipView

DROPPED_BRIGHTNESS = 0.15
COLOUR_MAP = "magma"
UNSEEN = (46, 48, 54)  # dropped tokens of the reconstruction
PANELS = ("original", "motion", "kept", "visible", "reconstruction")


@dataclass(frozen=True)
class Panel:
    """One picture of a row, with its heading; frames_THWC uint8 RGB."""

    name: str
    frames_THWC: np.ndarray


def draw_panels(view: ClipView, wanted: Sequence[str] | None = None) -> list[Panel]:
    """The panels of a clip, from left to right: all that there are, or those of PANELS that are
    wanted. Raises ValueError for one that this clip does not have."""
    grid = view.grid
    panels = {
        "original": Panel("original", view.frames_THWC),
        "motion": Panel(f"motion score, 0 to {format_figure(view.motion_N.max(), 3)}", draw_heat(view.motion_N, grid)),
        "kept": Panel(f"kept: {view.kept_N.sum():,} of {grid.num_tokens:,} tokens", darken(view.frames_THWC, view.kept_N, grid)),
    }
    if (view.visible_N != view.kept_N).any():
        visible_THWC = darken(view.frames_THWC, view.visible_N, grid)
        panels["visible"] = Panel(f"visible to the encoder: {view.visible_N.sum()}", visible_THWC)
    if view.predicted_THWC is not None:
        rebuilt_THWC = np.where(spread(view.kept_N, grid)[..., None], view.predicted_THWC, np.uint8(UNSEEN))
        name = "reconstruction" if view.loss is None else f"reconstruction, loss {view.loss:.3f}"
        panels["reconstruction"] = Panel(name, rebuilt_THWC)
    if missing := [name for name in wanted or () if name not in panels]:
        raise ValueError(
            f"there is no panel {' or '.join(missing)} of these weights, only {', '.join(panels)}: leave it out, or, for "
            "a reconstruction, give the weights of a pre-training with its decoder"
        )
    return [panels[name] for name in wanted or panels]


def draw_heat(values_N: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """uint8 [T, H, W, 3]: 0 is black, the clip's largest value the brightest colour; tokens that
    are not finite count as 0."""
    from matplotlib import colormaps

    values_N = np.nan_to_num(values_N, posinf=0.0, neginf=0.0)
    fraction_N = values_N / max(float(values_N.max()), np.finfo(np.float32).tiny)
    colours_N3 = colormaps[COLOUR_MAP](fraction_N, bytes=True)[:, :3]
    return spread(colours_N3, grid)


def darken(frames_THWC: np.ndarray, mask_N: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """The frames with all tokens dark except those of the mask."""
    dark_THWC = (frames_THWC * DROPPED_BRIGHTNESS).astype(np.uint8)
    return np.where(spread(mask_N, grid)[..., None], frames_THWC, dark_THWC)


def spread(values_NX: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """[T, H, W, ...]: every token's value on all its pixels."""
    spread_out = values_NX.reshape(grid.tau, grid.rows, grid.columns, *values_NX.shape[1:])
    for axis, size in enumerate(grid.tubelet):
        spread_out = spread_out.repeat(size, axis=axis)
    return spread_out
