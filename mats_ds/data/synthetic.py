"""Writes a small set of real video files whose motion is known: the scenes of scenes.py, the label being the direction of motion.

One half is H.264 in .mp4, the other VP9 in .webm. Every class has as many of one as of the other, and as many with a camera
that pans, in whole rounds (6 videos a class). `motion.json` holds, for every video, the sprites' boxes and the shift of the
background in each frame, so that a motion score can be checked against the truth.
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

from mats_ds.data.containers import file_url
from mats_ds.data.scenes import NAMES, Box, SceneSize, draw_scene

logger = logging.getLogger(__name__)

MANIFEST_NAME, MOTION_NAME = "manifest.csv", "motion.json"
FORMAT_VERSION = 4  # 4: a single frame does not tell the label
GOP_FRAMES = 12  # short enough that a clip from the middle costs little to decode
PAN_EVERY = 3  # every third video has a moving camera


@dataclass(frozen=True)
class SyntheticSettings:
    """What a set is made of; two sets of equal settings hold the same motion."""

    num_videos: int
    num_frames: int
    height: int
    width: int
    seed: int
    num_classes: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class VideoMotion:
    """The truth about one video.

    boxes, distractor_boxes, background_shifts: as in Scene; the sprites of `boxes` move as the label says.
    """

    path: str
    label: int
    direction: str
    codec: str
    boxes: list[list[Box]]
    distractor_boxes: list[list[Box]]
    background_shifts: list[tuple[int, int]]


def write_synthetic_set(
    folder: str | os.PathLike[str],
    *,
    num_videos: int = 24,
    num_frames: int = 64,
    height: int = 96,
    width: int = 128,
    seed: int = 0,
    num_classes: int = 4,
) -> Path:
    """The manifest of the set in `folder`, written if it is not there yet. The classes are the first of scenes.NAMES.

    A complete set of the same settings is reused, an incomplete or other synthetic set is written anew. The set appears at
    once, complete, and only one of several processes writes it. Raises ValueError when the folder holds other files.
    """
    settings = SyntheticSettings(num_videos, num_frames, height, width, seed, num_classes)
    if not 2 <= num_classes <= len(NAMES):
        raise ValueError(f"a synthetic set needs 2 to {len(NAMES)} classes of {', '.join(NAMES)}; got num_classes={num_classes}")
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
            "directions": NAMES[: settings.num_classes],
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
    label = number // 2 % settings.num_classes  # pairs, so that both codecs get every class
    name = NAMES[label]
    encoder, suffix = (h264_encoder, "mp4") if number % 2 == 0 else ("libvpx-vp9", "webm")
    # So fine that a coded frame does not tell what came before it: at crf 18 and 24 a probe that knew the true pixels
    # and the sprite's position told the direction from the coding error of frame 11 in 28 to 38% of 400 videos, now in 22 to 26%.
    options = {
        "libx264": {"qp": "2", "preset": "veryfast"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "lossless": "1"},
    }.get(encoder, {})
    size = SceneSize(settings.num_frames, settings.height, settings.width, settings.num_classes)
    scene = draw_scene(rng, name, size=size, pans=_pans(number, settings))
    path = f"synthetic_{number:03d}_{name}.{suffix}"
    with av.open(file_url(folder / path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = settings.width, settings.height, "yuv420p"
        stream.codec_context.gop_size = GOP_FRAMES
        stream.codec_context.thread_count = 1
        if encoder not in ("libx264", "libvpx-vp9"):
            stream.codec_context.bit_rate = 2_000_000
        for frame_HWC in scene.frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode())
    return VideoMotion(path, label, name, encoder, scene.boxes, scene.distractor_boxes, scene.background_shifts)


def _pans(number: int, settings: SyntheticSettings) -> bool:
    """Whether a video's camera moves: in three rounds through the classes, one time for each class and codec."""
    rounds = number // (2 * settings.num_classes)
    # Every third video of all would always be of the same classes where their number is a multiple of three.
    return (number + (rounds if settings.num_classes % PAN_EVERY == 0 else 0)) % PAN_EVERY == PAN_EVERY - 1
