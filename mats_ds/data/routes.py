"""ClipSpec -> a finished clip that PyAV decoded, or the file's bytes for a DALI graph where the device decodes them itself.

A file goes to the device's decoder only if that decoder numbers and shows its frames as PyAV does: every packet one visible
frame, trusted time stamps, 8-bit 4:2:0 video range, neither turned nor mirrored (DALI ignores both), a picture size that NVDEC
accepts. All else is decoded by PyAV, made upright, cropped and scaled at once by the thread that reads it, on a GPU too: what
then goes to the device is a small clip of a fixed size instead of whole pictures of any size. Crops always refer to the upright
picture.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import numpy as np

from mats_ds.clips import ClipSpec
from mats_ds.data.decode import frame_numbers, visit_frames
from mats_ds.data.probe import READ_ERRORS, UnreadableVideo, describe_error, index_video
from mats_ds.data.video_index import VideoIndex

if TYPE_CHECKING:
    from mats_ds.data.augmented_crop import AugmentedCrop, AugmentingCropper
    from mats_ds.data.cropping import ClipCropper

# Smallest and largest picture sides of each codec. Source: NVIDIA Video Codec SDK, NVDEC application note, table of limits.
NVDEC_SIDES = {
    "h264": (48, 4096),
    "hevc": (144, 8192),
    "mpeg4": (48, 2032),
    "vp8": (48, 4096),
    "vp9": (128, 8192),
    "av1": (128, 8192),
}
MAX_ENCODED_BYTES = 64 << 20  # of a longer file, PyAV reads only the part that it needs


@dataclass(frozen=True, eq=False)
class Region:
    """The crop in pixels of the upright picture, as (top, left, bottom, right), and whether it is mirrored afterwards."""

    corners: tuple[int, int, int, int]
    flip: bool

    @property
    def origin(self) -> tuple[int, int]:
        """(row, column) where reading begins: DALI mirrors a region that ends before it begins."""
        top, left, _, right = self.corners
        return (top, right if self.flip else left)

    @property
    def end(self) -> tuple[int, int]:
        """(row, column) where reading ends."""
        _, left, bottom, right = self.corners
        return (bottom, left if self.flip else right)


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """frames_THWC: uint8 RGB, augmented where the clip says so, cropped, scaled and flipped."""

    frames_THWC: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.frames_THWC.nbytes


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """The whole file as uint8 [bytes] and the frames to decode, int32 [T]. `augmentation`: for graphs that give whole frames."""

    encoded: np.ndarray
    numbers_T: np.ndarray
    region: Region
    codec: str
    augmentation: AugmentedCrop | None = None

    @property
    def num_bytes(self) -> int:
        return self.encoded.nbytes


def read_decoded(spec: ClipSpec, *, size: tuple[int, int]) -> DecodedClip:
    """Decode a clip with PyAV: its frames augmented, cropped, scaled to `size` (height, width) and flipped.

    Raises UnreadableVideo.
    """
    return _read([spec], size=size)[0]


def read_together(specs: Sequence[ClipSpec], *, size: tuple[int, int]) -> list[DecodedClip | UnreadableVideo]:
    """Clips of one file, decoded in one pass; where that fails, each on its own, so that each is judged by its own frames."""
    try:
        return list(_read(specs, size=size))
    except UnreadableVideo:
        return [_read_or_fail(spec, size) for spec in specs]


def _read_or_fail(spec: ClipSpec, size: tuple[int, int]) -> DecodedClip | UnreadableVideo:
    try:
        return read_decoded(spec, size=size)
    except UnreadableVideo as error:
        return error


def _read(specs: Sequence[ClipSpec], *, size: tuple[int, int]) -> list[DecodedClip]:
    path = specs[0].path
    index = index_video(path)
    numbers = [frame_numbers(spec, index=index) for spec in specs]
    croppers = [_make_cropper(spec, numbers_T, index=index, size=size) for spec, numbers_T in zip(specs, numbers, strict=True)]

    def take(number: int, frame: av.VideoFrame) -> None:
        for cropper in croppers:
            cropper.take(number, frame)

    visit_frames(path, np.concatenate(numbers), index=index, take=take)
    return [DecodedClip(cropper.frames()) for cropper in croppers]


def _make_cropper(
    spec: ClipSpec, numbers_T: np.ndarray, *, index: VideoIndex, size: tuple[int, int]
) -> ClipCropper | AugmentingCropper:
    # Both load torch, which the workers of a check do without.
    if spec.operations:
        from mats_ds.data.augmented_crop import AugmentingCropper

        return AugmentingCropper(numbers_T, spec.crop, operations=spec.operations, index=index, size=size)
    from mats_ds.data.cropping import ClipCropper

    return ClipCropper(numbers_T, spec.crop, index=index, size=size)


def read_for_device(
    spec: ClipSpec, *, codecs: frozenset[str], size: tuple[int, int], whole_frames: bool = False
) -> EncodedClip | DecodedClip:
    """A clip for a device that decodes `codecs` itself, in graphs that give crops or `whole_frames`. Raises UnreadableVideo."""
    index = index_video(spec.path)
    if index.codec not in codecs or not device_can_decode(index):
        return read_decoded(spec, size=size)
    numbers_T = frame_numbers(spec, index=index)
    try:
        if os.path.getsize(spec.path) > MAX_ENCODED_BYTES:
            return read_decoded(spec, size=size)
        encoded = np.fromfile(spec.path, np.uint8)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_error(error)) from None
    augmentation = None
    if whole_frames:
        from mats_ds.data.augmented_crop import AugmentedCrop

        frame = index.upright_size
        augmentation = AugmentedCrop(spec.operations, spec.crop.settle(*frame), frame=frame, size=size)
    region = _region(spec, index.upright_size)
    return EncodedClip(encoded, numbers_T.astype(np.int32), region, index.codec, augmentation)


def device_can_decode(index: VideoIndex) -> bool:
    """Whether a hardware decoder shows the very frames of this file that PyAV shows, as far as its index tells."""
    smallest, largest = NVDEC_SIDES.get(index.codec, (1, 0))
    return (
        index.plain
        and index.orientation.is_plain
        and index.pixel_format == "yuv420p"
        and min(index.width, index.height) >= smallest
        and max(index.width, index.height) <= largest
    )


def _region(spec: ClipSpec, picture: tuple[int, int]) -> Region:
    """The crop in a picture of (height, width) pixels."""
    top, left, height, width = spec.crop.settle(*picture).box(*picture)
    return Region((top, left, top + height, left + width), spec.crop.flip)
