"""A decoded picture -> RGB on the CPU, uint8 [H, W, 3], without a copy where that can be avoided."""

from __future__ import annotations

import contextlib
import functools

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter


class RgbConverter:
    """Converts pictures of one size to RGB of `height` x `width`, the same size or smaller; to BGR if it reverses colours."""

    def __init__(self, height: int, width: int, *, shrinks: bool = False, reverses_colours: bool = False) -> None:
        self._height, self._width = height, width
        self._reformatter = VideoReformatter()
        self._options = {"format": "bgr24" if reverses_colours else "rgb24", **_reformat_options(shrinks=shrinks)}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3], a view of memory that lives as long as it does."""
        picture_HWC = self._view(frame, self._options)
        if picture_HWC is None:
            other = {"format": "rgb24" if self._options["format"] == "bgr24" else "bgr24"}
            picture_HWC = self._view(frame, self._options | other)[..., ::-1]
        return picture_HWC

    def _view(self, frame: av.VideoFrame, options: dict[str, object]) -> np.ndarray | None:
        """None for a picture that needs no conversion and is stored from the bottom up (BGR AVI): its memory begins elsewhere."""
        picture = self._reformatter.reformat(frame, width=self._width, height=self._height, **options)
        plane = picture.planes[0]
        if plane.line_size < 0:
            return None
        lines = np.frombuffer(plane, np.uint8).reshape(self._height, plane.line_size)
        return lines[:, : 3 * self._width].reshape(self._height, self._width, 3)


@functools.lru_cache(maxsize=2)
def _reformat_options(*, shrinks: bool) -> dict[str, object]:
    """How colours are converted, on one thread, as far as the installed PyAV knows how to ask for it.

    At full size by libswscale's quick way, one level of 255 too dark on average, as decord does it: exact rounding and full
    chroma cost 7 ms for a clip of 340 x 256, as much as a fifth of its decoding. Pictures that shrink are averaged exactly:
    the quick way would darken them by two levels.
    """
    plain = exact = Interpolation.AREA if shrinks else Interpolation.BILINEAR
    if shrinks:
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            exact = plain | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    probe = av.VideoFrame(16, 16, "yuv420p")
    for options in ({"interpolation": exact, "threads": 1}, {"interpolation": exact}, {"interpolation": plain}):
        try:
            VideoReformatter().reformat(probe, format="rgb24", **options)
        except (TypeError, ValueError):
            continue
        return options
    return {}
