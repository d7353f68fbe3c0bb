"""Tiny video files of many kinds, written by PyAV's own encoders: what the tests of exact frames
read.

Every picture differs from all others, with something that moves, so that one that is taken for
another, or decoded without what it refers to, shows. `KINDS` lists the files; a kind that an
installed PyAV cannot write is left out by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_FRAMES = 30
PALETTE_COLOURS = 256


@dataclass(frozen=True)
class ClipFile:
    """How a file is written. palettes: how many different ones the pictures use, one after the
    other."""

    name: str
    codec: str
    pixel_format: str = "yuv420p"
    gop: int = 8
    options: dict[str, str] = field(default_factory=dict)
    height: int = 48
    width: int = 80
    rate: int = 25
    palettes: int = 1


X264 = {"preset": "ultrafast", "crf": "18"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b:v": "0"}
KINDS = (
    ClipFile("h264.mp4", "libx264", options=X264 | {"bf": "2"}),
    ClipFile("h264_open_gop.mp4", "libx264", options=X264 | {"bf": "3", "x264-params": "open-gop=1"}),
    ClipFile("h264_one_gop.mkv", "libx264", gop=250, options=X264 | {"bf": "2"}),
    ClipFile("h264.mov", "libx264", options=X264 | {"bf": "3", "x264-params": "b-pyramid=strict"}),
    ClipFile("h264_ten_bit.mp4", "libx264", "yuv420p10le", options=X264),
    ClipFile("h264_444.mkv", "libx264", "yuv444p", options=X264),
    ClipFile("h264.ts", "libx264", options=X264 | {"bf": "2"}),
    ClipFile("h264.flv", "libx264", options=X264 | {"bf": "2"}),
    ClipFile("h264.avi", "libx264", options=X264 | {"bf": "2"}),
    ClipFile("hevc.mp4", "libx265", options=X265),
    ClipFile("hevc.ts", "libx265", options=X265),
    ClipFile("mpeg4.mp4", "mpeg4", options={"bf": "2"}),
    ClipFile("mpeg4.avi", "mpeg4"),
    ClipFile("mpeg4_b.avi", "mpeg4", options={"bf": "2"}),
    ClipFile("msmpeg4.avi", "msmpeg4"),
    ClipFile("mpeg2.ts", "mpeg2video", options={"bf": "2"}),
    ClipFile("wmv2.wmv", "wmv2"),
    ClipFile("flv1.flv", "flv"),
    ClipFile("h263.3gp", "h263", height=96, width=128),
    ClipFile("svq1.mov", "svq1", "yuv410p"),
    ClipFile("vp8.webm", "libvpx", options={"deadline": "realtime", "crf": "10", "b:v": "1M"}),
    ClipFile("vp9.webm", "libvpx-vp9", options=VP9),
    ClipFile("vp9_hidden.webm", "libvpx-vp9", options=VP9 | {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}),
    ClipFile("av1.mp4", "libsvtav1", height=96, width=160, options={"preset": "12", "svtav1-params": "lp=1"}),
    ClipFile("mjpeg.avi", "mjpeg", "yuvj420p"),
    ClipFile("mjpeg.mov", "mjpeg", "yuvj444p"),
    ClipFile("ffv1.mkv", "ffv1", "yuv422p"),
    ClipFile("huffyuv.avi", "huffyuv", "yuv422p"),
    ClipFile("utvideo.avi", "utvideo", "gbrp"),
    ClipFile("prores.mov", "prores_ks", "yuv422p10le"),
    ClipFile("png.mov", "png", "rgb24"),
    ClipFile("qtrle.mov", "qtrle", "rgb24"),
    ClipFile("qtrle_grey.mov", "qtrle", "gray"),
    ClipFile("raw_yuv.avi", "rawvideo"),
    ClipFile("raw_bgr.avi", "rawvideo", "bgr24"),
    ClipFile("raw_bgr_odd.avi", "rawvideo", "bgr24", height=37, width=51),
    ClipFile("raw_rgb.nut", "rawvideo", "rgb24"),
    ClipFile("raw_grey.avi", "rawvideo", "gray"),
    ClipFile("raw_grey.mov", "rawvideo", "gray"),
    ClipFile("raw_grey16.mkv", "ffv1", "gray16le"),
    ClipFile("palette.avi", "rawvideo", "pal8"),
    ClipFile("palette_odd.avi", "rawvideo", "pal8", height=37, width=51),
    ClipFile("palette.mov", "rawvideo", "pal8"),
    ClipFile("palette.nut", "rawvideo", "pal8"),
    ClipFile("palette_changes.avi", "rawvideo", "pal8", palettes=3),
    ClipFile("palette_msrle.avi", "msrle", "pal8"),
    ClipFile("palette_msrle_changes.avi", "msrle", "pal8", palettes=3),
    ClipFile("palette_smc.mov", "smc", "pal8"),
    ClipFile("palette_zmbv.avi", "zmbv", "pal8"),
    ClipFile("palette_png.mov", "png", "pal8", palettes=3),
    ClipFile("palette.gif", "gif", "pal8"),
    ClipFile("palette_changes.gif", "gif", "pal8", palettes=3),
    ClipFile("palette.apng", "apng", "pal8"),
    ClipFile("colours.apng", "apng", "rgb24"),
)


def picture(number: int, *, height: int, width: int) -> np.ndarray:
    """uint8 RGB [H, W, 3]: smooth colours, a square that moves, and the number as bits in the
    topmost rows."""
    rows, columns = np.mgrid[:height, :width]
    colours = np.stack([3 * columns + 2 * number, 4 * rows + number, rows + columns + 5 * number], -1) % 200
    top, left = 10 + number % (height - 24), 3 * number % (width - 12)
    colours[top : top + 12, left : left + 12] = (220, 240 - 3 * number, 30)
    colours[:8] = np.repeat([[number >> bit & 1] * 3 for bit in range(8)], -(-width // 8), 0)[:width] * 225 + 15
    return colours.astype(np.uint8)


def write_clip(path: Path, kind: ClipFile, *, num_frames: int = NUM_FRAMES) -> Path:
    """Write a file of this kind. Raises FFmpegError or ValueError where this PyAV cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mpeg" if path.suffix == ".mpg" else None) as container:
        stream = container.add_stream(kind.codec, rate=Fraction(kind.rate), options=dict(kind.options))
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, kind.pixel_format
        stream.codec_context.gop_size = kind.gop
        stream.codec_context.thread_count = 1
        if kind.codec in ("mpeg4", "msmpeg4", "mpeg1video", "mpeg2video", "wmv2", "flv", "h263"):
            stream.codec_context.bit_rate = 2_000_000
        for number in range(num_frames):
            container.mux(stream.encode(_frame(kind, number, num_frames)))
        container.mux(stream.encode())
    return path


