"""RandAugment's operations on colours, as tables of 256 values: uint8 [T, 3, 256], one for
each frame and colour.

Source: the operations of Pillow that timm uses (ImageOps and ImageEnhance), to the byte. As there,
each frame is measured on its own, all of it. Two operations look at more than one byte at a time
and are no tables: colour (`saturate`) and sharpness.

Legend: T frames, V = 256 values of a byte, J colours of filled areas.
"""

from __future__ import annotations

import numpy as np

from mats_ds.core.clips import ImageOperation

MEASURED = {"autocontrast", "equalize", "contrast"}  # depend on the histogram of the frame
TABLES = MEASURED | {"invert", "posterize", "solarize", "solarize_add", "brightness"}
NUM_VALUES = 256
BRIGHT = 128  # solarize_add lifts what is darker
# The weights of red, green and blue in grey (ITU-R BT.601), in parts of 65536, as Pillow has them.
GREY_WEIGHTS = (19595, 38470, 7471)
# Pillow's filter SMOOTH, which its sharpness starts from: the weight of the centre (of the eight
# around it: 1), and of all.
SMOOTH_CENTRE, SMOOTH_SUM = 5, 13
VALUES_V = np.arange(NUM_VALUES)


def make_table(operation: ImageOperation, counts_T3V: np.ndarray | None, *, num_frames: int) -> np.ndarray:
    """uint8 [T, 3, V]: what becomes of each value. `counts_T3V` is each frame's histogram, needed
    by MEASURED only."""
    name, amount = operation
    if name == "autocontrast":
        return _stretch(counts_T3V)
    if name == "equalize":
        return np.stack([np.stack([_equalize(counts_V) for counts_V in counts_3V]) for counts_3V in counts_T3V])
    if name == "contrast":
        return np.repeat(_blend(_mean_grey(counts_T3V)[:, None, None], VALUES_V, amount), 3, axis=1)
    if name == "invert":
        table_V = 255 - VALUES_V
    elif name == "posterize":
        table_V = VALUES_V & ~(2 ** (8 - int(amount)) - 1)
    elif name == "solarize":
        table_V = np.where(amount <= VALUES_V, 255 - VALUES_V, VALUES_V)
    elif name == "solarize_add":
        table_V = np.where(VALUES_V < BRIGHT, np.minimum(255, VALUES_V + int(amount)), VALUES_V)
    else:
        assert name == "brightness"
        table_V = _blend(0, VALUES_V, amount)
    return np.broadcast_to(table_V.astype(np.uint8), (num_frames, 3, NUM_VALUES))


def look_up(colours_TJ3: np.ndarray, table_T3V: np.ndarray) -> np.ndarray:
    """The colours that a table makes of others, uint8."""
    frames_T11, channels_3 = np.arange(len(colours_TJ3))[:, None, None], np.arange(3)
    return table_T3V[frames_T11, channels_3, colours_TJ3]


def saturate(colours_TJ3: np.ndarray, factor: float) -> np.ndarray:
    """Colours further from grey (a factor above 1) or closer to it, uint8."""
    grey_TJ = (colours_TJ3.astype(np.int64) @ np.array(GREY_WEIGHTS) + 0x8000) >> 16
    return _blend(grey_TJ[..., None], colours_TJ3, factor)


def sharpen(picture_HWC: np.ndarray, factor: float) -> np.ndarray:
    """Edges stronger (a factor above 1) or softer, uint8: away from or towards Pillow's filter
    SMOOTH."""
    height, width = picture_HWC.shape[:2]
    soft_HWC = picture_HWC.copy()  # the border keeps its values
    if min(height, width) > 2:
        wide_HWC = picture_HWC.astype(np.uint16)
        rows_HWC = wide_HWC[:-2] + wide_HWC[1:-1] + wide_HWC[2:]
        sum_HWC = rows_HWC[:, :-2] + rows_HWC[:, 1:-1] + rows_HWC[:, 2:]
        sum_HWC += (SMOOTH_CENTRE - 1) * wide_HWC[1:-1, 1:-1]
        soft_HWC[1:-1, 1:-1] = (2 * sum_HWC + SMOOTH_SUM) // (2 * SMOOTH_SUM)
    return _blend(soft_HWC, picture_HWC, factor)


def _blend(start: np.ndarray | int, values: np.ndarray, factor: float) -> np.ndarray:
    """start + factor (values - start) in single precision, cut off to bytes as Pillow does."""
    start = np.asarray(start, np.float32)
    return np.clip(start + np.float32(factor) * (values.astype(np.float32) - start), 0, 255).astype(np.uint8)


def _mean_grey(counts_T3V: np.ndarray) -> np.ndarray:
    """The mean grey of each frame, rounded to whole levels, [T]."""
    mean_T3 = (counts_T3V * VALUES_V).sum(-1) / np.maximum(1, counts_T3V.sum(-1))
    return np.floor(mean_T3 @ np.array(GREY_WEIGHTS) / 65536 + 0.5)


def _stretch(counts_T3V: np.ndarray) -> np.ndarray:
    """The darkest value that occurs becomes 0, the brightest 255."""
    occurs_T3V = counts_T3V > 0
    lowest_T31 = occurs_T3V.argmax(-1)[..., None]
    highest_T31 = 255 - occurs_T3V[..., ::-1].argmax(-1)[..., None]
    scale_T31 = 255.0 / np.maximum(1, highest_T31 - lowest_T31)
    stretched_T3V = np.clip((VALUES_V * scale_T31 - lowest_T31 * scale_T31).astype(np.int64), 0, 255)
    return np.where(highest_T31 > lowest_T31, stretched_T3V, VALUES_V).astype(np.uint8)


def _equalize(counts_V: np.ndarray) -> np.ndarray:
    """Values spread so that each part of the range holds as many pixels; a frame of one value
    stays."""
    counts_V = np.rint(counts_V).astype(np.int64)
    present = counts_V[counts_V > 0]
    step = (present.sum() - present[-1]) // 255 if len(present) > 1 else 0
    if step == 0:
        return VALUES_V.astype(np.uint8)
    return np.minimum(255, (step // 2 + np.cumsum(counts_V) - counts_V) // step).astype(np.uint8)
