"""A video file -> its training copy: small, upright, quick to seek in, with the original's time
stamps.

The copy has 8-bit 4:2:0 pictures by BT.601 whose sides are multiples of 16, the shorter one
`short_side` (never more than the original's; `upright.copy_shape` has the details), a keyframe at
least every `gop` frames with nothing referring across it, no audio, and the same frames at the same
distances in time. Its clock shows 0 at its first frame; an original whose sound begins earlier
counts from there, and `first_seconds` says the difference, by which `start` and `end` in a manifest
must be moved. Frames stream through one by one. The file appears at once: it is written aside,
decoded again, compared with what was put in, flushed to the disk and renamed. The original is only
read.

Why these H.264 options (all with tune fastdecode: no CABAC, no loop filter; crf 23; B-frames
always, none of them referred to, so that the reader skips those that it does not want). Six real
clips at 340 x 256, CPU ms to decode 16 frames at stride 4, bytes divided by those of x264's
defaults at GOP 250, PSNR against these, CPU seconds to encode all six: veryfast, GOP 12, three
B-frames 6.3 ms, 1.48, 39.2 dB, 4.3 s; the same with GOP 16 5.7 ms, 1.31, 39.0 dB, 4.5 s; fast, GOP
16, four B-frames, one reference, no psychovisual noise (the default here) 5.1 ms, 1.43, 39.8 dB,
7.1 s; the same with seven B-frames 5.2 ms, 1.50, 39.7 dB, 7.3 s. A GOP of 16 is an I-frame and
three times four B-frames and a P-frame.
"""

from __future__ import annotations

import contextlib
import math
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace

from mats_ds.core.format import format_count
from mats_ds.core.shards.members import stat_file
from mats_ds.core.storage.files import is_same_file
from mats_ds.data.prepare.copying.copy_settings import ENCODERS, CopySettings
from mats_ds.data.prepare.copying.upright import CopyShape, UprightScaler, copy_shape
from mats_ds.data.prepare.publishing import Publisher, publish
from mats_ds.data.video.containers import describe_torn_end, file_url
from mats_ds.data.video.faults import in_words
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import READ_ERRORS, UnreadableVideo, describe_read_error, index_video, open_video

# MP4 keeps exact times for both codecs (WebM rounds to milliseconds); a time base finer than this
# does not fit its header.
MAX_TIME_SCALE = 1_000_000
SAME_TIME_SECONDS = 1e-6