def _frame(kind: ClipFile, number: int, num_frames: int) -> av.VideoFrame:
    picture_HWC = picture(number, height=kind.height, width=kind.width)
    if kind.pixel_format != "pal8":
        frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
    else:
        palette = _palette(kind.palettes * number // num_frames)
        frame = av.VideoFrame.from_ndarray((picture_HWC[..., 2], palette), format="pal8")
    frame.pts, frame.time_base = number, Fraction(1, kind.rate)
    return frame


def _palette(number: int) -> np.ndarray:
    """uint8 [256, 4] alpha, red, green, blue: colours that no grey can be taken for."""
    shades = np.arange(PALETTE_COLOURS)
    red, green, blue = (shades + 40 * number) % 256, (255 - shades) % 256, (shades * 3 + 90 * number) % 256
    return np.stack([np.full(PALETTE_COLOURS, 255), red, green, blue], -1).astype(np.uint8)


def decode_in_order(path: str | Path) -> list[np.ndarray]:
    """The reference: every picture that decoding from the start to the end shows, uint8 RGB, as it
    is coded."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for packet in container.demux(stream) for frame in packet.decode()]


def write_with_sound(
    path: Path, *, pictures_begin_seconds: float, sound_begins_seconds: float = 0.0, num_frames: int = NUM_FRAMES, gop: int = 8
) -> Path:
    """H.264 at 25 frames a second and silence (AAC), each beginning at its own time; the sound
    lasts as long as the pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, rate, size = 1024, 16000, dict(height=48, width=80)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options=X264 | {"bf": "2"})
        video.pix_fmt, video.codec_context.gop_size, video.codec_context.thread_count = "yuv420p", gop, 1
        video.height, video.width = size["height"], size["width"]
        audio = container.add_stream("aac", rate=rate)
        num_blocks = int((pictures_begin_seconds + num_frames / 25 - sound_begins_seconds) * rate / samples)
        for number in range(max(1, num_blocks)):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.time_base = rate, Fraction(1, rate)
            sound.pts = number * samples + round(sound_begins_seconds * rate)
            container.mux(audio.encode(sound))
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, **size), format="rgb24")
            frame.pts, frame.time_base = number + round(pictures_begin_seconds * 25), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux([*video.encode(), *audio.encode()])
    return path
