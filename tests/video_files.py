"""Videos for tests: tiny files whose every frame shows its own number in black and white
columns."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

NUM_BITS = 8
HEIGHT, WIDTH = 48, 80
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def number_picture(number: int, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 [H, W, 3]: bit k of the number is the k-th of eight columns, white or black; the lower
    half is grey."""
    bits = np.array([number >> bit & 1 for bit in range(NUM_BITS)])
    columns = np.repeat(bits * 215 + 20, width // NUM_BITS)
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : len(columns)] = columns[None, :, None]
    return picture


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Writes a file of numbered frames: `write_video(path, num_frames=..., codec=..., gop=...,
    b_frames=...)`."""

    def write(
        path: Path,
        *,
        num_frames: int = 40,
        codec: str = "libx264",
        gop: int = 12,
        b_frames: int = 0,
        height: int = HEIGHT,
        width: int = WIDTH,
        frame_rate: int = 20,
        options: dict[str, str] | None = None,
        pixel_format: str = "yuv420p",
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = dict(options or {})
        if codec == "libx264":
            options |= {"preset": "ultrafast", "crf": "12", "bf": str(b_frames)}
        elif codec == "libvpx-vp9":
            options |= {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b:v": "0"}
        elif codec == "mpeg4":
            options |= {"bf": str(b_frames)}
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=Fraction(frame_rate), options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            if codec == "mpeg4":
                stream.codec_context.bit_rate = 3_000_000
            for number in range(num_frames):
                picture = number_picture(number, height=height, width=width)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[np.ndarray], list[int]]:
    """The numbers that decoded frames [T, H, W, 3] show."""

    def read(frames_THWC: np.ndarray) -> list[int]:
        width = frames_THWC.shape[2]
        places = [(2 * bit + 1) * (width // NUM_BITS) // 2 for bit in range(NUM_BITS)]
        shown = np.asarray(frames_THWC)[:, frames_THWC.shape[1] // 4, places, 1] > 128
        return [int(sum(bool(bit) << place for place, bit in enumerate(bits))) for bits in shown]

    return read


@pytest.fixture
def write_broken(write_video: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """One broken file of a kind: "empty", "text", "audio", "truncated", "vanished", "garbage",
    "folder"."""

    def write(kind: str) -> Path:
        path = tmp_path / "broken" / f"{kind}.mp4"
        path.parent.mkdir(exist_ok=True)
        if kind == "empty":
            path.write_bytes(b"")
        elif kind == "text":
            path.write_text("this is not a video\n" * 50)
        elif kind == "garbage":
            path.write_bytes(np.random.default_rng(0).bytes(4000))
        elif kind == "folder":
            path.mkdir()
        elif kind == "truncated":  # the index of an .mp4 lies at its end
            whole = write_video(path).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        elif kind == "audio":
            with av.open(str(path), "w") as container:
                stream = container.add_stream("aac", rate=16000)
                samples = np.zeros((1, 16000), np.float32)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                frame.sample_rate = 16000
                container.mux(stream.encode(frame))
                container.mux(stream.encode())
        else:
            assert kind == "vanished"
        return path

    return write


@pytest.fixture
def when_opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], None]:
    """`when_opened(call)`: from now on `call(path)` before a video is opened, by FFmpeg or byte by
    byte."""

    def watch(call: Callable[[str], None]) -> None:
        for module in (av, os):

            def opening(path, *arguments, _open=module.open, **options):
                call(str(path))
                return _open(path, *arguments, **options)

            monkeypatch.setattr(module, "open", opening)

    return watch


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real clips, where this checkout has one beside it."""
    folder = SHARED / "videos"
    if not (folder / "real").is_dir():
        pytest.skip("no folder of real clips beside this checkout")
    return folder


@pytest.fixture
def break_packet() -> Callable[[Path, int], None]:
    """`break_packet(path, number)`: fills a packet of an .mp4 with ones."""

    def break_it(path: Path, number: int) -> None:
        with av.open(str(path)) as container:
            packet = next(itertools.islice(container.demux(video=0), number, None))
            place, size = packet.pos, packet.size
        data = bytearray(path.read_bytes())
        data[place : place + size] = b"\xff" * size
        path.write_bytes(data)

    return break_it
