"""Open a video file with FFmpeg, and nothing but that file: its content cannot make FFmpeg open
another file or the network.

FFmpeg judges a file by its bytes. One that is called .mp4 and holds a playlist (HLS, DASH, SDP) or
a concat script would make it read whatever that names, and a path like `concat:a|b` or `http://...`
is an address to it. So only formats that hold their pictures themselves are let in, no protocol but
`file`, and every path is given as one of it: any name is the name of a file. External references
inside a MOV are off by FFmpeg's default.

The length that a header promises tells a file that was torn off: a torn MP4 cannot be opened at
all, a torn Matroska, AVI or transport stream reads like a whole one, up to where it ends.
"""

from __future__ import annotations

import contextlib
import os

import av
from av.error import ArgumentError, FFmpegError

from mats_ds.core.shards.members import open_file, split_member
from mats_ds.core.shards.open_shards import NoMember

# FFmpeg's names of demuxers that read one file. A name per demuxer is enough: "mov" stands for
# mov,mp4,m4a,3gp,3g2,mj2.
FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "flv", "live_flv", "ogg"),
    *("m4v", "h263", "h264", "hevc", "vvc", "vc1", "obu", "av1", "ivf", "mjpeg", "cavsvideo", "dirac", "dnxhd"),
    *("mxf", "nut", "nsv", "rm", "dv", "gxf", "wtv", "gif", "apng", "swf", "yuv4mpegpipe"),
)
ONLY_THE_FILE = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
# The decoder's own limit is 2^31 pixels: a few bytes of a header would have it allocate gigabytes
# for one picture. 8K is 2^25.
MAX_PIXELS = 1 << 27
H264_ENCODERS = ("libx264", "libopenh264")
# A file whose header promises this much more than it holds is taken for torn; headers are often off
# by a frame or two.
TORN_SHARE, TORN_SECONDS = 0.1, 1.0
TORN_FRAMES = 2.5  # of a file that another decoder than FFmpeg's is not trusted with
TELL_THE_END = ("matroska,webm", "asf")
# What PyAV raises for a file that is not a sound video: FFmpeg's errors, metadata that is not text,
# absurd sizes.
READ_ERRORS = (FFmpegError, OSError, ValueError, IndexError, MemoryError)
UNSUPPORTED = (
    "its content is no video format that is read here: a playlist, a script or a picture; files that those refer to are never "
    "opened (convert it to .mp4)"
)


class NotAVideoFormat(ValueError):
    """FFmpeg knows the format and it is not one of FORMATS, or the path is an address of another
    protocol."""


class UnreadableVideo(Exception):
    """A video, or the wanted part of it, cannot be read; `reason` says why in one line."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(str(reason).split())[:300] or "unknown"
        super().__init__(self.reason)


def file_url(path: str | os.PathLike[str]) -> str:
    """A path as FFmpeg takes it for a file, whatever its name: without this `co:lon.mp4` would be
    of a protocol `co`."""
    return f"file:{os.fspath(path)}"


def open_video(path: str, *, stream_index: int | None = None) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Container and video stream, on one decoding thread. Raises what PyAV raises; UnreadableVideo
    without a video stream."""
    container = open_container(path)
    try:
        stream = _choose_stream(container) if stream_index is None else container.streams[stream_index]
        if stream.codec_context is None:
            raise UnreadableVideo("no decoder for its video codec")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        limit_pictures(stream)
    except BaseException:
        container.close()
        raise
    return container, stream


def open_container(path: str) -> av.container.InputContainer:
    """The container of a local file, or of a member of a tar shard. Raises what PyAV raises, and
    NotAVideoFormat.

    Metadata that is no text is tolerated: up to PyAV 18 this must be asked for, PyAV 19 has no such
    argument any more.
    """
    # A member of a shard is read through Python and has no address, so that none can be made of it.
    source = file_url(path) if split_member(path) is None else open_file(path)
    try:
        try:
            return av.open(source, options=dict(ONLY_THE_FILE), metadata_errors="replace")
        except TypeError:
            return av.open(source, options=dict(ONLY_THE_FILE))
    except ArgumentError:  # the answer of FFmpeg to a format or protocol that is not in the lists
        raise NotAVideoFormat(UNSUPPORTED) from None


