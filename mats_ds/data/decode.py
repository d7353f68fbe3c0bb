"""(file, frame numbers) -> uint8 frames_THWC on the CPU, by PyAV: every codec, exact frame numbers, as little decoding as needed.

The file is positioned at the keyframe before the first wanted frame, and again wherever the way to the next one is long;
frames that nobody refers to and nobody wants are skipped. A file whose time stamps cannot be trusted (AVI with B-frames) is
decoded from the start and its frames are counted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mats_ds.clips import ClipSpec
from mats_ds.data.probe import READ_ERRORS, UnreadableVideo, VideoIndex, describe_error, index_video, open_video

# Decoders for which leaving out unwanted non-reference frames changes no bit of the others; dav1d drops wanted ones.
SKIPPING_CODECS = frozenset(("h264", "hevc", "mpeg4"))
# A later keyframe is sought only beyond this distance: to decode the few frames up to it costs less than to start anew.
SEEK_FRAMES = 24


def frame_numbers(spec: ClipSpec, *, index: VideoIndex) -> np.ndarray:
    """The frames of a clip, int64 [T], ascending.

    Only frames whose time lies in [first_seconds, last_seconds) are used. Dense: T frames spread evenly over `span` frames,
    beginning at the share `start` of the possible beginnings; a range shorter than the span is used whole, the frames spread
    evenly over it (repeated if there are fewer than T). With `span_seconds` the same in time: at each of T moments the frame
    that is shown then, so frame rates may differ or vary. Uniform: the range is cut into T equal segments; `start` says which
    frame of each. Raises UnreadableVideo when no frame lies in the range.
    """
    first, last = _allowed_range(spec, index)
    num_allowed = last - first
    steps_T = np.arange(spec.num_frames)
    if spec.sampling == "uniform":
        # 2**20ths keep the arithmetic in whole numbers, hence the same everywhere.
        shift = int(spec.start * 2**20)
        offsets_T = (steps_T * 2**20 + shift) * num_allowed // (spec.num_frames * 2**20)
        return first + np.minimum(offsets_T, num_allowed - 1)
    if spec.span_seconds is not None:
        return first + _shown_at(index.seconds()[first:last], spec, last_seconds=_frame_seconds(index))
    span = min(spec.span or spec.num_frames * spec.stride, num_allowed)
    num_beginnings = num_allowed - span + 1
    begin = first + min(int(spec.start * num_beginnings), num_beginnings - 1)
    return begin + steps_T * span // spec.num_frames


def _shown_at(seconds_F: np.ndarray, spec: ClipSpec, *, last_seconds: float) -> np.ndarray:
    """For T moments spread over `span_seconds`, the number of the frame that is shown; the last frame lasts `last_seconds`."""
    whole = seconds_F[-1] + last_seconds - seconds_F[0]
    span = min(spec.span_seconds, whole)
    moments_T = seconds_F[0] + spec.start * (whole - span) + np.arange(spec.num_frames) * span / spec.num_frames
    # a moment that rounding puts just before a frame belongs to that frame
    return np.maximum(np.searchsorted(seconds_F, moments_T + 1e-6, side="right") - 1, 0)


def _frame_seconds(index: VideoIndex) -> float:
    """How long a frame usually lasts."""
    steps = np.diff(index.seconds())
    return float(np.median(steps)) if len(steps) else 1.0 / index.frame_rate


def decode_frames(path: str, numbers: np.ndarray, *, index: VideoIndex | None = None, shrink: int = 1) -> np.ndarray:
    """The frames of these numbers (any order, repeats allowed), uint8 RGB [T, H, W, 3], turned upright.

    `shrink` divides both sides while the colours are converted (averaging): a large picture that will be scaled down anyway
    then costs a fraction of the time and memory.
    Raises UnreadableVideo when one of them is missing, corrupt or cannot be decoded.
    """
    index = index or index_video(path)
    numbers_T = np.asarray(numbers, np.int64)
    wanted = np.unique(numbers_T)
    if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= index.num_frames:
        raise UnreadableVideo(f"frames {numbers_T.tolist()} asked for, it has {index.num_frames}")
    frames_THWC = _Picker(index, numbers_T, shrink)
    if index.trusts_pts and len(index.keyframe_pts_K):
        try:
            _decode_by_seeking(path, index, wanted, frames_THWC)
        except (*READ_ERRORS, UnreadableVideo):
            frames_THWC = _Picker(index, numbers_T, shrink)
        else:
            return frames_THWC.upright()
    try:
        _decode_from_start(path, index, wanted, frames_THWC)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_error(error)) from None
    return frames_THWC.upright()


def _allowed_range(spec: ClipSpec, index: VideoIndex) -> tuple[int, int]:
    first, last = 0, index.num_frames
    if spec.first_seconds is not None or spec.last_seconds is not None:
        seconds_F = index.seconds()
        if spec.first_seconds is not None:
            first = int(np.searchsorted(seconds_F, spec.first_seconds - 1e-6))
        if spec.last_seconds is not None:
            last = int(np.searchsorted(seconds_F, spec.last_seconds - 1e-6))
        if last <= first:
            end = "its end" if spec.last_seconds is None else f"{spec.last_seconds:g} s"
            raise UnreadableVideo(
                f"no frame between {spec.first_seconds or 0:g} s and {end}; the last one is at {seconds_F[-1]:.3f} s"
            )
    return first, last


def _decode_by_seeking(path: str, index: VideoIndex, wanted: np.ndarray, picker: _Picker) -> None:
    container, stream = open_video(path, stream_index=index.stream_index)
    skips = index.codec in SKIPPING_CODECS
    with container:
        for seek_to, numbers in _runs(index, wanted):
            missing = {int(index.pts_F[number]): number for number in numbers}
            last_pts = max(missing)
            container.seek(seek_to, stream=stream, backward=True)
            for packet in container.demux(stream):
                if skips:
                    useful = packet.pts is None or packet.pts in missing
                    stream.codec_context.skip_frame = "DEFAULT" if useful else "NONREF"
                for frame in packet.decode():
                    if frame.pts in missing:
                        picker.take(missing.pop(frame.pts), frame)
                    elif missing and (frame.pts is None or frame.pts > last_pts):
                        raise UnreadableVideo(f"frame {min(missing.values())} did not come")
                if not missing:
                    break
            if missing:
                raise UnreadableVideo(f"frame {min(missing.values())} did not come")


def _runs(index: VideoIndex, wanted: np.ndarray) -> list[tuple[int, list[int]]]:
    """Where to seek to, and the wanted frames to decode from there on."""
    # A frame belongs to the last keyframe that is not shown after it.
    keyframe_of = np.maximum(np.searchsorted(index.keyframe_pts_K, index.pts_F[wanted], side="right") - 1, 0)
    number_of_K = np.searchsorted(index.pts_F, index.keyframe_pts_K)
    runs: list[tuple[int, list[int]]] = []
    for number, keyframe in zip(wanted.tolist(), keyframe_of, strict=True):
        if not runs or number_of_K[keyframe] - runs[-1][1][-1] > SEEK_FRAMES:
            runs.append((int(index.keyframe_seek_K[keyframe]), []))
        runs[-1][1].append(number)
    return runs


def _decode_from_start(path: str, index: VideoIndex, wanted: np.ndarray, picker: _Picker) -> None:
    container, stream = open_video(path, stream_index=index.stream_index)
    remaining = set(wanted.tolist())
    number = -1
    with container:
        for number, frame in enumerate(_frames(container, stream)):
            if number in remaining:
                remaining.remove(number)
                picker.take(number, frame)
            if not remaining:
                return
    raise UnreadableVideo(f"frame {min(remaining)} of {index.num_frames} is missing: only {number + 1} decode")


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        yield from packet.decode()


class _Picker:
    """Turns decoded frames into RGB and puts each where it is wanted; holds no other frame."""

    def __init__(self, index: VideoIndex, numbers_T: np.ndarray, shrink: int = 1) -> None:
        self._index = index
        self._numbers_T = numbers_T
        self._height, self._width = max(1, index.height // shrink), max(1, index.width // shrink)
        self._frames_THWC = np.empty((len(numbers_T), self._height, self._width, 3), np.uint8)
        self._reformatter = VideoReformatter()
        self._options = _reformat_options(shrinks=shrink > 1)

    def take(self, number: int, frame: av.VideoFrame) -> None:
        """Keep a frame at all its places. Raises UnreadableVideo when the decoder calls it corrupt."""
        if frame.is_corrupt:
            raise UnreadableVideo(f"frame {number} is corrupt")
        picture = self._reformatter.reformat(frame, width=self._width, height=self._height, format="rgb24", **self._options)
        places = np.flatnonzero(self._numbers_T == number)
        self._frames_THWC[places] = picture.to_ndarray()

    def upright(self) -> np.ndarray:
        """All frames, turned by the file's rotation."""
        if self._index.rotation == 0:
            return self._frames_THWC
        return np.ascontiguousarray(np.rot90(self._frames_THWC, self._index.rotation // 90, axes=(1, 2)))


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
