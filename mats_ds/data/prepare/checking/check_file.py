"""A video file -> FileFacts, its properties as measured by decoding all of it once, on one thread.

Usable, damaged in part or unreadable: data/video/judgement.py says which. Unreadable too
(UnreadableVideo, with the reason) is a file from whose middle the loader cannot read a clip. One
that is damaged in part is readable, with that verdict as its first warning: `start_seconds` and
`end_seconds` then limit it to its longest stretch of sound frames, so that the loader is never sent
beyond, and `transcode` copies no further. So it is with one that ends long before the length in its
header.

Packets before the first frame that show nothing (a recording that starts in the middle of a group
of pictures) are no fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mats_ds.core.clips import DAMAGED, ClipSpec
from mats_ds.core.format import format_count
from mats_ds.core.shards.members import stat_file
from mats_ds.data.video.containers import describe_torn_end
from mats_ds.data.video.decode import decode_frames, frame_numbers
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import READ_ERRORS, UnreadableVideo, describe_read_error, index_video, open_video
from mats_ds.data.video.judgement import MIN_FRAMES, SoundPart, judge
from mats_ds.data.video.nvdec_support import why_on_cpu
from mats_ds.data.video.recording import Recording, record

CLIP_FRAMES, CLIP_STRIDE = 16, 4  # the clip that is decoded to time the loader
# A frame rate varies if more than this fraction of the gaps between frames is off the median gap
# ...
VFR_FRACTION = 0.02
# ... by more than this fraction of it; rounding of time stamps by up to one tick does not count.
VFR_TOLERANCE = 0.1
# between the header's frame rate and the mean one; the first and last frame weigh much in short
# files
RATE_RATIO = 1.2
# frames further apart than both this and so many usual gaps are reported
GAP_SECONDS, GAP_RATIO = 1.0, 10


@dataclass(frozen=True)
class FileFacts:
    """Measured properties of a readable file.

    num_frames, duration_seconds, fps are of the frames that may be used, those in [start_seconds,
    end_seconds) (None: all).
    first_frame_seconds: when the first of them is shown on the file's clock, which also
    start_seconds and end_seconds refer to. fps is of the usual gap between frames, whatever the
    header says; vfr: more than 2% of the gaps differ from it by 10%.
    gop, gop_max: frames from one key picture to the next, as decoded, median and longest. mirrored,
    rotation: to stand upright the coded picture is mirrored left to right, then turned by so many
    degrees counter-clockwise; width and height are those of the upright picture. decode_seconds:
    CPU seconds of decoding the whole file once; clip_seconds: of decoding one clip of 16 frames at
    stride 4 from its middle, as the loader does before it scales. cpu_reason: why NVDEC is not
    asked; "" if it is.
    """

    num_frames: int
    fps: float
    vfr: bool
    codec: str
    profile: str
    pixel_format: str
    gop: int
    gop_max: int
    mirrored: bool
    rotation: int
    width: int
    height: int
    first_frame_seconds: float
    duration_seconds: float
    decode_seconds: float
    clip_seconds: float
    bytes: int
    num_video_streams: int
    cpu_reason: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def damage(self) -> str:
        """The verdict on a file that is damaged in part, "" for one that is whole."""
        return next((warning for warning in self.warnings if warning.startswith(DAMAGED)), "")


@dataclass(frozen=True)
class Outcome:
    """Facts, or the problem. again: the machine may be to blame (a crash, a time limit), so a later
    check tries the file anew."""

    path: str
    facts: FileFacts | None
    problem: str = ""
    again: bool = False


@dataclass
class _Decoded:
    """Result of decoding a file from start to end. torn: how far it is from the length in its
    header; "" if it is not."""

    recorded: Recording
    torn: str
    header_frames: int
    header_rate: float
    profile: str
    num_video_streams: int


def check_file(path: str, *, on_heartbeat: Callable[[], None] = lambda: None) -> FileFacts:
    """Decode a file once and say what it holds. `on_heartbeat` is called about once a second while
    frames come.

    Raises UnreadableVideo with the reason when the file is bad.
    """
    index = index_video(path)
    started_seconds = time.process_time()
    decoded = _decode_all(path, index, on_heartbeat)
    decode_seconds = time.process_time() - started_seconds
    recorded = decoded.recorded
    part = judge(index, recorded)
    first, last = part.first, part.last
    num_frames = last - first
    seconds_F = index.seconds()
    fps = _frame_rate(index, seconds_F[first:last])
    # Between two frames, half a usual gap from the sound one: the next one that comes may be far.
    start_seconds = end_seconds = None
    if first > 0:
        start_seconds = float(seconds_F[first] - min(seconds_F[first] - seconds_F[first - 1], 1 / fps) / 2)
    if last < len(seconds_F):
        end_seconds = float(seconds_F[last - 1] + min(seconds_F[last] - seconds_F[last - 1], 1 / fps) / 2)
    elif decoded.torn or (recorded.problem and first == 0):  # what does not decode lies behind the last frame
        end_seconds = float(seconds_F[-1]) + 0.5 / fps
    vfr = index.trusts_pts and varies(seconds_F[first:last], tick_seconds=float(index.time_base))
    key_numbers = np.flatnonzero(recorded.is_key_F)
    distances = np.diff([*key_numbers, recorded.num_frames]) if len(key_numbers) else [recorded.num_frames]
    num_bytes = stat_file(path).num_bytes
    height, width = index.upright_size
    return FileFacts(
        num_frames=num_frames,
        fps=fps,
        vfr=vfr,
        codec=index.codec,
        profile=decoded.profile,
        pixel_format=index.pixel_format,
        gop=int(np.median(distances)),
        gop_max=int(np.max(distances)),
        mirrored=index.orientation.mirrored,
        rotation=90 * index.orientation.quarters,
        width=width,
        height=height,
        first_frame_seconds=float(seconds_F[first]),
        duration_seconds=float(seconds_F[last - 1] - seconds_F[first]) + 1 / fps,
        decode_seconds=decode_seconds,
        clip_seconds=_time_clip(index, start_seconds, end_seconds),
        bytes=num_bytes,
        num_video_streams=decoded.num_video_streams,
        cpu_reason=why_on_cpu(index),
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        warnings=tuple(_warnings(index, decoded, part, seconds_F)),
    )


def check_one(path: str, *, on_heartbeat: Callable[[], None] = lambda: None) -> Outcome:
    """`check_file`, where a bad file is an outcome like any other."""
    try:
        return Outcome(path, check_file(path, on_heartbeat=on_heartbeat))
    except UnreadableVideo as unreadable:
        return Outcome(path, None, unreadable.reason)


def _decode_all(path: str, index: VideoIndex, on_heartbeat: Callable[[], None]) -> _Decoded:
    try:
        container, stream = open_video(path, stream_index=index.stream_index)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_read_error(error)) from None
    with container:
        return _Decoded(
            recorded=record(container, stream, on_beat=on_heartbeat),
            torn=describe_torn_end(container, stream, last_seconds=float(index.seconds()[-1])),
            header_frames=stream.frames,
            header_rate=float(stream.average_rate or 0),
            profile=stream.profile or "",
            num_video_streams=len(container.streams.video),
        )


def _frame_rate(index: VideoIndex, seconds_F: np.ndarray) -> float:
    """Frames a second: of the mean of the gaps that are near the median gap, which rounded time
    stamps do not disturb."""
    gaps = np.diff(seconds_F)
    if not index.trusts_pts or not len(gaps):
        return index.frame_rate
    median = float(np.median(gaps))
    tolerance = max(VFR_TOLERANCE * median, float(index.time_base))
    return 1 / float(gaps[np.abs(gaps - median) <= tolerance].mean())


def varies(seconds_F: np.ndarray, *, tick_seconds: float) -> bool:
    """Whether the frame rate varies: more than 2% of the gaps differ by over 10%, and over one
    tick, from the median gap."""
    gaps = np.diff(seconds_F)
    if not len(gaps):
        return False
    median = float(np.median(gaps))
    num_off = int((np.abs(gaps - median) > max(VFR_TOLERANCE * median, 1.01 * tick_seconds)).sum())
    return num_off > VFR_FRACTION * len(gaps)


def _time_clip(index: VideoIndex, start_seconds: float | None, end_seconds: float | None) -> float:
    """CPU seconds of one clip, decoded as the loader does it. Raises UnreadableVideo if it cannot
    be read."""
    spec = ClipSpec(
        path=index.path,
        sample=0,
        num_frames=CLIP_FRAMES,
        stride=CLIP_STRIDE,
        start=0.5,
        first_seconds=start_seconds,
        last_seconds=end_seconds,
    )
    started_seconds = time.process_time()
    decode_frames(index.path, frame_numbers(spec, index=index), index=index)
    return time.process_time() - started_seconds


def _warnings(index: VideoIndex, decoded: _Decoded, part: SoundPart, seconds_F: np.ndarray) -> list[str]:
    warnings = [part.damage] if part.damage else []
    first, last, recorded = part.first, part.last, decoded.recorded
    if index.num_silent:
        warnings.append(
            f"{format_count(index.num_silent, 'packet')} before the first frame without a picture: it "
            f"begins in the middle of a group of pictures"
        )
    if not part.damage and decoded.header_frames and decoded.header_frames != recorded.num_frames:
        warnings.append(f"header says {decoded.header_frames} frames, {recorded.num_frames} decode")
    if decoded.torn:
        warnings.append(decoded.torn)
    gaps = np.diff(seconds_F[first:last])
    if index.trusts_pts and len(gaps) and gaps.max() > max(GAP_SECONDS, GAP_RATIO * np.median(gaps)):
        widest = first + int(np.argmax(gaps))
        warnings.append(f"no frame between {seconds_F[widest]:.2f} s and {seconds_F[widest + 1]:.2f} s")
    if index.trusts_pts and last - first > 1 and decoded.header_rate:
        mean_rate = (last - first - 1) / float(seconds_F[last - 1] - seconds_F[first])
        if not 1 / RATE_RATIO < decoded.header_rate / mean_rate < RATE_RATIO:
            warnings.append(f"header says {decoded.header_rate:g} frames/s, {mean_rate:.3g} decode")
    if not index.trusts_pts:
        warnings.append("time stamps cannot be trusted: frames are counted from the start")
    if odd := index.orientation.odd_degrees:
        warnings.append(f"its display matrix asks for {odd:.0f} degrees more than a quarter turn, which is not done")
    if recorded.num_interlaced:
        warnings.append(f"interlaced: {format_count(recorded.num_interlaced, 'frame')} of two fields, woven as they are coded")
    if decoded.num_video_streams > 1:
        warnings.append(f"{decoded.num_video_streams} video streams, number {index.stream_index} is used")
    if last - first < MIN_FRAMES:
        warnings.append(f"{format_count(last - first, 'frame')}: a clip of {MIN_FRAMES} repeats some")
    return warnings
