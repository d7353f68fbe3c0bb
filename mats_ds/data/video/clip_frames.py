"""Decoded pictures of a clip -> its frames as they are trained on: the crop, scaled and flipped,
uint8 [T, height, width, 3].

Done by the thread that decodes, on it alone, where DALI is not at hand: on a CPU, and for what no
hardware decoder takes. Torch scales uint8 pictures as DALI does (triangle filter, widened where it
shrinks): over real clips the two differ by 0.03 to 0.17 levels of 255 on average, by one at most in
99 of 100 values (more only at the border, where DALI filters over pixels outside of the crop). CPU
ms for a crop of 230 x 230 to 224 x 224, 16 frames, colour conversion included: 2.3, and 0.3 to
mirror them; DALI's CPU resize needed 15, libswscale's scaler from YUV to RGB 5.4, and 2.2 in two
steps (YUV scaled, then converted), but then a level off on average and up to 85 where colours meet.
"""

from __future__ import annotations

import contextlib
import functools

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mats_ds.core.clips import CropSpec, RandomResizedCropSpec
from mats_ds.data.video.index import VideoIndex

# large pictures are first shrunk to a crop that keeps at least twice the wanted resolution
SPARE = 2


class ClipCropper:
    """Collects the pictures of one clip (`take`), then gives its frames. Holds the crops only,
    never whole pictures.

    numbers_T: frame numbers, repeats allowed; `crop` refers to the upright picture; `size` is
    (height, width).
    """

    def __init__(
        self, numbers_T: np.ndarray, crop: CropSpec | RandomResizedCropSpec, *, index: VideoIndex, size: tuple[int, int]
    ) -> None:
        crop = crop.resolve(*index.upright_size)
        self._size, self._flip, self._orientation = size, crop.flip, index.orientation
        numbers = numbers_T.tolist()
        # U different frames
        self._row_of = {number: row for row, number in enumerate(dict.fromkeys(numbers))}
        self._rows_T = [self._row_of[number] for number in numbers]
        shrink = shrink_factor(crop, index.upright_size, size)
        height, width = max(1, index.height // shrink), max(1, index.width // shrink)
        self._convert = RgbConverter(height, width, shrinks=shrink > 1, reverses_colours=crop.flip)
        upright = (width, height) if self._orientation.swaps_sides else (height, width)
        top, left, bottom, right = self._orientation.coded_box(crop.box(*upright), (height, width))
        self._rows, self._columns = slice(top, bottom), slice(left, right)
        self._crops_UHWC = np.empty((len(self._row_of), bottom - top, right - left, 3), np.uint8)

    def take(self, number: int, frame: av.VideoFrame) -> None:
        """Keep the crop of a picture, if it belongs to the clip."""
        row = self._row_of.get(number)
        if row is not None:
            self._crops_UHWC[row] = self._convert(frame)[self._rows, self._columns]

    def frames(self) -> np.ndarray:
        """uint8 RGB [T, height, width, 3], once all pictures were taken."""
        size = self._size[::-1] if self._orientation.swaps_sides else self._size
        frames_UHWC = scale_pictures(self._crops_UHWC, size=size)
        frames_UHWC = self._orientation.apply(frames_UHWC, axes=(1, 2))
        if self._flip:
            frames_UHWC = reverse_rows(np.ascontiguousarray(frames_UHWC))
        if len(self._rows_T) > len(frames_UHWC):
            frames_UHWC = frames_UHWC[self._rows_T]
        return np.ascontiguousarray(frames_UHWC)


def shrink_factor(crop: CropSpec, picture: tuple[int, int], size: tuple[int, int]) -> int:
    """The whole number by which an upright picture can be divided first, its crop still being SPARE
    times as large as needed."""
    _, _, height, width = crop.box(*picture)
    return max(1, min(height // (SPARE * size[0]), width // (SPARE * size[1])))


def scale_pictures(pictures_THWC: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """uint8 pictures scaled to `size` (height, width): bilinear, averaging where they shrink."""
    if pictures_THWC.shape[1:3] == size:
        return pictures_THWC
    import torch  # the workers of prepare.py, which only convert colours, start without it

    # Channels last, contiguous: on x86-64 torch has a kernel for it that works on uint8 and on the
    # calling thread alone.
    pictures_TCHW = torch.from_numpy(pictures_THWC).permute(0, 3, 1, 2)
    scaled_TCHW = torch.nn.functional.interpolate(pictures_TCHW, size=size, mode="bilinear", antialias=True)
    return scaled_TCHW.permute(0, 2, 3, 1).contiguous().numpy()


def reverse_rows(pictures_THWC: np.ndarray) -> np.ndarray:
    """uint8 pictures with the bytes of each row in reverse: mirrored, and BGR turned into RGB.

    Why not a plain flip: numpy moves pixels of three bytes one by one (6 ms a clip), and torch
    would use threads of its own. Words of eight bytes take 0.3 ms.
    """
    num_pictures, height, width, colours = pictures_THWC.shape
    rows = pictures_THWC.reshape(num_pictures * height, width * colours)
    if rows.shape[1] % 8 == 0:
        reversed_rows = np.ascontiguousarray(rows.view(np.uint64)[:, ::-1]).byteswap(inplace=True).view(np.uint8)
    else:
        reversed_rows = np.ascontiguousarray(rows[:, ::-1])
    return reversed_rows.reshape(pictures_THWC.shape)


class RgbConverter:
    """Converts pictures of one size to RGB of `height` x `width`, the same size or smaller; to BGR
    if it reverses colours."""

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
        """None for a picture that needs no conversion and is stored from the bottom up (BGR AVI):
        its memory begins elsewhere."""
        picture = self._reformatter.reformat(frame, width=self._width, height=self._height, **options)
        plane = picture.planes[0]
        if plane.line_size < 0:
            return None
        lines = np.frombuffer(plane, np.uint8).reshape(self._height, plane.line_size)
        return lines[:, : 3 * self._width].reshape(self._height, self._width, 3)


@functools.lru_cache(maxsize=2)
def _reformat_options(*, shrinks: bool) -> dict[str, object]:
    """Options of the colour conversion, on one thread, as far as the installed PyAV knows how to
    ask for it.

    At full size by libswscale's quick way, one level of 255 too dark on average, as decord does it:
    exact rounding and full chroma cost 7 ms for a clip of 340 x 256, as much as a fifth of its
    decoding. Pictures that shrink are averaged exactly: the quick way would darken them by two
    levels.
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
