"""The files of one video in a folder of sliding windows, and what other programs need of them.

    VIDEO.npy     float32 [W, D]: W windows, features of D numbers
    VIDEO.json    its file, frame rate, windows, and times in seconds and in its frames

ActionFormer (arXiv 2202.07925; feat_stride, num_frames, default_fps) and OpenTAD (feature_stride,
offset_frames, fps) take a feature for the middle of its window and count in frames, in whole ones
at one rate for all videos, which is found here.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mats_ds.core.shards.members import member_name
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import read_bytes
from mats_ds.data.manifest import Manifest
from mats_ds.evaluation.features.feature_folder import SETTINGS
from mats_ds.evaluation.features.windows import VideoStream, WindowTimes

MISSING = "missing_files.txt"
MIN_RATE = 24  # frames a second of the configs, at least: what people expect there
MAX_DENOMINATOR = 1000  # of times in seconds
MAX_ABOUT_BYTES = 100_000
MAX_NAME_BYTES = 200


def name_videos(manifest: Manifest) -> list[str]:
    """A file name for each row, unique whether a disk tells upper case from lower or not."""
    paths = [os.path.abspath(member_name(path)) for path in manifest.paths]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    tries = (
        lambda row: os.path.splitext(os.path.relpath(paths[row], folder))[0].replace(os.sep, "__"),
        lambda row: os.path.relpath(paths[row], folder).replace(os.sep, "__"),
        lambda row: f"{names[row]}_{manifest.first_seconds_S[row]:g}_{manifest.last_seconds_S[row]:g}",
        lambda row: f"{names[row]}_{row}",
    )
    for longer in tries:
        uses = Counter(map(str.casefold, names))
        twice = [
            row
            for row, name in enumerate(names)
            if uses[name.casefold()] > 1 or f"{name.casefold()}.json" == SETTINGS or len(os.fsencode(name)) > MAX_NAME_BYTES
        ]
        if not twice:
            break
        for row in twice:
            names[row] = longer(row)[-MAX_NAME_BYTES // 4 :] if len(os.fsencode(longer(row))) > MAX_NAME_BYTES else longer(row)
    return names


def make_configs(times: WindowTimes, *, width: int, out: Path) -> dict[str, Any]:
    """Entries for the configs of ActionFormer and OpenTAD, in frames of one rate for all videos.

    The rate is the smallest from MIN_RATE on at which a hop and half a window are whole frames:
    OpenTAD cuts both to whole numbers.
    """
    hop, half = (Fraction(value).limit_denominator(MAX_DENOMINATOR) for value in (times.hop_seconds, times.window_seconds / 2))
    step = math.lcm(hop.denominator, half.denominator)
    rate = step * -(-MIN_RATE // step)
    stride, offset = int(hop * rate), int(half * rate)
    return {
        "actionformer": {
            "feat_folder": str(out.absolute()),
            "file_prefix": None,
            "file_ext": ".npy",
            "input_dim": width,
            "default_fps": rate,
            "feat_stride": stride,
            "num_frames": 2 * offset,
            "downsample_rate": 1,
        },
        "opentad": {
            "data_path": str(out.absolute()),
            "block_list": str(out.absolute() / MISSING),
            "in_channels": width,
            "fps": rate,
            "feature_stride": stride,
            "sample_stride": 1,
            "offset_frames": offset,
            "pipeline": [
                {"type": "LoadFeats", "feat_format": "npy"},
                {"type": "Rearrange", "keys": ["feats"], "ops": "t c -> c t"},
            ],
        },
    }


def is_whole(path: Path, width: int) -> bool:
    """Whether the array and the JSON of a video (`path` without ending) are there and fit."""
    try:
        about = read_about(path)
        array = np.load(with_ending(path, ".npy"), mmap_mode="r", allow_pickle=False)
        return array.dtype == np.float32 and array.shape == (about["num_windows"], width)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return False


def read_about(path: Path) -> dict[str, Any]:
    """The JSON of a video. Raises OSError and ValueError."""
    about = parse_json(read_bytes(with_ending(path, ".json"), max_bytes=MAX_ABOUT_BYTES))
    if not isinstance(about, dict):
        raise ValueError(f"{path}.json is none of a video")
    return about


def with_ending(path: Path, ending: str) -> Path:
    """`path` and the ending; names may hold dots."""
    return path.with_name(path.name + ending)


def describe_video(stream: VideoStream, times: WindowTimes, name: str) -> dict[str, Any]:
    """The JSON of a video; feat_stride and num_frames in frames of its own rate."""
    windows = stream.windows()
    return {
        "video": name,
        "path": stream.part.path,
        "num_windows": len(windows.numbers_WT),
        "window_seconds": times.window_seconds,
        "hop_seconds": times.hop_seconds,
        "first_seconds": windows.origin_seconds,
        "duration_seconds": round(windows.duration_seconds, 6),
        "fps": round(windows.fps, 6),
        "feat_stride": round(times.hop_seconds * windows.fps, 6),
        "num_frames": round(times.window_seconds * windows.fps, 6),
    }
