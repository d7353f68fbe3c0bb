"""Every frame by number equals a sequential decode: alone, in order, backwards, in clips, in any
order, for every kind of file.

The reference is a plain loop of PyAV over all packets from the start, not the program's own
reading.
"""

from __future__ import annotations

import functools
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.frames import read_frames, video_facts
from mats_ds.data.video.indexing import index_video
from tests.data.clip_files import KINDS, NUM_FRAMES, decode_in_order, write_clip
from tests.video_files import SHARED

NAMES = [kind.name for kind in KINDS]
SUFFIXES = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".flv", ".wmv"))
MAX_BYTES, MAX_PIXELS = 4_000_000, 60_000_000  # of a real file, and of all its pictures together
QUICK_COLOURS = 3.0  # levels by which training's colour conversion may differ on average


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(name)`: the path of a file of this kind and its pictures in order; skips where this
    PyAV cannot write it."""
    folder = tmp_path_factory.mktemp("kinds")

    @functools.cache
    def write(name: str) -> tuple[Path, list[np.ndarray]] | str:
        try:
            path = write_clip(folder / name, next(kind for kind in KINDS if kind.name == name))
        except (av.error.FFmpegError, ValueError) as error:
            return str(error)
        return path, decode_in_order(path)

    def get(name: str) -> tuple[Path, list[np.ndarray]]:
        answer = write(name)
        if isinstance(answer, str):
            pytest.skip(f"this PyAV cannot write {name}: {answer}")
        return answer

    return get


def requests(num_frames: int) -> st.SearchStrategy[list[int]]:
    """What readers ask for: a few frames anywhere, or a clip of frames a stride apart, forwards or
    backwards."""
    number = st.integers(0, num_frames - 1)

    def clip(first: int, stride: int, length: int, backwards: bool) -> list[int]:
        numbers = [min(first + step * stride, num_frames - 1) for step in range(length)]
        return numbers[::-1] if backwards else numbers

    clips = st.builds(clip, number, st.integers(1, 6), st.integers(2, 9), st.booleans())
    return st.lists(number, min_size=1, max_size=7) | clips


def check_request(path: Path, pictures: list[np.ndarray], numbers: list[int]) -> None:
    found = read_frames(path, numbers)
    wrong = [number for place, number in enumerate(numbers) if not np.array_equal(found[place], pictures[number])]
    assert not wrong, f"{path.name}: of frames {numbers}, {wrong} are not those of a sequential decode"


@pytest.mark.parametrize("name", NAMES)
def test_all_frames_differ_and_each_is_counted(written, name):
    path, pictures = written(name)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) == NUM_FRAMES
    assert video_facts(path).num_frames == NUM_FRAMES


@pytest.mark.parametrize("name", NAMES)
def test_alone_in_order_and_backwards(written, name):
    path, pictures = written(name)
    everything = list(range(len(pictures)))
    for numbers in ([number] for number in everything):
        check_request(path, pictures, numbers)
    check_request(path, pictures, everything)
    check_request(path, pictures, everything[::-1])


@pytest.mark.parametrize("name", NAMES)
def test_any_request(written, name):
    path, pictures = written(name)

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(requests(len(pictures)))
    def holds(numbers):
        check_request(path, pictures, numbers)

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_training_reads_the_same_frames(written, name):
    """By its own conversion of colours."""
    path, pictures = written(name)
    numbers = [17, 3, 4, 29, 4]
    found = decode_frames(str(path), np.array(numbers))
    for place, number in enumerate(numbers):
        assert np.abs(found[place].astype(int) - pictures[number]).mean() < QUICK_COLOURS


def hard_files() -> list[Path]:
    folders = (SHARED / "hard_inputs", SHARED / "videos" / "real")
    found = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    return [path for path in found if path.suffix.lower() in SUFFIXES and path.stat().st_size < MAX_BYTES]


@pytest.mark.slow
@pytest.mark.parametrize("path", hard_files(), ids=lambda path: path.name)
def test_real_and_hard_files(path):
    index = index_video(str(path))
    if index.num_frames * index.height * index.width > MAX_PIXELS:
        pytest.skip("its pictures take too much memory for a test")
    pictures = [index.orientation.apply(picture, axes=(0, 1)) for picture in decode_in_order(path)]
    assert index.num_frames == len(pictures)
    everything = list(range(len(pictures)))
    check_request(path, pictures, everything[::-1])
    for number in {*everything[:3], *everything[:: max(1, len(everything) // 12)], *everything[-2:]}:
        check_request(path, pictures, [number])
    random = np.random.default_rng(0)
    for _ in range(5):
        check_request(path, pictures, random.choice(everything, 5).tolist())
