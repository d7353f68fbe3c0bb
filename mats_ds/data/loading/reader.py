"""ClipSpec -> the clip as PyAV decodes it, or the file's bytes and frame numbers for a device that
decodes them itself.

A file goes to the device's decoder only if that decoder numbers and shows its frames as PyAV does
(video/nvdec_support.py). All else is decoded by PyAV, made
upright, cropped and scaled at once by the thread that reads it, on a GPU too: what then goes to the
device is a small clip of a fixed size instead of whole pictures of any size. Crops always refer to
the upright picture.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
    from mats_ds.data.clip_sampler import ClipSampler
    from mats_ds.data.video.clip_frames import ClipCropper

# Videos whose clips wait for their readers, which come one after the other, so a few are ever open;
# what an abandoned reader left behind is dropped.
MAX_OPEN_GROUPS = 64


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


class ClipReader:
    """Reads the clips of a sampler, on any thread: `codecs` for the device to decode, all others
    decoded by PyAV.

    size: (height, width) of the frames.
    """

    def __init__(self, sampler: ClipSampler, *, size: tuple[int, int], codecs: Mapping[str, CodecLimits]) -> None:
        self.codecs = codecs
        self._size = size
        self._gives_whole_frames = sampler.augments
        self._shared = None
        if sampler.repeats > 1:
            self._shared = SharedDecoder(sampler.repeats, spec_of=sampler.spec, read=functools.partial(read_together, size=size))

    def read(self, spec: ClipSpec, on_cpu: bool) -> DecodedClip | EncodedClip:
        """One clip; `on_cpu`: decoded by PyAV in any case. Raises UnreadableVideo."""
        if self.codecs and not on_cpu:
            return read_for_device(spec, codecs=self.codecs, size=self._size, whole_frames=self._gives_whole_frames)
        if self._shared is not None and spec.attempt == 0:
            return self._shared.read(spec)
        return read_decoded(spec, size=self._size)


def read_decoded(spec: ClipSpec, *, size: tuple[int, int]) -> DecodedClip:
    """Decode a clip with PyAV: its frames augmented, cropped, scaled to `size` (height, width) and
    flipped.

    Raises UnreadableVideo.
    """
    return _read([spec], size=size)[0]


def read_together(specs: Sequence[ClipSpec], *, size: tuple[int, int]) -> list[DecodedClip | UnreadableVideo]:
    """Clips of one file, decoded in one pass; where that fails, each on its own, so that each is
    judged by its own frames."""
    try:
        return list(_read(specs, size=size))
    except UnreadableVideo:
        return [_read_or_fail(spec, size) for spec in specs]


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


@dataclass
class _Group:
    """`clips` by position, once read; whoever takes one removes it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    clips: dict[int, DecodedClip | UnreadableVideo] | None = None


class SharedDecoder:
    """Decodes a video once for the `repeats` clips of it at neighbouring positions, a group.

    spec_of: the sampler's spec of a position. read: reads clips of one file together.
    """

    def __init__(
        self,
        repeats: int,
        *,
        spec_of: Callable[[int], ClipSpec],
        read: Callable[[Sequence[ClipSpec]], list[DecodedClip | UnreadableVideo]],
    ) -> None:
        self._repeats = repeats
        self._spec_of = spec_of
        self._read = read
        self._groups: OrderedDict[int, _Group] = OrderedDict()
        self._changing = threading.Lock()

    def read(self, spec: ClipSpec) -> DecodedClip:
        """The clip of a spec; what the others of its group need is read with it. Raises
        UnreadableVideo.

        Whichever reader comes first, and whether a clip is kept or read again, its frames are the
        same.
        """
        number = spec.position // self._repeats
        with self._changing:
            group = self._groups.setdefault(number, _Group())
            while len(self._groups) > MAX_OPEN_GROUPS:
                self._groups.popitem(last=False)
        with group.lock:
            if group.clips is None or spec.position not in group.clips:
                positions = range(number * self._repeats, (number + 1) * self._repeats)
                specs = [other for other in map(self._spec_of, positions) if other.path == spec.path]
                group.clips = dict(zip((other.position for other in specs), self._read(specs), strict=True))
            clip = group.clips.pop(spec.position)
            if not group.clips:
                with self._changing:
                    self._groups.pop(number, None)
        if isinstance(clip, UnreadableVideo):
            raise clip
        return clip


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
