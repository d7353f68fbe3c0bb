"""RandAugment's movements of a whole frame, composed with the crop: where each pixel of the crop
comes from.

Points are (x, y) in pixels from the frame's upper left corner; pixel i reaches from i to i + 1.
Each movement is a 2 x 3 matrix that leads from a point of its result back to the point of the frame
before, as in Pillow, which timm uses: shears leave the upper left corner where it is, turns the
centre; shifts are parts of the frame's own sides. What a movement uncovers is filled with one
colour, and whoever comes later moves and recolours that too: so each pixel shows the frame or one
of the J fills.

Legend: H, W pixels of the crop (times the samples taken of each), J movements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mats_ds.core.clips import ImageOperation

FILL = 128  # timm's and VideoMAE's grey, in all three colours
MOVEMENTS = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
COUNTING_SIDE = 256  # points a side on which filled areas are measured
SPARSE = 0.25  # by how much the distance of samples may exceed a pixel of the frame
Size = tuple[int, int]  # (height, width)
Box = tuple[int, int, int, int]  # (top, left, height, width)


def movement_matrix(operation: ImageOperation, frame: Size) -> np.ndarray:
    """float64 [2, 3]: from a point after the movement to the one before."""
    (name, amount), (height, width) = operation, frame
    if name == "rotate":
        cosine, sine = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        x, y = width / 2, height / 2
        return np.array([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])
    matrix = np.eye(2, 3)
    entry, value = {
        "shear_x": ((0, 1), amount),
        "shear_y": ((1, 0), amount),
        "translate_x": ((0, 2), amount * width),
        "translate_y": ((1, 2), amount * height),
    }[name]
    matrix[entry] = value
    return matrix


@dataclass(frozen=True, eq=False)
class Warp:
    """Positions of a crop's samples in the frame (points_HW2), how much of each is frame
    (content_HW), the rest being fill, and how much of each pixel is which fill (fills_JHW).

    `samples` are taken of each pixel of the crop along (height, width), more than one where the
    crop is shrunk.
    """

    points_HW2: np.ndarray
    content_HW: np.ndarray
    fills_JHW: np.ndarray
    samples: Size


def make_warp(matrices: Sequence[np.ndarray], *, box: Box, frame: Size, size: Size, flip: bool) -> Warp:
    """The warp of a crop (`box` of the moved frame) to `size`, mirrored afterwards if `flip`."""
    top, left, height, width = box
    samples = tuple(max(1, math.ceil(side / wanted - SPARSE)) for side, wanted in zip((height, width), size, strict=True))
    rows, columns = (count * side for count, side in zip(samples, size, strict=True))
    y_H = top + (np.arange(rows, dtype=np.float32) + 0.5) * np.float32(height / rows)
    x_W = left + (np.arange(columns, dtype=np.float32) + 0.5) * np.float32(width / columns)
    points_HW2 = np.stack(np.meshgrid(x_W[::-1] if flip else x_W, y_H), axis=-1)
    content_HW = np.ones((rows, columns), np.float32)
    fills = []
    for matrix in matrices[::-1]:
        points_HW2 = _lead(matrix, points_HW2)
        inside_HW = _ramp(points_HW2[..., 0], frame[1]) * _ramp(points_HW2[..., 1], frame[0])
        fills.append(content_HW * (1 - inside_HW))
        content_HW = content_HW * inside_HW
    return Warp(points_HW2, content_HW, average_samples(np.stack(fills[::-1]), samples), samples)


def average_samples(sampled_NHW, samples: Size):
    """The mean of the samples of each pixel, [..., H, W]; arrays or tensors alike."""
    down, across = samples
    if across > 1:
        sampled_NHW = sum(sampled_NHW[..., first::across] for first in range(across)) / across
    if down > 1:
        sampled_NHW = sum(sampled_NHW[..., first::down, :] for first in range(down)) / down
    return sampled_NHW


def source_region(matrices: Sequence[np.ndarray], *, box: Box, frame: Size, margin: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the part of the frame that a crop of the moved frame shows, and
    `margin` pixels around it."""
    top, left, height, width = box
    corners_42 = np.array([(x, y) for x in (left, left + width) for y in (top, top + height)], np.float64)
    for matrix in matrices[::-1]:
        corners_42 = _lead(matrix, corners_42)
    first_x, first_y = np.floor(corners_42.min(axis=0)).astype(int) - margin
    last_x, last_y = np.ceil(corners_42.max(axis=0)).astype(int) + margin
    top, left = (int(min(max(0, first), side - 1)) for first, side in zip((first_y, first_x), frame, strict=True))
    bottom, right = int(min(max(last_y, top + 1), frame[0])), int(min(max(last_x, left + 1), frame[1]))
    return top, left, bottom, right


def visible_pixels(matrices: Sequence[np.ndarray], frame: Size) -> np.ndarray:
    """bool [height, width]: the pixels of the frame that no movement has pushed out."""
    points_HW2 = _centres(frame, frame)
    visible_HW = np.ones(frame, bool)
    for matrix in matrices:
        forth = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
        points_HW2 = _lead(forth, points_HW2)
        visible_HW &= _inside(points_HW2, frame)
    return visible_HW


def filled_fractions(matrices: Sequence[np.ndarray], frame: Size) -> list[float]:
    """The fraction of the moved frame that each movement has filled and no later one has pushed
    out."""
    points_HW2 = _centres((COUNTING_SIDE, COUNTING_SIDE), frame)
    open_HW = np.ones(points_HW2.shape[:2], bool)
    fractions = []
    for matrix in matrices[::-1]:
        points_HW2 = _lead(matrix, points_HW2)
        inside_HW = _inside(points_HW2, frame)
        fractions.append(float((open_HW & ~inside_HW).mean()))
        open_HW &= inside_HW
    return fractions[::-1]


def _centres(count: Size, frame: Size) -> np.ndarray:
    """The middles of `count` (down, across) equal parts of the frame."""
    y_H, x_W = (((np.arange(parts, dtype=np.float32) + 0.5) * side / parts) for parts, side in zip(count, frame, strict=True))
    return np.stack(np.meshgrid(x_W, y_H), axis=-1).astype(np.float32)


def _lead(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    (a, b, c), (d, e, f) = matrix.tolist()
    x, y = points[..., 0], points[..., 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)


def _inside(points_HW2: np.ndarray, frame: Size) -> np.ndarray:
    x_HW, y_HW = points_HW2[..., 0], points_HW2[..., 1]
    return (x_HW >= 0) & (x_HW < frame[1]) & (y_HW >= 0) & (y_HW < frame[0])


def _ramp(coordinates: np.ndarray, side: int) -> np.ndarray:
    """1 inside and 0 outside of 0 to `side`, falling over one pixel, as between two neighbours when
    a picture is enlarged."""
    return np.clip(coordinates + 0.5, 0, 1) * np.clip(side + 0.5 - coordinates, 0, 1)
