"""A decoded frame -> the upright picture that is encoded: even sides, 8-bit 4:2:0 in video range,
colours tagged as they were."""

from __future__ import annotations

import functools

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.orientation import Orientation


def copy_size(index: VideoIndex, short_side: int) -> tuple[int, int]:
    """(height, width) of the upright copy: even, as close to the original's shape as that allows,
    not larger."""
    height, width = index.upright_size
    scale = min(1.0, short_side / min(height, width))
    return _even(height * scale, height), _even(width * scale, width)


def _even(side: float, limit: int) -> int:
    return max(2, min(2 * round(side / 2), limit - limit % 2))


class UprightScaler:
    """Makes frames of `height` x `width` upright pixels from decoded ones of any size, format and
    range."""

    def __init__(self, height: int, width: int, *, orientation: Orientation) -> None:
        self._orientation = orientation
        self._height, self._width = (width, height) if orientation.swaps_sides else (height, width)
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
            dst_color_range=ColorRange.MPEG,
            **_on_one_thread(),
        )
        if not self._orientation.is_plain:
            picture = self._turned(picture)
        picture.pict_type = PictureType.NONE  # the encoder decides, not the original
        return picture

    def _turned(self, picture: av.VideoFrame) -> av.VideoFrame:
        luma = self._height * self._width
        flat = picture.to_ndarray().reshape(-1)
        planes = np.split(flat, [luma, luma + luma // 4])
        shapes = [(self._height, self._width)] + 2 * [(self._height // 2, self._width // 2)]
        coded = [plane.reshape(shape) for plane, shape in zip(planes, shapes, strict=True)]
        turned = [self._orientation.apply(plane, axes=(0, 1)) for plane in coded]
        height, width = turned[0].shape
        packed = np.concatenate([np.ascontiguousarray(plane).reshape(-1) for plane in turned])
        fresh = av.VideoFrame.from_ndarray(packed.reshape(height * 3 // 2, width), format="yuv420p")
        fresh.colorspace, fresh.color_range = picture.colorspace, picture.color_range
        fresh.color_primaries, fresh.color_trc = picture.color_primaries, picture.color_trc
        return fresh


@functools.cache
def _on_one_thread() -> dict[str, int]:
    """The argument that keeps libswscale to one thread, where the installed PyAV has it: the files
    are what runs in parallel."""
    try:
        VideoReformatter().reformat(av.VideoFrame(16, 16, "yuv420p"), width=32, threads=1)
    except TypeError:
        return {}
    return {"threads": 1}