def limit_pictures(stream: av.VideoStream) -> None:
    """Have the decoder refuse pictures of more than MAX_PIXELS instead of allocating them."""
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(MAX_PIXELS)}


def describe_read_error(error: BaseException) -> str:
    """One line for an error of PyAV or the system, without the path, which the caller adds."""
    if isinstance(error, UnreadableVideo):
        return error.reason
    if isinstance(error, NotAVideoFormat):
        return str(error)
    if isinstance(error, NoMember):
        return error.strerror
    text = getattr(error, "strerror", None) or str(error)
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    streams = [stream for stream in container.streams.video if not _is_cover_art(stream)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise UnreadableVideo(f"no video stream in it, only {', '.join(kinds) or 'nothing'}")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def _is_cover_art(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def find_mp4_encoder() -> str:
    """The best video encoder for .mp4 that this PyAV has: one of H.264, else that of MPEG-4 part
    2."""
    for name in H264_ENCODERS:
        with contextlib.suppress(FFmpegError, ValueError):
            av.codec.Codec(name, "w")
            return name
    return "mpeg4"


def describe_torn_end(container: av.container.InputContainer, stream: av.VideoStream, *, last_seconds: float) -> str:
    """Sentence on the seconds that the header promises and the stream lacks, empty if they are few.

    last_seconds: the stream's last frame on the clock.
    """
    promised, held = _promised_and_held(container, stream, last_seconds)
    if promised - held > max(TORN_SECONDS, TORN_SHARE * promised):
        return f"ends after {held:.2f} s of the {promised:.2f} s in its header"
    return ""


def lacks_frames(
    container: av.container.InputContainer, stream: av.VideoStream, *, last_seconds: float, frame_seconds: float
) -> bool:
    """Whether the last frame comes earlier than the header promises by more than a few frames, as
    where a file was torn off."""
    promised, held = _promised_and_held(container, stream, last_seconds)
    return promised - held > TORN_FRAMES * frame_seconds


def _promised_and_held(
    container: av.container.InputContainer, stream: av.VideoStream, last_seconds: float
) -> tuple[float, float]:
    """Seconds of the video stream from its first packet to its end, and to its last frame."""
    return promised_seconds(container, stream), last_seconds + _clock_start(container) - _begin(stream)


def promised_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The length of the video stream by the header, from its first packet on; 0 where it has
    nothing on this stream.

    Matroska has, in its segment and in the tag that FFmpeg writes for each track, when the last
    frame ends and not how long all of them last: pictures from 2 s to 5 s have a DURATION of 5 s.
    So does ASF.
    """
    # sound may go on for longer than the picture
    alone = all(other is stream for other in container.streams)
    promised = _tagged_seconds(stream)
    if stream.duration:
        promised = float(stream.duration * stream.time_base)
    elif promised is None and container.duration and alone:
        promised = container.duration / av.time_base
    if promised is None:
        return 0.0
    return max(0.0, promised - _begin(stream)) if container.format.name in TELL_THE_END else promised


def _tagged_seconds(stream: av.VideoStream) -> float | None:
    """The content of Matroska's tag DURATION, as FFmpeg and MKVToolNix write it:
    00:00:05.023000000."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    with contextlib.suppress(ValueError):
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None


def _begin(stream: av.VideoStream) -> float:
    """The first time stamp of the stream in seconds."""
    return 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)


def _clock_start(container: av.container.InputContainer) -> float:
    """The time stamp in seconds at which the clock shows 0; a microsecond off, which does not
    matter here."""
    return (container.start_time or 0) / av.time_base
