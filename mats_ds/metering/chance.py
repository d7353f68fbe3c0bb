"""Figures of many steps -> whether their mean is more than what chance gives. Every advice on times
asks here first, so that nobody is sent after noise.

Steps are not independent: a disk, a neighbour on the machine or a clock that falls is slow for many
steps in a row. So the steps are cut into NUM_BLOCKS stretches (fewer in a short run), whose means
are nearly independent, and Student's t-test is made of these means; what correlation is left
between neighbouring stretches makes the test weaker (n (1 - r) / (1 + r) of them count, r their
correlation at lag 1, where it is positive: Bartlett's formula for an autoregressive series, as in
Wilks, Statistical Methods in the Atmospheric Sciences, section 5.2.4). Of several ranks the one
that looks worst is chosen, and any of them might have been: the level is divided by their number
(Bonferroni). A disturbance that lasts for half of a short run cannot be distinguished from a
lasting one by any test; whoever gives advice therefore asks for an effect that is worth it, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.01  # of a false alarm, stated wherever an advice rests on it
NUM_BLOCKS = 10
STEPS_PER_BLOCK = 3  # at least: of fewer steps there are fewer stretches
MIN_STEPS = 5 * STEPS_PER_BLOCK  # below, nothing is said
NUM_ANGLES = 4001  # of the integral over the tail of Student's distribution


def exceeds_chance(values_S: Sequence[float] | np.ndarray, *, num_compared: int = 1) -> bool:
    """Whether the mean of a figure of every step, in their order, is above 0 by more than chance.

    num_compared: figures of which this one was picked because it is the largest. False where there
    are fewer than MIN_STEPS.
    """
    means_B = block_means(values_S)
    if means_B is None:
        return False
    spread, num = float(means_B.std(ddof=1)), _independent(means_B)
    mean = float(means_B.mean())
    if spread <= 1e-12 * abs(mean):
        return mean > 0
    return tail(mean / (spread / math.sqrt(num)), degrees=num - 1) < LEVEL / max(1, num_compared)


def differ_beyond_chance(a_S: Sequence[float] | np.ndarray, b_S: Sequence[float] | np.ndarray) -> bool | None:
    """Whether the means of a figure of two runs differ by more than chance, in either direction
    (Welch's test). None where one of them has fewer than MIN_STEPS."""
    a_B, b_B = block_means(a_S), block_means(b_S)
    if a_B is None or b_B is None:
        return None
    nums = _independent(a_B), _independent(b_B)
    parts = [float(means_B.var(ddof=1)) / num for means_B, num in zip((a_B, b_B), nums, strict=True)]
    difference = abs(float(a_B.mean() - b_B.mean()))
    if sum(parts) <= 1e-24 * max(abs(float(a_B.mean())), abs(float(b_B.mean()))) ** 2:
        return difference > 0
    degrees = sum(parts) ** 2 / sum(part**2 / (num - 1) for part, num in zip(parts, nums, strict=True))
    return 2 * tail(difference / math.sqrt(sum(parts)), degrees=degrees) < LEVEL


def block_means(values_S: Sequence[float] | np.ndarray) -> np.ndarray | None:
    """Means of up to NUM_BLOCKS stretches of neighbouring steps, [B]; None of fewer than
    MIN_STEPS."""
    values_S = np.asarray(values_S, dtype=float)
    values_S = values_S[np.isfinite(values_S)]
    if len(values_S) < MIN_STEPS:
        return None
    return np.array([part.mean() for part in np.array_split(values_S, min(NUM_BLOCKS, len(values_S) // STEPS_PER_BLOCK))])


def tail(t: float, *, degrees: float) -> float:
    """The probability that a variable of Student's distribution exceeds `t`.

    With t = sqrt(degrees) tan(angle) the density is that of cos(angle) ** (degrees - 1).
    """
    angles = np.linspace(math.atan(t / math.sqrt(degrees)), math.pi / 2, NUM_ANGLES)
    whole = np.linspace(-math.pi / 2, math.pi / 2, NUM_ANGLES)
    return _integrate(angles, degrees) / _integrate(whole, degrees)


def _integrate(angles: np.ndarray, degrees: float) -> float:
    heights = np.maximum(np.cos(angles), 0.0) ** (degrees - 1)
    return float((heights[1:] + heights[:-1]).sum() / 2 * (angles[1] - angles[0]))


def _independent(means_B: np.ndarray) -> float:
    """The number of independent means that tell as much as these; 2 at least, for a spread."""
    centred = means_B - means_B.mean()
    square = float((centred**2).sum())
    lag = float((centred[1:] * centred[:-1]).sum()) / square if square else 0.0
    num = len(means_B)
    lag = min(max((num * lag + 1) / (num - 3), 0.0), 0.9)  # of few values it comes out too small (Kendall 1954)
    return max(2.0, num * (1 - lag) / (1 + lag))
