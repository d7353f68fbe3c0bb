"""Whole frames -> the crop of what RandAugment makes of them, uint8 [T, height, width, 3]; every
pixel is resampled once.

The operations are done in their order, as if each were done to the whole frame and the crop were
taken at last: tables of values at the frame's own resolution, with what they measure measured on
the whole frame; movements only noted, composed with the crop, and done in one step at the end,
averaging where the crop shrinks. The colours of what movements uncover go through the operations
that follow. So it differs from augmenting whole frames by what a second and third interpolation
would blur.

`PillowFrame` does the operations to one frame on the thread that decodes it (Pillow's own, which
timm uses too), `DeviceFrames` to all frames of a clip where a device has decoded them. All else is
the same code for both.

Legend: T frames, U different frames of a clip, H, W pixels, J movements, V values of a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import av
import numpy as np
import torch

from mats_ds.core.clips import CropSpec, ImageOperation, RandomResizedCropSpec
from mats_ds.data.augment.device_frames import DeviceFrames
from mats_ds.data.augment.geometry import (
    FILL,
    MOVEMENTS,
    Size,
    Warp,
    average_samples,
    filled_fractions,
    make_warp,
    movement_matrix,
    source_region,
    visible_pixels,
)
from mats_ds.data.augment.pillow_frame import PillowFrame
from mats_ds.data.augment.tones import MEASURED, TABLES, look_up, make_table, saturate
from mats_ds.data.video.clip_frames import RgbConverter, scale_pictures, shrink_factor
from mats_ds.data.video.index import VideoIndex

MARGIN = 1  # pixels around a region that interpolation looks at; sharpness looks at as many more
# of larger frames too much would have to be kept: they are shrunk first, as without sharpness
MAX_SHARPENED_PIXELS = 1 << 20
MAX_WARPED_VALUES = 1 << 25  # how many floats are warped at once on a device


class Frames(Protocol):
    """Frames of one size, all treated alike."""

    num_frames: int

    def count(self, visible_HW: np.ndarray | None) -> np.ndarray:
        """Histograms [T, 3, V] of the visible pixels (None: of all)."""

    def look_up(self, table_T3V: np.ndarray) -> None:
        """Replace each value by that of its frame's and colour's table."""

    def saturate(self, factor: float) -> None:
        """Make colours stronger or greyer."""

    def sharpen(self, factor: float) -> None:
        """Make edges sharper or softer."""

    def cut(self, region: tuple[int, int, int, int]) -> None:
        """Keep the part from (top, left) to (bottom, right)."""


class AugmentedCrop:
    """The operations and the crop of one clip, for upright frames of one size. Makes uint8 frames
    of `size` (height, width)."""

    def __init__(self, operations: Sequence[ImageOperation], crop: CropSpec, *, frame: Size, size: Size) -> None:
        self.operations, self.frame, self.size, self.flip = operations, frame, size, crop.flip
        self._matrices = [movement_matrix(one, frame) for one in operations if one.name in MOVEMENTS]
        box = crop.box(*frame)
        top, left, height, width = box
        self._warp: Warp | None = None
        self.region = (top, left, top + height, left + width)
        margin = sum(one.name == "sharpness" for one in operations)
        if self._matrices:
            self._warp = make_warp(self._matrices, box=box, frame=frame, size=size, flip=crop.flip)
            self.region = source_region(self._matrices, box=box, frame=frame, margin=MARGIN)
        top, left, bottom, right = self.region
        self._early_region = (
            max(0, top - margin),
            max(0, left - margin),
            min(frame[0], bottom + margin),
            min(frame[1], right + margin),
        )
        self._last_measured = max((number for number, one in enumerate(operations) if one.name in MEASURED), default=-1)
        self._seen: dict[int, tuple[np.ndarray | None, list[float]]] = {}

    @property
    def flips_region(self) -> bool:
        """Whether `finish` wants developed frames mirrored: Pillow does that in no time. A warp
        mirrors by itself."""
        return self.flip and self._warp is None

    def develop(self, frames: Frames) -> np.ndarray:
        """Do all but the movements to `frames`, and cut them to `region`. Returns the colours of
        the fills, uint8 [T, J, 3]."""
        fills_TJ3 = np.empty((frames.num_frames, 0, 3), np.uint8)
        top, left, bottom, right = self.region
        for number, operation in enumerate(self.operations):
            # from here on nobody looks at the rest of the frame
            if number == self._last_measured + 1:
                frames.cut(self._early_region)
            if operation.name in MOVEMENTS:
                fresh_T13 = np.full((frames.num_frames, 1, 3), FILL, np.uint8)
                fills_TJ3 = np.concatenate([fills_TJ3, fresh_T13], axis=1)
            elif operation.name in TABLES:
                counts_T3V = self._count(frames, fills_TJ3, number) if operation.name in MEASURED else None
                table_T3V = make_table(operation, counts_T3V, num_frames=frames.num_frames)
                frames.look_up(table_T3V)
                fills_TJ3 = look_up(fills_TJ3, table_T3V)
            elif operation.name == "colour":
                frames.saturate(operation.amount)
                fills_TJ3 = saturate(fills_TJ3, operation.amount)
            else:
                assert operation.name == "sharpness"
                frames.sharpen(operation.amount)
        if self._last_measured + 1 < len(self.operations):
            early_top, early_left = self._early_region[:2]
            frames.cut((top - early_top, left - early_left, bottom - early_top, right - early_left))
        else:
            frames.cut(self.region)
        return fills_TJ3

    def finish(self, region_THWC: np.ndarray, fills_TJ3: np.ndarray) -> np.ndarray:
        """The crop of developed frames on the host, by what works on the calling thread alone."""
        if self._warp is None:
            return scale_pictures(region_THWC, size=self.size)
        frames_THWC = np.empty((len(region_THWC), *self.size, 3), np.uint8)
        grid, weights = torch.from_numpy(self._grid()), self._weights()
        for frame, (picture_HWC, fills_J3) in enumerate(zip(region_THWC, fills_TJ3, strict=True)):
            picture_1CHW = torch.from_numpy(picture_HWC.astype(np.float32)).permute(2, 0, 1)[None]
            sampled_1CHW = _sample(picture_1CHW, grid).numpy()
            mixed_1CHW = _mix(sampled_1CHW, fills_J3[None].astype(np.float32), **weights)
            mixed_1CHW += 0.5
            frames_THWC[frame] = np.moveaxis(mixed_1CHW[0].astype(np.uint8), 0, -1)
        return frames_THWC

    def render(self, video_THWC: torch.Tensor) -> torch.Tensor:
        """The crop of whole frames where they are: on the device that has decoded them.

        Raises RuntimeError for frames of another size than the file's index says.
        """
        if tuple(video_THWC.shape[1:3]) != tuple(self.frame):
            raise RuntimeError(f"the device decoded frames of {tuple(video_THWC.shape[1:3])}, expected {tuple(self.frame)}")
        frames = DeviceFrames(video_THWC)
        fills_TJ3 = torch.from_numpy(self.develop(frames).astype(np.float32)).to(video_THWC.device)
        region_TCHW = frames.frames_THWC.permute(0, 3, 1, 2)
        if self._warp is None:
            scaled_TCHW = torch.nn.functional.interpolate(region_TCHW.float(), size=self.size, mode="bilinear", antialias=True)
            scaled_TCHW = scaled_TCHW.flip(-1) if self.flip else scaled_TCHW
            return (scaled_TCHW + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        device = video_THWC.device
        grid = torch.from_numpy(self._grid()).to(device)
        weights = {
            name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in self._weights().items()
        }
        values = 3 * max(grid[0, ..., 0].numel(), region_TCHW[0, 0].numel())
        parts = []
        for some_TCHW, some_TJ3 in zip(
            *(whole.split(max(1, MAX_WARPED_VALUES // values)) for whole in (region_TCHW, fills_TJ3)), strict=True
        ):
            sampled_TCHW = _sample(some_TCHW.float(), grid.expand(len(some_TCHW), -1, -1, -1))
            mixed_TCHW = _mix(sampled_TCHW, some_TJ3, **weights)
            parts.append((mixed_TCHW + 0.5).to(torch.uint8))
        return torch.cat(parts).permute(0, 2, 3, 1).contiguous()

    def _grid(self) -> np.ndarray:
        """Positions of the samples in the region, as torch counts: from -1 at its first edge to 1
        at its last, [1, H, W, 2]."""
        top, left, bottom, right = self.region
        origin, sides = np.float32([left, top]), np.float32([right - left, bottom - top])
        return (2 * (self._warp.points_HW2 - origin) / sides - 1)[None].astype(np.float32)

    def _weights(self) -> dict[str, object]:
        """The weights for `_mix`; no weights where the crop shows no fill."""
        warp = self._warp
        is_filled = bool((warp.content_HW < 1).any())
        return {
            "content_HW": warp.content_HW if is_filled else None,
            "fills_JHW": warp.fills_JHW if is_filled else None,
            "samples": warp.samples,
        }

    def _count(self, frames: Frames, fills_TJ3: np.ndarray, number: int) -> np.ndarray:
        """Histograms of the whole frames as the operations before this number have left them, [T,
        3, V]."""
        visible_HW, fractions_J = self._see(number)
        counts_T3V = frames.count(visible_HW).astype(np.float64)
        for fraction, colours_T3 in zip(fractions_J, fills_TJ3.swapaxes(0, 1), strict=True):
            np.add.at(counts_T3V, (*np.indices(colours_T3.shape), colours_T3), fraction * math.prod(self.frame))
        return counts_T3V

    def _see(self, number: int) -> tuple[np.ndarray | None, list[float]]:
        """The pixels that the movements before this operation leave in the frame, and what fraction
        of it each has filled."""
        if number not in self._seen:
            num_moved = sum(one.name in MOVEMENTS for one in self.operations[:number])
            moved = self._matrices[:num_moved]
            self._seen[number] = (visible_pixels(moved, self.frame), filled_fractions(moved, self.frame)) if moved else (None, [])
        return self._seen[number]


class AugmentingCropper:
    """Collects the pictures of one clip as ClipCropper does, but augments whole pictures first."""

    def __init__(
        self,
        numbers_T: np.ndarray,
        crop: CropSpec | RandomResizedCropSpec,
        *,
        operations: Sequence[ImageOperation],
        index: VideoIndex,
        size: Size,
    ) -> None:
        crop = crop.resolve(*index.upright_size)
        shrink = shrink_factor(crop, index.upright_size, size)
        if index.height * index.width <= MAX_SHARPENED_PIXELS and any(one.name == "sharpness" for one in operations):
            shrink = 1  # edges of the frame's own pixels
        height, width = max(1, index.height // shrink), max(1, index.width // shrink)
        self._orientation = index.orientation
        frame = (width, height) if self._orientation.swaps_sides else (height, width)
        self._crop = AugmentedCrop(operations, crop, frame=frame, size=size)
        self._convert = RgbConverter(height, width, shrinks=shrink > 1)
        numbers = numbers_T.tolist()
        self._row_of = {number: row for row, number in enumerate(dict.fromkeys(numbers))}
        self._rows_T = [self._row_of[number] for number in numbers]
        top, left, bottom, right = self._crop.region
        num_movements = sum(one.name in MOVEMENTS for one in operations)
        self._regions_UHWC = np.empty((len(self._row_of), bottom - top, right - left, 3), np.uint8)
        self._fills_UJ3 = np.empty((len(self._row_of), num_movements, 3), np.uint8)

    def take(self, number: int, frame: av.VideoFrame) -> None:
        """Augment a picture and keep its region, if it belongs to the clip."""
        row = self._row_of.get(number)
        if row is None:
            return
        picture = PillowFrame(self._orientation.apply(self._convert(frame), axes=(0, 1)))
        self._fills_UJ3[row] = self._crop.develop(picture)
        self._regions_UHWC[row] = picture.pixels(flip=self._crop.flips_region)

    def frames(self) -> np.ndarray:
        """uint8 RGB [T, height, width, 3], once all pictures were taken."""
        frames_UHWC = self._crop.finish(self._regions_UHWC, self._fills_UJ3)
        if len(self._rows_T) > len(frames_UHWC):
            frames_UHWC = frames_UHWC[self._rows_T]
        return np.ascontiguousarray(frames_UHWC)


def _sample(frames_TCHW: torch.Tensor, grid_THW2: torch.Tensor) -> torch.Tensor:
    sample = torch.nn.functional.grid_sample
    return sample(frames_TCHW, grid_THW2, mode="bilinear", padding_mode="border", align_corners=False)


def _mix(sampled_TCHW, colours_TJ3, *, content_HW, fills_JHW, samples: Size):
    """Samples of the frame (which are overwritten) and fills together, one value a pixel; arrays or
    tensors alike."""
    if content_HW is None:
        return average_samples(sampled_TCHW, samples)
    sampled_TCHW *= content_HW
    mixed_TCHW = average_samples(sampled_TCHW, samples)
    for number, weight_HW in enumerate(fills_JHW):
        mixed_TCHW += colours_TJ3[:, number, :, None, None] * weight_HW
    return mixed_TCHW
