"""ClipSpec -> the clip as PyAV decodes it, or the file's bytes and frame numbers for a device that
decodes them itself.

A file goes to the device's decoder only if that decoder numbers and shows its frames as PyAV does
(video/nvdec_support.py). All else is decoded by PyAV, made upright, cropped and scaled at once by
the process that reads it, on a GPU too: what then goes to the device is a small clip of a fixed
size instead of whole pictures of any size. Crops always refer to the upright picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import av
import numpy as np

from mats_ds.core.clips import ClipSpec
from mats_ds.core.shards.members import open_file
from mats_ds.data.video.containers import READ_ERRORS, UnreadableVideo, describe_read_error
from mats_ds.data.video.decode import frame_numbers, visit_frames
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import CodecLimits, device_can_decode

if TYPE_CHECKING:
    from mats_ds.data.augment.augmented_crop import AugmentedCrop, AugmentingCropper
    from mats_ds.data.video.clip_frames import ClipCropper

Clip = TypeVar("Clip")


@dataclass(frozen=True, eq=False)
class Region:
    """The crop in pixels of the upright picture, as (top, left, bottom, right), and whether it is
    mirrored afterwards."""

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
    """A file as uint8 [bytes] and the frames of it to decode, int32 [T].

    augmentation: for decoders that give whole frames, what makes the crop of them.
    """

    encoded: np.ndarray
    numbers_T: np.ndarray
    region: Region
    codec: str
    augmentation: AugmentedCrop | None = None

    @property
    def num_bytes(self) -> int:
        return self.encoded.nbytes


@dataclass(frozen=True)
class ClipReader:
    """Reads clips, in any process.

    size: (height, width) of the frames. gives_whole_frames: the device's decoder gives whole
    frames, of which an augmentation makes the crop.
    """

    size: tuple[int, int]
    gives_whole_frames: bool = False

    def read(
        self, specs: Sequence[ClipSpec], codecs: Mapping[str, CodecLimits]
    ) -> list[DecodedClip | EncodedClip | UnreadableVideo]:
        """Clips of one file: those of `codecs` for the device to decode, within these limits, all
        others decoded by PyAV, in one pass."""
        if not codecs:
            return read_together(specs, size=self.size)
        options = dict(codecs=codecs, size=self.size, whole_frames=self.gives_whole_frames)
        return [_or_failure(read_for_device, spec, **options) for spec in specs]


def read_decoded(spec: ClipSpec, *, size: tuple[int, int]) -> DecodedClip:
    """Decode a clip with PyAV: its frames augmented, cropped, scaled to `size` (height, width) and
    flipped.

    Raises UnreadableVideo.
    """
    return _read([spec], size=size)[0]


def read_together(specs: Sequence[ClipSpec], *, size: tuple[int, int]) -> list[DecodedClip | UnreadableVideo]:
    """Clips of one file, decoded in one pass; where that fails, each on its own, so that each is
    judged by its own frames."""
    if len(specs) > 1:
        try:
            return list(_read(specs, size=size))
        except UnreadableVideo:
            pass
    return [_or_failure(read_decoded, spec, size=size) for spec in specs]


def read_for_device(
    spec: ClipSpec, *, codecs: Mapping[str, CodecLimits], size: tuple[int, int], whole_frames: bool = False
) -> EncodedClip | DecodedClip:
    """A clip for a device that decodes `codecs` itself and gives crops, or `whole_frames`. Raises
    UnreadableVideo."""
    index = index_video(spec.path)
    if not device_can_decode(index, codecs):
        return read_decoded(spec, size=size)
    numbers_T = frame_numbers(spec, index=index)
    try:
        encoded = read_encoded(spec.path)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_read_error(error)) from None
    augmentation = None
    if whole_frames:
        from mats_ds.data.augment.augmented_crop import AugmentedCrop

        frame = index.upright_size
        augmentation = AugmentedCrop(spec.operations, spec.crop.resolve(*frame), frame=frame, size=size)
    region = _region(spec, index.upright_size)
    return EncodedClip(encoded, numbers_T.astype(np.int32), region, index.codec, augmentation)


def _or_failure(read: Callable[..., Clip], spec: ClipSpec, **options: Any) -> Clip | UnreadableVideo:
    try:
        return read(spec, **options)
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
        from mats_ds.data.augment.augmented_crop import AugmentingCropper

        return AugmentingCropper(numbers_T, spec.crop, operations=spec.operations, index=index, size=size)
    from mats_ds.data.video.clip_frames import ClipCropper

    return ClipCropper(numbers_T, spec.crop, index=index, size=size)


def read_encoded(path: str) -> np.ndarray:
    """All bytes of a file, or of a member of a shard, uint8 [bytes]."""
    with open_file(path) as file:
        encoded = np.empty(file.size, np.uint8)
        return encoded[: file.readinto(encoded)]


def _region(spec: ClipSpec, picture: tuple[int, int]) -> Region:
    """The crop in a picture of (height, width) pixels."""
    top, left, height, width = spec.crop.resolve(*picture).box(*picture)
    return Region((top, left, top + height, left + width), spec.crop.flip)
