"""Mixup, cutmix and random erasing of the clips of a micro-batch: frames_BTHWC uint8 ->
frames_BTHWC uint8.

Mixing as timm does it for batches (arXiv 1710.09412 and 1905.04899): one mixture a micro-batch,
clip b with clip B - 1 - b. The box of cutmix is the same in all frames; bytes are rounded, so that
the model gets uint8 as ever. (VideoMAE's code takes the sides of the box from height and width, but
cuts frames and rows of a batch [B, C, T, H, W].)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mats_ds.config.finetune_recipe import AugmentSection

# Random erasing (arXiv 1708.04896) as timm does it: fractions of the picture's area, height to
# width.
AREA_FRACTIONS = (0.02, 1 / 3)
ASPECT_RATIOS = (0.3, 1 / 0.3)
MAX_TRIES = 100  # for clips; timm tries ten times for a picture
# Normal noise of ImageNet's mean and standard deviation, in bytes.
NOISE_MEAN = (124.0, 116.0, 104.0)
NOISE_STD = (58.0, 57.0, 57.0)


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Mixture:
    """The mixing of the clips of a micro-batch.

    fraction: how much of the own clip stays. box: what cutmix replaces, None for mixup.
    """

    fraction: float
    box: Box | None


def sample_mixture(section: AugmentSection, height: int, width: int, rng: np.random.Generator) -> Mixture:
    """One of the two, as the recipe has it. The fraction of a cutmix is that of the pixels that are
    left."""
    cuts = section.cutmix > 0 and (section.mixup == 0 or rng.random() < section.cutmix_share)
    alpha = section.cutmix if cuts else section.mixup
    fraction = float(rng.beta(alpha, alpha))
    if not cuts:
        return Mixture(fraction, None)
    side = math.sqrt(1 - fraction)
    high, wide = int(height * side), int(width * side)
    middle, centre = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(0, middle - high // 2), max(0, centre - wide // 2)
    bottom, right = min(height, middle + high // 2), min(width, centre + wide // 2)
    box = Box(top, left, bottom - top, right - left)
    return Mixture(1 - box.height * box.width / (height * width), box)


def choose_partners(micro_batch: int, *, repeats: int) -> list[int]:
    """For each clip the one that it is mixed with, never one of its own video, where `repeats`
    neighbouring clips are of one.

    An odd number of videos cannot be paired: there it is the next video's clip. (timm refuses odd
    micro-batches and lets the video in the middle meet itself.)
    """
    if micro_batch // repeats % 2 == 0:
        return list(range(micro_batch))[::-1]
    return [(index + repeats) % micro_batch for index in range(micro_batch)]


def mix_clips(frames_BTHWC: torch.Tensor, mixture: Mixture, *, partner_B: list[int], mixes_B: list[bool]) -> torch.Tensor:
    """Each clip with its partner; clips with `mixes_B` false stay as they are."""
    mixed_BTHWC = frames_BTHWC.clone()
    for index, (partner, mixes) in enumerate(zip(partner_B, mixes_B, strict=True)):
        own_THWC, partner_THWC = frames_BTHWC[index], frames_BTHWC[partner]
        if not mixes:
            continue
        # clip by clip: floats of a whole batch would take four times its bytes
        if mixture.box is None:
            mixed = torch.lerp(partner_THWC.float(), own_THWC.float(), mixture.fraction)
            mixed_BTHWC[index] = mixed.round_().to(torch.uint8)
        else:
            top, left, height, width = mixture.box
            mixed_BTHWC[index, :, top : top + height, left : left + width] = partner_THWC[
                :, top : top + height, left : left + width
            ]
    return mixed_BTHWC


def sample_box(height: int, width: int, rng: np.random.Generator) -> Box | None:
    """A box inside the picture; None where none of MAX_TRIES fits."""
    for _ in range(MAX_TRIES):
        area = height * width * rng.uniform(*AREA_FRACTIONS)
        ratio = math.exp(rng.uniform(*map(math.log, ASPECT_RATIOS)))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < high < height and 0 < wide < width:
            return Box(int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide)
    return None


def erase_box(frames_THWC: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random erasing of one clip: a copy in which the same box of all frames is noise."""
    box = sample_box(frames_THWC.shape[1], frames_THWC.shape[2], rng)
    if box is None:
        return frames_THWC
    noise_HWC = rng.normal(NOISE_MEAN, NOISE_STD, size=(box.height, box.width, 3))
    noise = send(torch.from_numpy(noise_HWC.round().clip(0, 255).astype(np.uint8)), frames_THWC.device)
    frames_THWC = frames_THWC.clone()
    frames_THWC[:, box.top : box.top + box.height, box.left : box.left + box.width] = noise
    return frames_THWC


def send(on_host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. The host does not wait for the work that is there before it."""
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host