class CopyFailed(Exception):
    """A copy could not be made for a reason other than the source; `reason` is one line."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(str(reason).split())[:300]
        super().__init__(self.reason)


@dataclass(frozen=True)
class Transcoded:
    """A finished copy. first_seconds: when its first frame is shown on the original's clock; on its
    own, at 0.

    `problem`: where the original breaks off, if only its readable part was kept.
    """

    source: str
    target: str
    num_frames: int
    width: int
    height: int
    first_seconds: float
    duration_seconds: float
    source_bytes: int
    num_bytes: int
    problem: str = ""


def transcode_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    settings: CopySettings | None = None,
    keep_partial: bool = False,
    needed_seconds: float = math.inf,
    publisher: Publisher | None = None,
    on_heartbeat: Callable[[], None] = lambda: None,
) -> Transcoded:
    """Write the training copy of `source` as the .mp4 file `target`, whole and verified or not at
    all.

    Of a source that breaks off, the readable part is kept if it reaches up to `needed_seconds`
    (beyond which nobody wants a frame), or in any case with `keep_partial`. `on_heartbeat` is
    called for every frame that is encoded and verified.
    publisher: which file of the target's name may be replaced; without one, any but the original.
    Raises UnreadableVideo when less of the source decodes than that, and CopyFailed when the copy
    cannot be encoded or does not hold what was put into it.
    """
    source, target = os.fspath(source), Path(target)
    settings, publisher = settings or CopySettings(), publisher or Publisher()
    index = index_video(source)
    if is_same_file(source, target):
        raise ValueError(f"{target} is the original itself: give another target")
    publisher.check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = publisher.open_part(target.parent)
    try:
        written = _encode(index, part, settings, on_heartbeat)
        if written.problem and not (len(written.pts) and (keep_partial or _reaches(written, index, needed_seconds))):
            raise UnreadableVideo(written.problem + ("; --keep_partial keeps what decodes" if len(written.pts) else ""))
        verify_copy(part, written, gop=settings.gop, on_heartbeat=on_heartbeat)
        publisher.note(part, target)
        publish(part, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return Transcoded(
        source=source,
        target=str(target),
        num_frames=len(written.pts),
        width=written.width,
        height=written.height,
        first_seconds=float(index.seconds()[0]),
        duration_seconds=written.last_seconds() + index.frame_seconds(),
        source_bytes=stat_file(source).num_bytes,
        num_bytes=os.path.getsize(target),
        problem=written.problem,
    )


@dataclass(eq=False)
class _Written:
    """Frames handed to the encoder: ascending time stamps from 0 on, in `time_base`, and why it
    ended early, if it did."""

    width: int
    height: int
    time_base: Fraction
    pts: array
    problem: str = ""

    def last_seconds(self) -> float:
        """From the first frame to the last one."""
        return float((self.pts[-1] - self.pts[0]) * self.time_base)


def _reaches(written: _Written, index: VideoIndex, needed_seconds: float) -> bool:
    """Whether no frame before `needed_seconds` of the original's clock is missing at the end."""
    seconds_F = index.seconds()
    last_seconds = float(seconds_F[0]) + written.last_seconds()
    following = int(np.searchsorted(seconds_F, last_seconds + SAME_TIME_SECONDS))
    next_seconds = seconds_F[following] if following < len(seconds_F) else last_seconds + index.frame_seconds()
    return needed_seconds <= next_seconds + SAME_TIME_SECONDS


def _encode(index: VideoIndex, part: Path, settings: CopySettings, on_heartbeat: Callable[[], None]) -> _Written:
    shape = copy_shape(*index.upright_size, short_side=settings.short_side)
    container, stream = open_video(index.path, stream_index=index.stream_index)
    with container:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        # Where there are no time stamps at all, frames are numbered, as everywhere in this package.
        has_times = index.trusts_pts or index.slot_F is not None
        time_base = _copy_time_base(stream.time_base if has_times else 1 / Fraction(rate))
        written = _Written(shape.width, shape.height, time_base, array("q"))
        try:
            with av.open(file_url(part), "w", format="mp4") as output:
                encoder = output.add_stream(ENCODERS[settings.codec], rate=rate, options=settings.encoder_options())
                encoder.width, encoder.height, encoder.pix_fmt = shape.width, shape.height, "yuv420p"
                context = encoder.codec_context
                context.gop_size, context.thread_count, context.time_base = settings.gop, 1, time_base
                for picture in _pictures(container, stream, index, written, shape):
                    if not context.is_open:
                        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
                        context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
                    output.mux(encoder.encode(picture))
                    on_heartbeat()
                if context.is_open:
                    output.mux(encoder.encode())
        except READ_ERRORS as error:  # those of the source are met in _pictures
            raise CopyFailed(f"cannot be encoded: {describe_read_error(error)}") from None
        written.problem = written.problem or _what_is_missing(container, stream, index, written)
    return written


def _copy_time_base(time_base: Fraction) -> Fraction:
    """The original's, unless an MP4 header cannot hold it."""
    return time_base if time_base.denominator <= MAX_TIME_SCALE else Fraction(1, MAX_TIME_SCALE)


