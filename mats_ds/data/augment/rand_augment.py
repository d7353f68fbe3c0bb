"""Random numbers -> the RandAugment operations of one clip.

Source: arXiv 1909.13719 in the increasing variant of timm (rand-m7-n4-mstd0.5-inc1), with which
VideoMAE fine-tunes: the same fifteen operations, sampled with replacement, with the same strengths.
What they do to pixels is in `tones` and `geometry`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

from mats_ds.config.finetune_recipe import RandAugmentPlan
from mats_ds.core.clips import ImageOperation

MAX_MAGNITUDE = 10.0
MAX_ROTATION_DEGREES = 30.0
MAX_SHEAR = 0.3
MAX_TRANSLATION = 0.45  # of the side
MAX_ENHANCEMENT = 0.9
MAX_SOLARIZE_ADDITION = 110
NUMBERS_PER_OPERATION = 4  # which one, whether it is used, its direction, its magnitude


def _nothing(strength: float, sign: int) -> float:
    return 0.0


def _kept_bits(strength: float, sign: int) -> float:
    return 4 - int(strength * 4)


def _lowest_inverted(strength: float, sign: int) -> float:
    return 256 - int(strength * 256)


def _addition(strength: float, sign: int) -> float:
    return int(strength * MAX_SOLARIZE_ADDITION)


def _enhancement(strength: float, sign: int) -> float:
    """A factor: 1 changes nothing."""
    return max(0.1, 1.0 + sign * MAX_ENHANCEMENT * strength)


def _degrees(strength: float, sign: int) -> float:
    """Counter-clockwise."""
    return sign * MAX_ROTATION_DEGREES * strength


def _slope(strength: float, sign: int) -> float:
    return sign * MAX_SHEAR * strength


def _part_of_side(strength: float, sign: int) -> float:
    return sign * MAX_TRANSLATION * strength


# The amount of each operation, from a strength of 0 to 1 and a sign of +1 or -1.
AMOUNTS: dict[str, Callable[[float, int], float]] = {
    "autocontrast": _nothing,
    "equalize": _nothing,
    "invert": _nothing,
    "rotate": _degrees,
    "posterize": _kept_bits,
    "solarize": _lowest_inverted,
    "solarize_add": _addition,
    "colour": _enhancement,
    "contrast": _enhancement,
    "brightness": _enhancement,
    "sharpness": _enhancement,
    "shear_x": _slope,
    "shear_y": _slope,
    "translate_x": _part_of_side,
    "translate_y": _part_of_side,
}


def sample_operations(plan: RandAugmentPlan, numbers: Sequence[float]) -> tuple[ImageOperation, ...]:
    """The operations that are used, of `plan.num_operations` sampled, each with `plan.probability`.

    `numbers`: NUMBERS_PER_OPERATION random numbers (0 to 1, without 1) for each that is sampled.
    """
    assert len(numbers) == NUMBERS_PER_OPERATION * plan.num_operations
    names, operations = list(AMOUNTS), []
    for choice, use, direction, height in zip(*(numbers[offset::NUMBERS_PER_OPERATION] for offset in range(4)), strict=True):
        # Half a step up: the normal distribution has no value for 0.
        magnitude = plan.magnitude + plan.spread * NormalDist().inv_cdf(height + 2.0**-54)
        strength = min(MAX_MAGNITUDE, max(0.0, magnitude)) / MAX_MAGNITUDE
        if use < plan.probability:
            name = names[int(choice * len(names))]
            operations.append(ImageOperation(name, AMOUNTS[name](strength, 1 if direction < 0.5 else -1)))
    return tuple(operations)
