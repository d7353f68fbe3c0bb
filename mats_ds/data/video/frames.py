"""(video file, frame numbers) -> pictures, for notebooks and for checks from outside; and what the
file holds.

Both are what training reads, by the same index and the same decoding. Only the conversion of
colours is another: training takes libswscale's quick way, one level of 255 too dark on average;
here it is PyAV's `to_ndarray(format="rgb24")`, to the bit.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass

import av
import numpy as np

from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import visit_shown_frames
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import why_on_cpu

NO_GPU = "there is no GPU here; NVDEC where there is one"


@dataclass(frozen=True, eq=False)
class VideoFacts:
    """The contents of a video file, from its packets and not from its header.

    num_frames: F, those that decoding from the start to the end shows. height, width: of the
    upright picture. seconds: float64 [F], when each frame is shown on the file's clock, on which
    players and a manifest's `start` and `end` count. rate: frames a second, the mean from the first
    frame to the last one. codec, container, pixel_format: FFmpeg's names. decoder: "NVDEC" or
    "PyAV", what training on this machine decodes it with; decoder_reason: why it is not NVDEC, ""
    if it is. damaged_frames: int64 numbers of frames that are damaged or follow a damaged one in
    their group; known where the headers of the file do not prove its frames, so that it was decoded
    once. Only `prepare.py check` decodes every file.
    """

    num_frames: int
    height: int
    width: int
    seconds: np.ndarray
    rate: float
    codec: str
    container: str
    pixel_format: str
    decoder: str
    decoder_reason: str
    damaged_frames: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        return self.height, self.width


def read_frames(path: str | os.PathLike[str], numbers: Iterable[int]) -> np.ndarray:
    """The frames of these numbers, uint8 RGB [T, H, W, 3], upright and mirrored as the file says.

    Numbers count from 0 the frames that decoding from the start to the end shows; any order,
    repeats allowed. Pictures of another size than the first one's (a stream that changes it midway)
    are scaled to that. Damaged frames, which training refuses, come as decoding shows them.
    Raises ValueError for numbers that the file has not, and for a file or a frame that cannot be
    read.
    """
    name, index = _index(path)
    numbers_T = _check_numbers(numbers, name=name, num_frames=index.num_frames)
    frames_THWC = np.empty((len(numbers_T), *index.upright_size, 3), np.uint8)
    coded = index.width, index.height

    def take(number: int, frame: av.VideoFrame) -> None:
        if (frame.width, frame.height) != coded:
            frame = frame.reformat(*coded, format="rgb24")
        picture_HWC = frame.to_ndarray(format="rgb24")
        frames_THWC[numbers_T == number] = index.orientation.apply(picture_HWC, axes=(0, 1))

    if len(numbers_T):
        try:
            visit_shown_frames(index.path, numbers_T, index=index, take=take)
        except UnreadableVideo as unreadable:
            raise ValueError(f"{name}: {unreadable.reason}") from None
    return frames_THWC


def video_facts(path: str | os.PathLike[str]) -> VideoFacts:
    """The contents of a video file; reads its packets and decodes one picture. Raises ValueError
    for a file that cannot be read."""
    _, index = _index(path)
    height, width = index.upright_size
    seconds_F = index.seconds()
    lasts = float(seconds_F[-1] - seconds_F[0])
    reason = why_on_cpu(index)
    if not reason and not _has_gpu():
        reason = NO_GPU
    return VideoFacts(
        num_frames=index.num_frames,
        height=height,
        width=width,
        seconds=seconds_F,
        rate=round((index.num_frames - 1) / lasts if lasts > 0 else index.frame_rate, 6),
        codec=index.codec,
        container=index.container,
        pixel_format=index.pixel_format,
        decoder="PyAV" if reason else "NVDEC",
        decoder_reason=reason,
        damaged_frames=np.flatnonzero(~index.is_sound_F) if index.is_sound_F is not None else np.empty(0, np.int64),
    )


def _index(path: str | os.PathLike[str]) -> tuple[str, VideoIndex]:
    """The path as it was given, and its index."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise ValueError(f"a video is given by its path, got {path!r}") from None
    try:
        return name, index_video(os.path.abspath(name))
    except UnreadableVideo as unreadable:
        raise ValueError(f"{name}: {unreadable.reason}") from None


def _check_numbers(numbers: Iterable[int], *, name: str, num_frames: int) -> np.ndarray:
    """The numbers as int64 [T]. Raises ValueError for what is no list of them, and for frames that
    are not there."""
    if isinstance(numbers, (str, bytes)) or not hasattr(numbers, "__iter__"):
        raise ValueError(f"frame numbers are a list like [0, 4, 8] or a range, got {numbers!r}")
    checked = []
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise ValueError(f"frame numbers are whole numbers, got {number!r}")
        try:
            checked.append(operator.index(number))
        except TypeError:  # an array of several
            raise ValueError(f"frame numbers are a flat list of whole numbers, got {number!r} in it") from None
    outside = [number for number in checked if not 0 <= number < num_frames]
    if outside:
        raise ValueError(f"{name} has frames 0 to {num_frames - 1}, got {outside[0]}: there is none of that number")
    return np.asarray(checked, np.int64)


def _has_gpu() -> bool:
    import torch  # not needed for frames

    return torch.cuda.is_available()