def _pictures(
    container, stream: av.VideoStream, index: VideoIndex, written: _Written, shape: CopyShape
) -> Iterator[av.VideoFrame]:
    """Upright pictures of the copy's shape, timed from 0 on. Stops at the first fault and notes it
    in `written.problem`."""
    upright = UprightScaler(shape, orientation=index.orientation)
    for number, frame in enumerate(_decoded(container, stream, index, written)):
        pts = _copied_time(frame, number, index, time_base=written.time_base)
        if frame.is_corrupt or (index.is_sound_F is not None and not index.is_sound_F[number : number + 1].all()):
            written.problem = f"frame {number} of {index.num_stored} is corrupt"
        elif pts is None or pts <= (written.pts[-1] if number else -1):
            written.problem = f"frame {number} of {index.num_frames} has no time after that of the frame before"
        elif number == 0 and pts:
            written.problem = "its first frames do not decode"
        if written.problem:
            return
        picture = upright(frame)
        picture.pts, picture.time_base = pts, written.time_base
        written.pts.append(pts)
        yield picture


def _copied_time(frame: av.VideoFrame, number: int, index: VideoIndex, *, time_base: Fraction) -> int | None:
    """The time stamp of a frame in the copy, counted from the first one; None where the original
    has none for it."""
    times_F = index.pts_F if index.trusts_pts else index.slot_F
    if times_F is None:
        return number
    if index.trusts_pts and not index.doubt:
        time = frame.pts
    elif number < index.num_frames:  # the index has numbered the frames as they come here
        time = times_F[number]
    else:
        return None
    return None if time is None else round((int(time) - int(times_F[0])) * index.time_base / time_base)


def _decoded(container, stream: av.VideoStream, index: VideoIndex, written: _Written) -> Iterator[av.VideoFrame]:
    """The frames up to the first error; packets that fail before the first frame belong to none."""
    try:
        for number, packet in enumerate(container.demux(stream)):
            try:
                yield from packet.decode()
            except FFmpegError:
                if number > index.num_silent or written.pts:
                    raise
    except READ_ERRORS as error:
        written.problem = f"breaks off after {format_count(len(written.pts), 'frame')}: {in_words(describe_read_error(error))}"


def _what_is_missing(container, stream: av.VideoStream, index: VideoIndex, written: _Written) -> str:
    """The reason why the frames that came are not the complete video; empty if they are."""
    num_frames = len(written.pts)
    if num_frames < index.num_frames:
        return f"only {num_frames} of {index.num_frames} frames decode"
    if num_frames > index.num_frames:
        return f"{num_frames} frames decode, its packets hold {index.num_frames}"
    return describe_torn_end(container, stream, last_seconds=float(index.seconds()[0]) + written.last_seconds())


def verify_copy(path: Path, written: _Written, *, gop: int, on_heartbeat: Callable[[], None] = lambda: None) -> None:
    """Decode a copy and compare it with what was put in. Raises CopyFailed with the first
    difference."""
    since_key, number = gop, 0
    try:
        container, stream = open_video(str(path))
        with container:
            for packet in container.demux(stream):
                if packet.size:
                    since_key = 1 if packet.is_keyframe else since_key + 1
                    if since_key > gop:
                        raise CopyFailed(f"the copy has keyframes more than {gop} frames apart")
                for frame in packet.decode():
                    if number >= len(written.pts):
                        raise CopyFailed(f"the copy has more than the {len(written.pts)} frames put into it")
                    if frame.is_corrupt or (frame.width, frame.height) != (written.width, written.height):
                        raise CopyFailed(f"frame {number} of the copy is corrupt or {frame.width} x {frame.height}")
                    if frame.pts is None or frame.pts * stream.time_base != written.pts[number] * written.time_base:
                        raise CopyFailed(f"frame {number} of the copy has another time than in the original")
                    number += 1
                    on_heartbeat()
    except READ_ERRORS as error:
        raise CopyFailed(f"the copy cannot be read: {describe_read_error(error)}") from None
    if number != len(written.pts):
        raise CopyFailed(f"the copy has {number} frames, {len(written.pts)} were put into it")
