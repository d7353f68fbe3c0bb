"""RandAugment on a whole clip: frames_TCHW uint8 -> frames_TCHW uint8, the same operations for all frames.

Source: arXiv 1909.13719, in the increasing variant of timm (rand-m7-n4-mstd0.5-inc1), whose strengths are taken; the pixels are
computed by torchvision. One thing differs from augmenting frame by frame: what an operation measures (the range of
autocontrast, the histogram of equalize, the mean of contrast) it measures on the whole clip, so that it adds no flicker, which a
motion score would take for motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mats_ds.config_finetune import RandAugmentPlan

MAX_MAGNITUDE = 10.0
FILL = [124.0, 116.0, 104.0]  # ImageNet's mean colour, for what a moved picture uncovers
MAX_ROTATION_DEGREES = 30.0
MAX_SHEAR = 0.3
MAX_TRANSLATION = 0.45  # of the side
MAX_ENHANCEMENT = 0.9
MAX_SOLARIZE_ADDITION = 110
BRIGHT = 128  # solarize_add lifts what is darker

# (frames, strength from 0 to 1, sign +1 or -1) -> frames
Operation = Callable[[torch.Tensor, float, int], torch.Tensor]


def rand_augment(frames_TCHW: torch.Tensor, plan: RandAugmentPlan, draws: np.random.Generator) -> torch.Tensor:
    """Apply `plan.num_operations` operations drawn with replacement, each with `plan.probability`."""
    for number in draws.integers(len(OPERATIONS), size=plan.num_operations).tolist():
        is_used, sign = draws.random() < plan.probability, 1 if draws.random() < 0.5 else -1
        magnitude = min(MAX_MAGNITUDE, max(0.0, draws.normal(plan.magnitude, plan.spread)))
        if is_used:
            frames_TCHW = OPERATIONS[number](frames_TCHW, magnitude / MAX_MAGNITUDE, sign)
    return frames_TCHW


def as_one_picture(operation: Callable[..., torch.Tensor], frames_TCHW: torch.Tensor, *arguments: float) -> torch.Tensor:
    """Apply an operation on colours to all frames, laid one below the other."""
    picture_CHW = rearrange(frames_TCHW, "t c h w -> c (t h) w")
    return rearrange(operation(picture_CHW, *arguments), "c (t h) w -> t c h w", t=len(frames_TCHW))


def autocontrast(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return as_one_picture(F.autocontrast, frames_TCHW)


def equalize(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return as_one_picture(F.equalize, frames_TCHW)


def invert(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return F.invert(frames_TCHW)


def posterize(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return F.posterize(frames_TCHW, 4 - int(4 * strength))


def solarize(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return F.solarize(frames_TCHW, min(255, 256 - int(256 * strength)))


def solarize_add(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    # at most 127 + 110, which still fits a byte
    return torch.where(frames_TCHW < BRIGHT, frames_TCHW + int(MAX_SOLARIZE_ADDITION * strength), frames_TCHW)


def enhancement(strength: float, sign: int) -> float:
    """The factor of colour, contrast, brightness and sharpness: 1 changes nothing."""
    return max(0.1, 1.0 + sign * MAX_ENHANCEMENT * strength)


def colour(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return F.adjust_saturation(frames_TCHW, enhancement(strength, sign))


def contrast(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return as_one_picture(F.adjust_contrast, frames_TCHW, enhancement(strength, sign))


def brightness(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return F.adjust_brightness(frames_TCHW, enhancement(strength, sign))


def sharpness(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return F.adjust_sharpness(frames_TCHW, enhancement(strength, sign))


def move(
    frames_TCHW: torch.Tensor,
    *,
    degrees: float = 0.0,
    right: float = 0.0,
    down: float = 0.0,
    shear_x: float = 0.0,
    shear_y: float = 0.0,
) -> torch.Tensor:
    """Turn by `degrees`, shift by parts of the sides, shear by slopes."""
    height, width = frames_TCHW.shape[-2:]
    shear = [math.degrees(math.atan(shear_x)), math.degrees(math.atan(shear_y))]
    translate = [right * width, down * height]
    how = {"interpolation": InterpolationMode.BILINEAR, "fill": FILL}
    return F.affine(frames_TCHW, angle=degrees, translate=translate, scale=1.0, shear=shear, **how)


def rotate(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return move(frames_TCHW, degrees=sign * MAX_ROTATION_DEGREES * strength)


def shear_x(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return move(frames_TCHW, shear_x=sign * MAX_SHEAR * strength)


def shear_y(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return move(frames_TCHW, shear_y=sign * MAX_SHEAR * strength)


def translate_x(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return move(frames_TCHW, right=sign * MAX_TRANSLATION * strength)


def translate_y(frames_TCHW: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    return move(frames_TCHW, down=sign * MAX_TRANSLATION * strength)


OPERATIONS: tuple[Operation, ...] = (
    autocontrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    colour,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
