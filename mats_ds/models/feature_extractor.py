"""The encoder alone, for features: frames [B, T, H, W, 3] uint8 -> features [B, D], or the tokens
and their positions.

It is the trunk of the classifier (which chooses frames and tokens and encodes them), with the last
norm that its weights were trained with: pre-training's `encoder.norm` on every token, or a
classifier's `fc_norm` on the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import repeat
from torch import nn

from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.classifier import VideoClassifier


@dataclass(frozen=True)
class VideoTokens:
    """The encoded tokens of B clips.

    tokens_BKD: K tokens of a clip. position_BK3: int64 (tubelet, row, column) of each, from 0, on
    the model's grid.
    tubelets_BT: int64, which tubelets of the frames that were given those of the grid are (0, 1,
    ... unless frames are chosen).
    features_BD: one vector a clip, as calling the encoder returns it.
    """

    tokens_BKD: torch.Tensor
    position_BK3: torch.Tensor
    tubelets_BT: torch.Tensor
    features_BD: torch.Tensor


@dataclass(frozen=True)
class TubeletMeans:
    """mean_BTD: the mean of the kept tokens of each tubelet, zero where there are none; count_BT:
    int64, how many there are."""

    mean_BTD: torch.Tensor
    count_BT: torch.Tensor


class VideoEncoder(nn.Module):
    """Maps clips of the size of `grid` to features (with adaptive frames, clips have `num_frames`
    frames, more than the grid)."""

    def __init__(self, trunk: VideoClassifier, *, token_norm: nn.Module | None) -> None:
        """`trunk`: its head is taken off. `token_norm`: applied to every token in place of the
        trunk's fc_norm on their mean."""
        super().__init__()
        trunk.class_head = nn.Identity()
        if token_norm is not None:
            trunk.encoder.norm, trunk.fc_norm = token_norm, nn.Identity()
        self.trunk = trunk

    @property
    def grid(self) -> TokenGrid:
        return self.trunk.grid

    @property
    def num_frames(self) -> int:
        return self.trunk.candidate_grid.num_frames

    @property
    def width(self) -> int:
        """D, the length of a feature."""
        return self.trunk.patch_embed.proj.out_features

    @property
    def device(self) -> torch.device:
        return self.trunk.positions_ND.device

    @torch.inference_mode()
    def forward(self, frames: torch.Tensor | np.ndarray, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        """features_BD: one vector a clip.

        frames: uint8 RGB [B, num_frames, height, width, 3], a tensor on any device or an array; B
        may be left out for one clip. seed_B: random seed of each clip for strategies that sample
        tokens; without it the same clip always gives the same features. Raises ValueError for
        frames of another shape or type.
        """
        return self.trunk.features(self._as_batch(frames), seed_B)

    @torch.inference_mode()
    def tokens(self, frames: torch.Tensor | np.ndarray, seed_B: torch.Tensor | None = None) -> VideoTokens:
        """All encoded tokens and their positions. Arguments and errors as for `forward`.

        A classifier's tokens are those that leave the last block: its norm comes after the mean.
        """
        encoded = self.trunk.encode(self._as_batch(frames), seed_B)
        position_BK3 = grid_positions(encoded.index_BK, self.grid)
        return VideoTokens(encoded.tokens_BKD, position_BK3, encoded.tubelets_BT, self.trunk.pool(encoded))

    def _as_batch(self, frames: torch.Tensor | np.ndarray) -> torch.Tensor:
        frames = torch.as_tensor(frames).to(self.device)
        return frames[None] if frames.ndim == 4 else frames


def grid_positions(index_BK: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """position_BK3: (tubelet, row, column) of token numbers, which run over time first, then rows,
    then columns."""
    tubelet = index_BK // grid.tokens_per_tubelet
    row, column = index_BK % grid.tokens_per_tubelet // grid.columns, index_BK % grid.columns
    return torch.stack([tubelet, row, column], dim=-1)


def average_tubelets(tokens: VideoTokens, grid: TokenGrid) -> TubeletMeans:
    """The mean of each tubelet's tokens, in float32."""
    tubelet_BK = tokens.position_BK3[..., 0]
    batch, _, width = tokens.tokens_BKD.shape
    sum_BTD = torch.zeros(batch, grid.tau, width, device=tubelet_BK.device)
    sum_BTD.scatter_add_(1, repeat(tubelet_BK, "b k -> b k d", d=width), tokens.tokens_BKD.float())
    count_BT = torch.zeros(batch, grid.tau, dtype=torch.int64, device=tubelet_BK.device)
    count_BT.scatter_add_(1, tubelet_BK, torch.ones_like(tubelet_BK))
    return TubeletMeans(sum_BTD / count_BT.clamp(min=1)[..., None], count_BT)
