"""The files that decoding is measured on: every format that matters, broken ones, and many equal
ones for rates."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_FRAMES, HEIGHT, WIDTH = 50, 176, 208
# The matrix of a track lies so many bytes behind its box's name: 16.16 fixed point, the last column
# 2.30. ISO/IEC 14496-12.
TKHD_MATRIX = 44
QUARTER_TURN = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
BROKEN = ("empty", "text", "garbage", "truncated", "torn", "lost", "flipped", "bits")
BT709 = 1  # FFmpeg's number


@dataclass(frozen=True)
class Format:
    """How a file is encoded. `gaps`: ticks from each frame to the next, in turn, of 1/30 s.
    colours: the matrix that it states, 2 for none."""

    file: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pixel_format: str = "yuv420p"
    height: int = HEIGHT
    width: int = WIDTH
    gaps: tuple[int, ...] = (1,)
    is_rotated: bool = False
    colours: int = 2


H264 = {"preset": "veryfast", "crf": "10"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b:v": "0"}
FORMATS = {
    "h264": Format("h264.mp4", "libx264", H264 | {"bf": "2"}),
    "h264, open GOP": Format("open.mp4", "libx264", H264 | {"bf": "3", "x264-params": "open-gop=1"}),
    "h264, 4:2:2": Format("h264-422.mp4", "libx264", H264, "yuv422p"),
    "hevc": Format("hevc.mp4", "libx265", {"preset": "ultrafast", "crf": "10", "x265-params": "log-level=none"}),
    "hevc, 10 bit": Format(
        "hevc10.mp4", "libx265", {"preset": "ultrafast", "crf": "10", "x265-params": "log-level=none"}, "yuv420p10le"
    ),
    "mpeg4 (XviD AVI)": Format("mpeg4.avi", "mpeg4", {"b": "4M"}),
    "vp9": Format("vp9.webm", "libvpx-vp9", VP9),
    "av1": Format("av1.mp4", "libsvtav1", {"preset": "12", "crf": "12"}),
    "odd size": Format("odd.mp4", "libx264", H264, height=182, width=214),
    "352 x 256": Format("352.mp4", "libx264", H264, height=256, width=352),
    "340 x 256": Format("340.mp4", "libx264", H264, height=256, width=340),
    "BT.709": Format("bt709.mp4", "libx264", H264, colours=BT709),
    "vp9, odd": Format("odd.webm", "libvpx-vp9", VP9, height=177, width=209),
    "variable rate": Format("vfr.mp4", "libx264", H264 | {"bf": "2"}, gaps=(1, 3, 2, 7)),
    "rotated": Format("rotated.mp4", "libx264", H264, is_rotated=True),
}


def draw_frame(number: int, height: int, width: int) -> np.ndarray:
    """A picture that shows its number as eight columns, over slopes of colour."""
    picture = np.zeros((height, width, 3), np.uint8)
    bits = np.repeat([number >> bit & 1 for bit in range(8)], width // 8)
    picture[: height // 2, : len(bits)] = (bits * 215 + 20)[None, :, None]
    slope = np.linspace(30, 220, height - height // 2)[:, None]
    picture[height // 2 :] = np.stack([slope, slope[::-1], np.full_like(slope, 128)], -1)
    return picture


def write_format(path: Path, how: Format, *, num_frames: int = NUM_FRAMES, gop: int = 12) -> Path:
    """Raises what PyAV raises where the encoder is missing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(how.codec, rate=Fraction(30), options=dict(how.options))
        stream.width, stream.height, stream.pix_fmt = how.width, how.height, how.pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.colorspace = how.colours
        if how.gaps != (1,):
            stream.codec_context.time_base = stream.time_base = Fraction(1, 30)
        time = 0
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw_frame(number, how.height, how.width), format="rgb24")
            if how.gaps != (1,):
                frame.pts, frame.time_base = time, Fraction(1, 30)
                time += how.gaps[number % len(how.gaps)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if how.is_rotated:
        turn(path)
    return path


def turn(path: Path) -> None:
    """Set the rotation in the header of an .mp4 to a quarter turn."""
    content = bytearray(path.read_bytes())
    offset = content.index(b"tkhd") + TKHD_MATRIX
    for number, value in enumerate(QUARTER_TURN):
        content[offset + 4 * number : offset + 4 * number + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(content))


def write_broken(path: Path, kind: str, good: Path) -> Path:
    """A file that is broken in one way. torn, lost: of Matroska, cut in the middle or without its
    second packet, it reads like a whole file. truncated: without its index. flipped: wrong bytes
    all over. bits: some inside one packet, which no header tells."""
    if kind in ("torn", "lost"):
        return _write_part(path.with_suffix(".mkv"), good, is_torn=kind == "torn")
    content = bytearray(good.read_bytes())
    if kind == "empty":
        content = bytearray()
    elif kind == "text":
        content = bytearray(b"this is not a video\n" * 200)
    elif kind == "garbage":
        content = bytearray(np.random.default_rng(0).bytes(8000))
    elif kind == "truncated":
        del content[len(content) // 2 :]
    elif kind == "bits":
        with av.open(str(good)) as whole:
            packet = max((packet for packet in whole.demux(video=0) if packet.size), key=lambda packet: packet.size)
            begin, size = packet.pos, packet.size
        for offset in range(begin + size // 3, begin + size // 2, 7):
            content[offset] ^= 0x55
    else:
        assert kind == "flipped"
        for offset in range(len(content) // 3, len(content) // 2, 97):
            content[offset] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def _write_part(path: Path, good: Path, *, is_torn: bool) -> Path:
    with av.open(str(good)) as whole, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if packet.size and (is_torn or number != 1):
                packet.stream = stream
                container.mux(packet)
    if is_torn:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    return path


def write_many(folder: Path, *, count: int, num_frames: int, gop: int, in_hd: bool) -> Path:
    """A folder of `count` equal H.264 files (one is encoded, the rest are copies), 352 x 256, or 96
    x 64 for a rehearsal."""
    folder.mkdir()
    size = dict(height=256, width=352) if in_hd else dict(height=64, width=96)
    first = write_format(folder / "0.mp4", Format("", "libx264", H264, **size), num_frames=num_frames, gop=gop)
    for number in range(1, count):
        shutil.copy(first, folder / f"{number}.mp4")
    return folder
