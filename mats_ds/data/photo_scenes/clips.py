"""A folder of clips that look like video, with manifest.csv, class names, and the photographs'
sources and licences.

    from mats_ds.data.photo_scenes.clips import write_photo_clips
    manifest = write_photo_clips("photo_clips", num_videos=20)

The label is the action: a rocket lifts off, a person walks past, a cup slides, a ball rolls, a
shuttle drifts. Backdrops, cameras, directions and speeds differ from clip to clip.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mats_ds.core.storage.files import write_text
from mats_ds.data.classes import NAMES_SUFFIX
from mats_ds.data.encode import encode_frames
from mats_ds.data.photo_scenes.filming import CASTS, film_scene
from mats_ds.data.photo_scenes.motion import ACTIONS, CAMERAS
from mats_ds.data.photo_scenes.photographs import SOURCES
from mats_ds.data.video.containers import find_mp4_encoder

MANIFEST_NAME, SETTINGS_NAME, SOURCES_NAME = "manifest.csv", "photo_clips.json", "SOURCES.txt"
QUALITY = {"crf": "20", "preset": "veryfast"}
GOP_FRAMES = 12  # short enough that a clip from the middle costs little to decode
CAMERA_ODDS = (0.4, 0.4, 0.2)  # of CAMERAS
MIN_SIDE = 48


@dataclass(frozen=True)
class PhotoClipSettings:
    """Settings of a set; two sets of equal settings show the same scenes."""

    num_videos: int
    num_frames: int
    height: int
    width: int
    seed: int


def write_photo_clips(
    folder: str | os.PathLike[str],
    *,
    num_videos: int = 20,
    num_frames: int = 48,
    height: int = 120,
    width: int = 160,
    seed: int = 0,
) -> Path:
    """The manifest of the set in `folder`, written if it is not there yet; labels as in ACTIONS.

    About 2 seconds of a CPU core a clip. A set of the same settings is used again. The set appears
    at once, complete. Raises ValueError without scikit-image, and where the folder holds anything
    else or cannot be written.
    """
    settings = PhotoClipSettings(num_videos, num_frames, height, width, seed)
    if num_videos < 1 or num_frames < 2 or min(height, width) < MIN_SIDE or height % 2 or width % 2:
        raise ValueError(f"photo clips need 1 video, 2 frames and even sides of at least {MIN_SIDE} pixels, got {settings}")
    target = Path(os.path.realpath(folder))
    if _read_settings(target) == asdict(settings):
        return target / MANIFEST_NAME
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} holds something else than photo clips of {settings}: choose an empty or new folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ValueError(f"photo clips cannot be written to {target} ({error.strerror or error})") from None
    try:
        _write_set(aside / "new", settings)
        (aside / "new").rename(target)
    except OSError as error:
        raise ValueError(f"photo clips cannot be written to {target} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target / MANIFEST_NAME


def describe_sources() -> str:
    """A line a photograph: what it shows, whose it is, its licence, and where it is found."""
    lines = [f"{source.name}: {source.shows}; {source.author}; {source.licence}" for source in SOURCES]
    return "\n".join(["Photographs, all from the package scikit-image (skimage.data):", *lines]) + "\n"


def _read_settings(target: Path) -> dict[str, int] | None:
    """The settings of a complete set."""
    try:
        noted = json.loads((target / SETTINGS_NAME).read_text())
        is_whole = all((target / name).stat().st_size == size for name, size in noted["bytes"].items())
        return noted["settings"] if is_whole and (target / MANIFEST_NAME).is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_set(folder: Path, settings: PhotoClipSettings) -> None:
    from tqdm import tqdm

    folder.mkdir()
    numbers = tqdm(range(settings.num_videos), desc="filming photo clips", unit="clip", delay=2.0)
    names = [_write_clip(folder, number, settings) for number in numbers]
    rows = [f"{name},{number % len(ACTIONS)}" for number, name in enumerate(names)]
    write_text(folder / MANIFEST_NAME, "".join(f"{row}\n" for row in ["path,label", *rows]))
    write_text(folder / f"{MANIFEST_NAME}{NAMES_SUFFIX}", "".join(f"{action}\n" for action in ACTIONS))
    write_text(folder / SOURCES_NAME, describe_sources())
    noted = {"settings": asdict(settings), "bytes": {name: (folder / name).stat().st_size for name in names}}
    write_text(folder / SETTINGS_NAME, json.dumps(noted, indent=1))


def _write_clip(folder: Path, number: int, settings: PhotoClipSettings) -> str:
    """The name of the clip, which says its action, its backdrop and its camera."""
    action = ACTIONS[number % len(ACTIONS)]
    rng = np.random.default_rng((settings.seed, number))
    backdrops = CASTS[action].backdrops
    backdrop = backdrops[(number // len(ACTIONS)) % len(backdrops)]
    camera = CAMERAS[int(np.searchsorted(np.cumsum(CAMERA_ODDS), rng.random()))]
    scene = film_scene(
        (settings.seed, number, 1),
        action=action,
        backdrop=backdrop,
        camera=camera,
        num_frames=settings.num_frames,
        height=settings.height,
        width=settings.width,
    )
    name = f"{number:03d}_{action}_{backdrop}_{camera}.mp4"
    encode_frames(folder / name, scene.frames_THWC, encoder=find_mp4_encoder(), options=QUALITY, gop_frames=GOP_FRAMES)
    return name
