"""What the decoder is to predict: patches [B, M, P] uint8 -> normalised pixels [B, M, P] float32, and the loss on them.

Each colour channel of a tubelet is normalised by that tubelet's own mean and unbiased standard deviation + 1e-6 of pixels in
0 to 1 (METHOD section 4; VideoMAE, arXiv 2203.12602). The order of a patch's values is (frame, row, column, colour).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange

from mats_ds.clips import RGB_CHANNELS
from mats_ds.models.encoder import UINT8_MAX

SPREAD_EPS = 1e-6


@dataclass(frozen=True)
class Normalised:
    """Pixels of 0 to 1 are pixels_BMP * spread + mean, colour by colour; mean_BMC and spread_BMC are float32 [B, M, 1, C]."""

    pixels_BMP: torch.Tensor
    mean_BMC: torch.Tensor
    spread_BMC: torch.Tensor

    def restore(self, normalised_BMP: torch.Tensor) -> torch.Tensor:
        """Pixels in 0 to 1 of (predicted) normalised pixels of these tubelets, not clamped."""
        colours = rearrange(normalised_BMP, "b m (p c) -> b m p c", c=RGB_CHANNELS)
        return rearrange(colours * self.spread_BMC + self.mean_BMC, "b m p c -> b m (p c)")


@torch.no_grad()
def normalise_patches(patches_BMP: torch.Tensor) -> Normalised:
    """Normalise uint8 patches tubelet by tubelet. No gradient."""
    centred = rearrange(patches_BMP, "b m (p c) -> b m p c", c=RGB_CHANNELS).to(torch.float32, copy=True)
    mean = centred.mean(dim=2, keepdim=True)
    centred -= mean
    variance = centred.square().sum(dim=2, keepdim=True) / (centred.shape[2] - 1)
    # the same as dividing pixels of 0 to 1 by their own spread, in one pass less over all of them
    spread = variance.sqrt() + SPREAD_EPS * UINT8_MAX
    centred /= spread
    return Normalised(rearrange(centred, "b m p c -> b m (p c)"), mean / UINT8_MAX, spread / UINT8_MAX)


def reconstruction_loss(predicted_BMP: torch.Tensor, patches_BMP: torch.Tensor) -> torch.Tensor:
    """Scalar float32: mean squared error of predicted normalised pixels against those of the uint8 patches.

    Backward keeps their difference, once.
    """
    return (predicted_BMP.float() - normalise_patches(patches_BMP).pixels_BMP).square().mean()
