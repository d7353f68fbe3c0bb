"""A decoded frame -> the upright picture that is encoded: 8-bit 4:2:0, BT.601 in video range, of
sides that NVDEC decodes right."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from mats_ds.data.video.nvdec_support import NVDEC_LIMITS, SIDE_MULTIPLE
from mats_ds.data.video.orientation import Orientation

# Of the area of a picture, to be cut off for the sake of its sides: of one with a shorter side of
# 256 it is never more than 3.1%.
MAX_CUT = 0.05
MAX_SHRINK = 0.8  # of the shorter side, where the sides next to the original's would cut off more
MIN_SIDE = min(NVDEC_LIMITS["h264"].smallest)  # NVDEC takes no smaller ones, whatever they are multiples of


@dataclass(frozen=True)
class CopyShape:
    """Sides of an upright copy in pixels, and of the picture that it is the middle of: the whole
    original, scaled."""

    height: int
    width: int
    whole_height: int
    whole_width: int

    @property
    def num_pixels(self) -> int:
        return self.height * self.width


def copy_shape(height: int, width: int, *, short_side: int) -> CopyShape:
    """The shape of the copy of an upright picture: never larger, never stretched by more than
    rounding to even sides does (under 1% from a shorter side of 200 on).

    Where `short_side` is a multiple of 16, both sides are: the shorter one is `short_side` or the
    largest multiple in the original, the longer one the multiple that less is cut off for, at both
    ends alike. Where that would be more than MAX_CUT, the shorter one is smaller. Small pictures
    for which nothing is found, and all with any other `short_side`, have even sides, and nothing is
    cut off.
    """
    short, long = sorted((height, width))
    largest = 0 if short_side % SIDE_MULTIPLE else min(short_side, short - short % SIDE_MULTIPLE)
    for side in range(largest, max(MIN_SIDE, int(MAX_SHRINK * largest)) - 1, -SIDE_MULTIPLE):
        below = int(long * side / short) // SIDE_MULTIPLE * SIDE_MULTIPLE
        cut, other = min((_cut(side, other, short, long), other) for other in (below, below + SIDE_MULTIPLE) if other <= long)
        if cut <= MAX_CUT:
            scale = max(side / short, other / long)
            wholes = max(side, _even(short * scale, short)), max(other, _even(long * scale, long))
            return CopyShape(side, other, *wholes) if height <= width else CopyShape(other, side, *wholes[::-1])
    scale = min(1.0, short_side / short)
    height, width = _even(height * scale, height), _even(width * scale, width)
    return CopyShape(height, width, height, width)


def _cut(side: int, other: int, short: int, long: int) -> float:
    """The fraction of a picture of `short` x `long` that is cut off to fill `side` x `other`."""
    scale = max(side / short, other / long)
    return 1 - side * other / (short * long * scale**2)


def _even(side: float, limit: int) -> int:
    return max(2, min(2 * round(side / 2), limit - limit % 2))


class UprightScaler:
    """Makes upright pictures of a shape from decoded ones of any size, format, colours and
    range."""

    def __init__(self, shape: CopyShape, *, orientation: Orientation) -> None:
        self._orientation = orientation
        whole = shape.whole_height, shape.whole_width
        self._height, self._width = whole[::-1] if orientation.swaps_sides else whole
        self._shape = shape
        self._is_whole = whole == (shape.height, shape.width)
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        # Averaging is right for shrinking and does nothing where the size stays.
        method = Interpolation.AREA if frame.width > self._width else Interpolation.BILINEAR
        picture = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format="yuv420p",
            interpolation=method,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            **_on_one_thread(),
        )
        if not (self._orientation.is_plain and self._is_whole):
            picture = self._turned(picture)
        picture.pict_type = PictureType.NONE  # the encoder decides, not the original
        return picture

    def _turned(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The middle of a picture, upright."""
        luma, shape = self._height * self._width, self._shape
        planes = np.split(picture.to_ndarray().reshape(-1), [luma, luma + luma // 4])
        packed = []
        for plane, step in zip(planes, (1, 2, 2), strict=True):
            coded = plane.reshape(self._height // step, self._width // step)
            upright = self._orientation.apply(coded, axes=(0, 1))
            top, left = ((whole - side) // 4 * 2 // step for whole, side in _pairs(shape))
            middle = upright[top : top + shape.height // step, left : left + shape.width // step]
            packed.append(np.ascontiguousarray(middle).reshape(-1))
        fresh = av.VideoFrame.from_ndarray(np.concatenate(packed).reshape(-1, shape.width), format="yuv420p")
        fresh.colorspace, fresh.color_range = picture.colorspace, picture.color_range
        fresh.color_primaries, fresh.color_trc = picture.color_primaries, picture.color_trc
        return fresh


def _pairs(shape: CopyShape) -> tuple[tuple[int, int], tuple[int, int]]:
    return (shape.whole_height, shape.height), (shape.whole_width, shape.width)


@functools.cache
def _on_one_thread() -> dict[str, int]:
    """The argument that keeps libswscale to one thread, where the installed PyAV has it: the files
    are what runs in parallel."""
    try:
        VideoReformatter().reformat(av.VideoFrame(16, 16, "yuv420p"), width=32, threads=1)
    except TypeError:
        return {}
    return {"threads": 1}
