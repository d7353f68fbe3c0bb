"""Open a video file with FFmpeg, and nothing but that file: its content cannot make FFmpeg open
another file or the network.

FFmpeg judges a file by its bytes. One that is called .mp4 and holds a playlist (HLS, DASH, SDP) or
a concat script would make it read whatever that names, and a path like `concat:a|b` or `http://...`
is an address to it. So only formats that hold their pictures themselves are let in, no protocol but
`file`, and every path is given as one of it: any name is the name of a file. External references
inside a MOV are off by FFmpeg's default.
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
