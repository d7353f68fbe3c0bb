"""Opens a video file with FFmpeg, and nothing but that file: what it says cannot make FFmpeg open another file or the network.

FFmpeg judges a file by its bytes. One that is called .mp4 and holds a playlist (HLS, DASH, SDP) or a concat script would make it
read whatever that names, and a path like `concat:a|b` or `http://...` is an address to it. So only formats that hold their
pictures themselves are let in, no protocol but `file`, and every path is given as one of it: any name is the name of a file.
External references inside a MOV are off by FFmpeg's default.
"""

from __future__ import annotations

import contextlib
import os

import av
from av.error import ArgumentError, FFmpegError

# FFmpeg's names of demuxers that read one file. A name per demuxer is enough: "mov" stands for mov,mp4,m4a,3gp,3g2,mj2.
FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegvideo", "mpegts", "asf", "flv", "live_flv", "ogg"),
    *("m4v", "h263", "h264", "hevc", "vvc", "vc1", "obu", "av1", "ivf", "mjpeg", "cavsvideo", "dirac", "dnxhd"),
    *("mxf", "nut", "nsv", "rm", "dv", "gxf", "wtv", "gif", "apng", "swf", "yuv4mpegpipe"),
)
ONLY_THE_FILE = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}
# The decoder's own limit is 2^31 pixels: a few bytes of a header would have it allocate gigabytes for one picture. 8K is 2^25.
MAX_PIXELS = 1 << 27
H264_ENCODERS = ("libx264", "libopenh264")
NOT_LET_IN = (
    "its content is no video format that is read here: a playlist, a script or a picture; what those name is never opened "
    "(convert it to .mp4)"
)


class NotAVideoFormat(ValueError):
    """FFmpeg knows the format and it is not one of FORMATS, or the path is an address of another protocol."""


def file_url(path: str | os.PathLike[str]) -> str:
    """A path as FFmpeg takes it for a file, whatever its name: without this `co:lon.mp4` would be of a protocol `co`."""
    return f"file:{os.fspath(path)}"


def open_container(path: str) -> av.container.InputContainer:
    """The container of a local file. Raises what PyAV raises, and NotAVideoFormat.

    Metadata that is no text is tolerated: up to PyAV 18 this must be asked for, PyAV 19 has no such argument any more.
    """
    try:
        try:
            return av.open(file_url(path), options=dict(ONLY_THE_FILE), metadata_errors="replace")
        except TypeError:
            return av.open(file_url(path), options=dict(ONLY_THE_FILE))
    except ArgumentError:  # the answer of FFmpeg to a format or protocol that is not in the lists
        raise NotAVideoFormat(NOT_LET_IN) from None


def limit_pictures(stream: av.VideoStream) -> None:
    """Have the decoder refuse pictures of more than MAX_PIXELS instead of allocating them."""
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(MAX_PIXELS)}


def find_mp4_encoder() -> str:
    """The best video encoder for .mp4 that this PyAV has: one of H.264, else that of MPEG-4 part 2."""
    for name in H264_ENCODERS:
        with contextlib.suppress(FFmpegError, ValueError):
            av.codec.Codec(name, "w")
            return name
    return "mpeg4"
