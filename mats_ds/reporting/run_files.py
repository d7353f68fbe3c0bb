"""Files beside the records of a run folder: recipe, DeepSpeed JSON, picture, tests of a fine-tuning
and list of unreadable videos -> RunFiles.

The folder may be somebody else's, and its content is put into a page that is passed on: so only
regular files of a bounded size are read, not through a link, and a picture only if it can be
decoded.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mats_ds.core.format import shorten
from mats_ds.core.limits import MAX_INTEGER, MAX_NAME
from mats_ds.core.storage.documents import parse_json, parse_yaml
from mats_ds.core.storage.files import open_regular, read_bytes
from mats_ds.core.storage.package_files import own_command
from mats_ds.metering.restarts import read_lines

MAX_VALUE = 40  # characters of a number that a foreign recipe gives
INPUTS = {"recipe.yaml": "Recipe, as resolved", "ds_config.json": "DeepSpeed JSON"}
RECONSTRUCTION = "reconstruction.png"
BAD_VIDEOS = "bad_clips.csv"
TESTS = "evaluation.jsonl"
NUM_COLUMNS = 5  # rank, step, path, sample, reason
MAX_INPUT_BYTES = 2**18
MAX_PICTURE_BYTES, MAX_PIXELS = 2**25, 2**25  # ours have less than a megabyte
MAX_TABLE_BYTES, MAX_BAD_VIDEOS = 2**26, 100_000
MAX_TESTS = 10_000


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be read, and how often it was tried."""

    path: str
    reason: str
    times: int


@dataclass(frozen=True)
class TestPoint:
    """A test of the classifier after `step`; fractions of the readable videos."""

    __test__ = False  # it is no test of pytest's

    step: int
    top1: float
    top5: float
    loss: float


@dataclass(frozen=True)
class RunFiles:
    """`inputs`: texts by name of the file. `left_out`: one line for each file that exists and is
    not shown in full. `tests`: in ascending steps."""

    inputs: dict[str, str]
    picture: bytes | None
    bad_videos: list[BadVideo]
    left_out: tuple[str, ...]
    tests: tuple[TestPoint, ...] = ()

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's sections as recipe.yaml has them, unchecked; empty where it cannot be
        read."""
        try:
            tree = parse_yaml(self.inputs.get("recipe.yaml", ""))
        except ValueError:
            return {}
        return {key: value for key, value in tree.items() if isinstance(value, dict)} if isinstance(tree, dict) else {}


def quicker_reading(recipe: Mapping[str, Any]) -> str:
    """What to do where a run waits for its videos, in the recipe's own numbers."""
    data = recipe.get("data", {})
    workers, prefetch = data.get("num_workers"), data.get("prefetch")
    now = "as many as the cores allow" if workers is None else shorten(str(workers), MAX_VALUE)
    ahead = shorten(str(prefetch or 2), MAX_VALUE)
    keys = f"raise data.num_workers (now {now}) where cores are idle, or data.prefetch (now {ahead})"
    manifest, root = (value if isinstance(value := data.get(key), str) else "" for key in ("manifest", "root"))
    if not manifest:
        return keys
    command = own_command("prepare", "transcode", manifest, *(("--root", root) if root else ()), "--out", "copies")
    return f"make copies that decode quickly, with a keyframe every 16 frames: `{command}`; or {keys}"


def read_run_files(run_dir: Path) -> RunFiles:
    """Every file that can be shown."""
    left_out: list[str] = []

    def attempt(name: str, read):
        try:
            return read(run_dir / name)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            left_out.append(f"{name} is left out: {error}")
            return None

    texts = {name: attempt(name, _read_input) for name in INPUTS}
    bad_videos = attempt(BAD_VIDEOS, lambda path: _read_bad_videos(path, left_out))
    picture = attempt(RECONSTRUCTION, read_picture)
    tests = attempt(TESTS, _read_tests) or ()
    inputs = {name: text for name, text in texts.items() if text is not None}
    return RunFiles(inputs, picture, bad_videos or [], tuple(left_out), tests)


def read_picture(path: Path) -> bytes:
    """A PNG file that can be decoded. Raises ValueError for anything else, and for one that unfolds
    into too many pixels."""
    from PIL import Image

    data = read_bytes(path, max_bytes=MAX_PICTURE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
                picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no PNG picture that can be shown: {error}") from None
    return data


def _read_input(path: Path) -> str:
    return read_bytes(path, max_bytes=MAX_INPUT_BYTES).decode("utf-8", "replace")


def _read_bad_videos(path: Path, left_out: list[str]) -> list[BadVideo]:
    times: dict[tuple[str, str], int] = {}
    reader = None
    with open_regular(path) as file:
        try:
            reader = csv.reader(_decode_lines(file))
            for row in reader:
                if len(row) != NUM_COLUMNS or row[0] == "rank":
                    continue
                video = row[2][:MAX_NAME], row[4][:MAX_NAME]
                if len(times) == MAX_BAD_VIDEOS and video not in times:
                    raise ValueError(f"it names more than {MAX_BAD_VIDEOS:,} videos")
                times[video] = times.get(video, 0) + 1
        except (csv.Error, ValueError) as error:
            left_out.append(f"{path.name} is left out from line {reader.line_num + 1} on: {error}")
    return [BadVideo(video, reason, num) for (video, reason), num in times.items()]


def _read_tests(path: Path) -> tuple[TestPoint, ...]:
    """The tests of evaluation.jsonl; lines that are none, as the last one of a killed run, are
    skipped."""
    tests: dict[int, TestPoint] = {}
    for line in read_bytes(path, max_bytes=MAX_TABLE_BYTES).decode("utf-8", "replace").splitlines():
        try:
            tree = parse_json(line)
        except ValueError:
            continue
        test = _build_test(tree) if isinstance(tree, dict) else None
        if test is not None:
            tests[test.step] = test
    if len(tests) > MAX_TESTS:
        raise ValueError(f"it holds more than {MAX_TESTS:,} tests")
    return tuple(tests[step] for step in sorted(tests))


def _build_test(tree: dict) -> TestPoint | None:
    step, *values = (tree.get(name) for name in ("step", "top1", "top5", "loss"))
    if type(step) is not int or not 0 <= step <= MAX_INTEGER:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) and value >= 0 for value in values):
        return None
    top1, top5, loss = map(float, values)
    return TestPoint(step, top1, top5, loss) if top1 <= 1 and top5 <= 1 else None


def _decode_lines(file: IO[bytes]) -> Iterator[str]:
    num_bytes = 0
    for line in read_lines(file):
        num_bytes += len(line)
        if num_bytes > MAX_TABLE_BYTES:
            raise ValueError(f"it is longer than {MAX_TABLE_BYTES:,} bytes")
        yield line.decode("utf-8", "replace").replace("\0", "")
