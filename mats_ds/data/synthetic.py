"""Write a small set of real video files whose motion is known: the scenes of scenes.py, the label
being the direction of motion.

One half is H.264 in .mp4, the other VP9 in .webm. Every class has as many of one as of the other,
and as many with a camera that pans, in whole rounds (6 videos a class). `motion.json` holds, for
every video, the sprites' boxes and the shift of the background in each frame, so that a motion
score can be checked against the truth.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mats_ds.core.progress import show_progress
from mats_ds.core.storage.files import hash_file, hash_text, open_to_append, write_text
from mats_ds.core.storage.folder_lock import lock_until_closed
from mats_ds.data.encode import encode_frames
from mats_ds.data.scenes import NAMES, Box, SceneSize, make_scene
from mats_ds.data.video.containers import find_mp4_encoder

logger = logging.getLogger(__name__)

MANIFEST_NAME, MOTION_NAME = "manifest.csv", "motion.json"
FORMAT_VERSION = 4  # 4: a single frame does not show the label
GOP_FRAMES = 12  # short enough that a clip from the middle costs little to decode
PAN_EVERY = 3  # every third video has a moving camera


@dataclass(frozen=True)
class SyntheticSettings:
    """Settings of a set; two sets of equal settings hold the same motion."""

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

    boxes, distractor_boxes, background_shifts: as in Scene; the sprites of `boxes` move as the
    label is.
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
    """The manifest of the set in `folder`, written if it is not there yet. The classes are the
    first of scenes.NAMES.

    A complete set of the same settings is reused, a damaged or other synthetic set is written anew.
    The set appears at once, complete, and only one of several processes writes it, the others wait.
    Raises ValueError when the folder holds anything else or cannot be written.
    """
    settings = SyntheticSettings(num_videos, num_frames, height, width, seed, num_classes)
    if not 2 <= num_classes <= len(NAMES):
        raise ValueError(f"a synthetic set needs 2 to {len(NAMES)} classes of {', '.join(NAMES)}; got num_classes={num_classes}")
    if num_videos < 1 or num_frames < 2 or min(height, width) < 48 or height % 2 or width % 2:
        raise ValueError(f"a synthetic set needs 1 video, 2 frames and even sides of at least 48 pixels, got {settings}")
    target = Path(os.path.realpath(folder))  # a link to a larger disk stays one
    if not _is_complete(target, settings):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_to_append(target.with_name(f".{target.name}.lock")) as lock:
                # Ranks that find no set wait here for the one that writes it. Without locks, its
                # rename keeps it complete.
                lock_until_closed(lock, waits=True)
                if not _is_complete(target, settings):
                    _write_aside(target, settings)
        except OSError as error:
            raise ValueError(
                f"the synthetic set cannot be written to {target} ({error.strerror or error}): make room there, or name your "
                "videos with data.manifest="
            ) from None
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


def _write_aside(target: Path, settings: SyntheticSettings) -> None:
    """Write the set beside its folder, then rename it; of a set that was there before, only its own
    files are removed."""
    check_own_files(target)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        encoder = find_mp4_encoder()
        if encoder == "mpeg4":
            logger.warning("this PyAV has no H.264 encoder: the .mp4 files of the synthetic set hold MPEG-4 part 2 instead")
        label, number = f"writing synthetic videos to {target}", settings.num_videos
        numbers = show_progress(range(number), total=number, label=label, unit="video")
        videos = [_write_video(new, number, settings, encoder) for number in numbers]
        write_text(new / MANIFEST_NAME, _format_manifest([(video.path, video.label) for video in videos]))
        motion = {
            "settings": asdict(settings),
            "directions": NAMES[: settings.num_classes],
            "bytes": [(new / video.path).stat().st_size for video in videos],
            "videos": [asdict(video) for video in videos],
            "sha256": {video.path: hash_file(new / video.path) for video in videos},
        }
        (new / MOTION_NAME).write_text(json.dumps(motion))
        check_own_files(target)  # again: writing takes a while
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        # somebody has put a file into the old set in the last moment: it stays
        with contextlib.suppress(ValueError):
            check_own_files(old)
            shutil.rmtree(aside, ignore_errors=True)


def check_own_files(target: Path) -> None:
    """Raises ValueError where a folder holds anything but an older or damaged set, or nothing at
    all.

    Anything else is a file that its motion.json does not name, or one that was changed. One that is
    shorter than it was counts as torn.
    """
    if not os.path.lexists(target):
        return
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if names or not target.is_dir():
        sums, num_bytes = _read_sums(target)
        for name in names or [target.name]:
            path = target / name
            if name not in sums or not _is_own(path, sums[name], num_bytes.get(name)):
                changed = "has been changed" if name in sums else "is no part of a synthetic set"
                raise ValueError(f"{target} holds {name}, which {changed}: move it away, or choose an empty or new folder")


def _read_sums(target: Path) -> tuple[dict[str, str | None], dict[str, int]]:
    """By name, the SHA-256 of what a set was made of (None: not noted, as by version 0.1) and the
    bytes of its videos.

    Both are empty where there is no motion.json of a set.
    """
    try:
        motion = json.loads((target / MOTION_NAME).read_text())
        videos = [str(video["path"]) for video in motion["videos"]]
        is_ours = set(motion["settings"]) == {field.name for field in fields(SyntheticSettings)}
        if not is_ours or not all(name.startswith("synthetic_") for name in videos):
            return {}, {}
        sums = dict.fromkeys([MOTION_NAME, *videos]) | motion.get("sha256", {})
        sums[MANIFEST_NAME] = hash_text(_format_manifest([(video["path"], video["label"]) for video in motion["videos"]]))
        return sums, dict(zip(videos, motion["bytes"], strict=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}


def _format_manifest(rows: list[tuple[str, int]]) -> str:
    return "".join(f"{path},{label}\n" for path, label in [("path", "label"), *rows])


def _is_own(path: Path, checksum: str | None, num_bytes: int | None) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    is_torn = num_bytes is not None and path.stat().st_size < num_bytes
    return is_torn or (hash_file(path) == checksum if checksum else num_bytes in (None, path.stat().st_size))


def _write_video(folder: Path, number: int, settings: SyntheticSettings, h264_encoder: str) -> VideoMotion:
    rng = np.random.default_rng((settings.seed, number))
    label = number // 2 % settings.num_classes  # pairs, so that both codecs get every class
    name = NAMES[label]
    encoder, suffix = (h264_encoder, "mp4") if number % 2 == 0 else ("libvpx-vp9", "webm")
    # So fine that a coded frame does not betray what came before it: at crf 18 and 24 a probe that
    # knew the true pixels and the sprite's position read the direction from the coding error of
    # frame 11 in 28 to 38% of 400 videos, now in 22 to 26%.
    options = {
        "libx264": {"qp": "2", "preset": "veryfast"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "lossless": "1"},
    }.get(encoder, {})
    size = SceneSize(settings.num_frames, settings.height, settings.width, settings.num_classes)
    scene = make_scene(rng, name, size=size, pans=_pans(number, settings))
    path = f"synthetic_{number:03d}_{name}.{suffix}"
    encode_frames(folder / path, scene.frames_THWC, encoder=encoder, options=options, gop_frames=GOP_FRAMES)
    return VideoMotion(path, label, name, encoder, scene.boxes, scene.distractor_boxes, scene.background_shifts)


def _pans(number: int, settings: SyntheticSettings) -> bool:
    """Whether a video's camera moves: in three rounds through the classes, one time for each class
    and codec."""
    rounds = number // (2 * settings.num_classes)
    # Every third video of all would always be of the same classes where their number is a multiple
    # of three.
    return (number + (rounds if settings.num_classes % PAN_EVERY == 0 else 0)) % PAN_EVERY == PAN_EVERY - 1
