"""Writes a small set of real video files whose motion is known: textured sprites that move over a still or panning background.

One half is H.264 in .mp4, the other VP9 in .webm. `motion.json` holds, for every video, the sprites' boxes and the shift of the
background in each frame, so that a motion score can be checked against the truth. The label is the axis of motion.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

logger = logging.getLogger(__name__)

AXES = ("horizontal", "vertical", "falling", "rising")  # the labels 0 to 3; the last two are diagonals
_DIRECTIONS = {"horizontal": (0, 1), "vertical": (1, 0), "falling": (1, 1), "rising": (-1, 1)}  # (down, right)
MANIFEST_NAME, MOTION_NAME = "manifest.csv", "motion.json"
FORMAT_VERSION = 3  # 3: diagonals stay diagonals
GOP_FRAMES = 12  # short enough that a clip from the middle costs little to decode
_PAN_EVERY = 3  # every third video has a moving camera


@dataclass(frozen=True)
class SyntheticSettings:
    """What a set is made of; two sets of equal settings hold the same motion. Speeds are in pixels a frame."""

    num_videos: int
    num_frames: int
    height: int
    width: int
    seed: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class VideoMotion:
    """The truth about one video.

    boxes: for each sprite and frame (top, left, height, width), wholly inside the picture. background_shifts: for each frame how
    far (down, right) the camera has gone. sprites later in the list cover earlier ones.
    """

    path: str
    label: int
    axis: str
    codec: str
    boxes: list[list[tuple[int, int, int, int]]]
    background_shifts: list[tuple[int, int]]


def write_synthetic_set(
    folder: str | os.PathLike[str],
    *,
    num_videos: int = 24,
    num_frames: int = 64,
    height: int = 96,
    width: int = 128,
    seed: int = 0,
) -> Path:
    """The manifest of the set in `folder`, written if it is not there yet.

    A complete set of the same settings is reused, an incomplete or other synthetic set is written anew. The set appears at
    once, complete, and only one of several processes writes it. Raises ValueError when the folder holds other files.
    """
    settings = SyntheticSettings(num_videos, num_frames, height, width, seed)
    if num_videos < 1 or num_frames < 2 or min(height, width) < 48 or height % 2 or width % 2:
        raise ValueError(f"a synthetic set needs 1 video, 2 frames and even sides of at least 48 pixels, got {settings}")
    target = Path(folder).absolute()
    if not _is_complete(target, settings):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_process(target.with_name(f".{target.name}.lock")):
            if not _is_complete(target, settings):
                _write_aside(target, settings)
    return target / MANIFEST_NAME


def read_motion(folder: str | os.PathLike[str]) -> list[VideoMotion]:
    """The truth about all videos of a set, in the order of its manifest."""
    return [VideoMotion(**video) for video in json.loads(Path(folder, MOTION_NAME).read_text())["videos"]]


def _is_complete(target: Path, settings: SyntheticSettings) -> bool:
    try:
        motion = json.loads((target / MOTION_NAME).read_text())
        sizes = [(target / video["path"]).stat().st_size for video in motion["videos"]]
        return motion["settings"] == asdict(settings) and sizes == motion["bytes"] and (target / MANIFEST_NAME).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _only_one_process(lock: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on this system: the rename at the end still keeps the set whole
        yield
        return
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_aside(target: Path, settings: SyntheticSettings) -> None:
    """Write the set beside its place, then rename it."""
    from tqdm import tqdm

    _refuse_foreign_files(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        encoder = _h264_encoder()
        numbers = tqdm(range(settings.num_videos), desc=f"writing synthetic videos to {target}", unit="video", delay=2.0)
        videos = [_write_video(aside, number, settings, encoder) for number in numbers]
        with open(aside / MANIFEST_NAME, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("path", "label"))
            writer.writerows((video.path, video.label) for video in videos)
        motion = {
            "settings": asdict(settings),
            "axes": AXES,
            "bytes": [(aside / video.path).stat().st_size for video in videos],
            "videos": [asdict(video) for video in videos],
        }
        (aside / MOTION_NAME).write_text(json.dumps(motion))
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign_files(target: Path) -> None:
    """Raise ValueError rather than delete anything that is not part of a synthetic set."""
    if not target.exists():
        return
    ours = (MANIFEST_NAME, MOTION_NAME)
    foreign = (
        [path.name for path in sorted(target.iterdir()) if path.name not in ours and not path.name.startswith("synthetic_")]
        if target.is_dir()
        else [target.name]
    )
    if foreign:
        raise ValueError(f"{target} holds {foreign[0]}, which is no part of a synthetic set: choose an empty or new folder")


def _h264_encoder() -> str:
    for name in ("libx264", "libopenh264"):
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            av.codec.Codec(name, "w")
            return name
    logger.warning("this PyAV has no H.264 encoder: the .mp4 files of the synthetic set hold MPEG-4 part 2 instead")
    return "mpeg4"


def _write_video(folder: Path, number: int, settings: SyntheticSettings, h264_encoder: str) -> VideoMotion:
    rng = np.random.default_rng((settings.seed, number))
    axis = AXES[number // 2 % len(AXES)]  # pairs, so that both codecs get every axis
    encoder, suffix = (h264_encoder, "mp4") if number % 2 == 0 else ("libvpx-vp9", "webm")
    options = {
        "libx264": {"crf": "18", "preset": "veryfast"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b:v": "0"},
    }.get(encoder, {})
    frames_THWC, boxes, shifts = _draw(rng, number, axis, settings)
    path = f"synthetic_{number:03d}_{axis}.{suffix}"
    with av.open(str(folder / path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = settings.width, settings.height, "yuv420p"
        stream.codec_context.gop_size = GOP_FRAMES
        stream.codec_context.thread_count = 1
        if encoder not in ("libx264", "libvpx-vp9"):
            stream.codec_context.bit_rate = 2_000_000
        for frame_HWC in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return VideoMotion(path, AXES.index(axis), axis, encoder, boxes, shifts)


def _draw(
    rng: np.random.Generator, number: int, axis: str, settings: SyntheticSettings
) -> tuple[np.ndarray, list[list[tuple[int, int, int, int]]], list[tuple[int, int]]]:
    """uint8 frames_THWC, the boxes of each sprite, the shifts of the background."""
    height, width, num_frames = settings.height, settings.width, settings.num_frames
    pans = number % _PAN_EVERY == _PAN_EVERY - 1
    room = 32 if pans else 0
    background = _texture(rng, height + room, width + room, low=40, high=215)
    pan_speed = float(rng.uniform(0.5, 1.0)) if pans else 0.0
    pan_across = bool(rng.integers(2))
    shifts = []
    for frame in range(num_frames):
        shift = round(_there_and_back(pan_speed * frame, room))
        shifts.append((0, shift) if pan_across else (shift, 0))
    frames_THWC = np.stack([background[down : down + height, right : right + width] for down, right in shifts])
    boxes = []
    for _ in range(1 + int(rng.integers(2))):
        side = int(rng.integers(min(height, width) // 5, min(height, width) // 3))
        sprite = _texture(rng, side, side, low=10, high=250)
        speed = float(rng.uniform(1.5, 3.0))
        track = [(*corner, side, side) for corner in _walk(rng, axis, speed, num_frames, (height - side, width - side))]
        for frame, (top, left, _, _) in enumerate(track):
            frames_THWC[frame, top : top + side, left : left + side] = sprite
        boxes.append(track)
    return frames_THWC, boxes, shifts


def _walk(rng: np.random.Generator, axis: str, speed: float, num_frames: int, room: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) in each frame of a sprite that goes there and back on one straight line; `room` is (down, right)."""
    down, right = _DIRECTIONS[axis]
    length = min(size for size, step in zip(room, (down, right), strict=True) if step)
    begin_down, begin_right = (rng.uniform(0, size) for size in room)
    # The corner where the line begins: anywhere if the sprite does not move that way, else so that the line fits.
    top, left = begin_down, begin_right
    if down:
        top = (room[0] - length) * begin_down / room[0] + (length if down < 0 else 0)
    if right:
        left = (room[1] - length) * begin_right / room[1]
    gone = begin_down if down else begin_right
    corners = []
    for frame in range(num_frames):
        along = _there_and_back(gone + speed * frame, length)
        corners.append((round(top + down * along), round(left + right * along)))
    return corners


def _there_and_back(distance: float, room: int) -> float:
    """Where a point is that has gone `distance` in a room of that length, turning round at both walls."""
    if room == 0:
        return 0.0
    place = distance % (2 * room)
    return place if place <= room else 2 * room - place


def _texture(rng: np.random.Generator, height: int, width: int, *, low: int, high: int) -> np.ndarray:
    """A coloured surface with a soft pattern, lit from the upper left, uint8 [H, W, 3].

    The light is the same in every video, so that a small model has something to learn within a minute; colour and pattern differ.
    """
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = rng.uniform(1, 2, 2)
    phase = rng.uniform(0, 2 * np.pi)
    pattern = 0.03 * np.sin(2 * np.pi * (waves[0] * x + waves[1] * y) + phase)
    light = np.clip(1 - (x + y) / 2 + pattern, 0, 1)[..., None]
    colour = rng.uniform(0.6, 1.0, 3)
    return np.uint8((low + (high - low) * light) * colour)
