"""`mats_ds.read_frames` and `mats_ds.video_facts`: what notebooks and checks from outside see of a
video."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mats_ds
from mats_ds.data.video import frames
from mats_ds.data.video.containers import UnreadableVideo
from tests.data.clip_files import KINDS, decode_in_order, write_clip, write_with_sound

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    [kind] = [kind for kind in KINDS if kind.name == "h264.mp4"]
    return write_clip(tmp_path_factory.mktemp("video") / "a.mp4", kind)


def test_any_order_and_repeats(path):
    coded = decode_in_order(path)
    numbers = [7, 29, 0, 7, 8, 8]
    found = mats_ds.read_frames(path, numbers)
    assert (found.dtype, found.shape) == (np.uint8, (6, 48, 80, 3))
    np.testing.assert_array_equal(found, np.stack([coded[number] for number in numbers]))


@pytest.mark.parametrize(
    "numbers",
    [
        (5, 3),
        range(5, 2, -2),
        np.array([5, 3], np.uint8),
        [np.int64(5), np.int32(3)],
        (number for number in (5, 3)),
        {5: 0, 3: 0},
    ],
    ids=["tuple", "range", "array", "numpy numbers", "generator", "keys"],
)
def test_whole_numbers_of_every_kind(path, numbers):
    coded = decode_in_order(path)
    np.testing.assert_array_equal(mats_ds.read_frames(path, numbers), np.stack([coded[5], coded[3]]))


def test_a_tensor_of_numbers(path):
    import torch

    assert mats_ds.read_frames(path, torch.tensor([5, 3])).shape == (2, 48, 80, 3)


@pytest.mark.parametrize("numbers", [[], (), range(0), np.array([])])
def test_no_numbers_are_no_frames(path, numbers):
    assert mats_ds.read_frames(path, numbers).shape == (0, 48, 80, 3)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([30], "frames 0 to 29, got 30"),
        ([3, -1], "frames 0 to 29, got -1"),
        ([2**70], "frames 0 to 29, got 1180591620717411303424"),
        ([1.0], "whole numbers, got 1.0"),
        (np.array([0.5]), "whole numbers, got"),
        ([True], "whole numbers, got True"),
        (np.array([True, False]), "whole numbers, got"),
        ([None], "whole numbers, got None"),
        (["3"], "whole numbers, got '3'"),
        ([[1, 2]], "whole numbers, got"),
        (np.array([[1, 2], [3, 4]]), "whole numbers"),
        (3, r"a list like \[0, 4, 8\] or a range, got 3"),
        ("12", "a list like .* got '12'"),
        (None, "a list like .* got None"),
    ],
)
def test_what_is_no_frame_is_one_clear_error(path, numbers, words):
    with pytest.raises(ValueError, match=words) as caught:
        mats_ds.read_frames(path, numbers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [lambda path: mats_ds.read_frames(path, [0]), mats_ds.video_facts], ids=["frames", "facts"])
@pytest.mark.parametrize("kind", ["empty", "text", "audio", "truncated", "vanished", "garbage", "folder"])
def test_a_file_that_cannot_be_read_is_named_with_its_reason(write_broken, call, kind):
    broken = write_broken(kind)
    with pytest.raises(ValueError, match=f"{kind}.mp4: ..") as caught:
        call(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [lambda path: mats_ds.read_frames(path, [0]), mats_ds.video_facts], ids=["frames", "facts"])
def test_what_is_no_path_is_one_clear_error(call):
    for nothing in (None, 7, ["a.mp4"]):
        with pytest.raises(ValueError, match="by its path, got"):
            call(nothing)


@pytest.mark.parametrize("name", ["co:lon 12:30.mp4", "file:abc.mp4", "ä ö 视频.mp4", "-.mp4", "a%20b#?.mp4", "'quoted'.mp4"])
def test_odd_names_in_the_own_folder_are_files(path, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for given in (name, Path(name), os.fsencode(name)):
        assert mats_ds.read_frames(given, [3]).tobytes() == mats_ds.read_frames(path, [3]).tobytes()
    assert mats_ds.video_facts(name).num_frames == 30


def test_a_frame_that_does_not_decode_is_named(path, monkeypatch):
    def fail(*_, **__):
        raise UnreadableVideo("frame 7 of 30 does not decode")

    monkeypatch.setattr(frames, "visit_shown_frames", fail)
    with pytest.raises(ValueError, match=r"a\.mp4: frame 7 of 30 does not decode"):
        mats_ds.read_frames(path, [7])


def test_the_facts_of_a_video(path):
    facts = mats_ds.video_facts(path)
    assert (facts.num_frames, facts.height, facts.width, facts.size) == (30, 48, 80, (48, 80))
    assert (facts.codec, facts.pixel_format, facts.rate) == ("h264", "yuv420p", 25.0)
    assert "mp4" in facts.container.split(",")
    np.testing.assert_allclose(facts.seconds, np.arange(30) / 25)
    assert facts.seconds.dtype == np.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.num_frames = 3


def test_seconds_are_those_of_the_clock(tmp_path):
    facts = mats_ds.video_facts(write_with_sound(tmp_path / "a.mkv", pictures_begin_seconds=2.0))
    assert facts.seconds[[0, -1]] == pytest.approx([2.0, 3.16], abs=0.002) and facts.rate == pytest.approx(25)


def test_one_frame_has_the_rate_of_the_header(tmp_path):
    [kind] = [kind for kind in KINDS if kind.name == "mjpeg.avi"]
    facts = mats_ds.video_facts(write_clip(tmp_path / "a.avi", kind, num_frames=1))
    assert (facts.num_frames, facts.rate) == (1, 25.0)


@pytest.mark.parametrize(("has_gpu", "decoder"), [(True, "NVDEC"), (False, "PyAV")])
def test_what_would_decode_it(path, tmp_path, monkeypatch, has_gpu, decoder):
    monkeypatch.setattr(frames, "_has_gpu", lambda: has_gpu)
    facts = mats_ds.video_facts(path)
    assert facts.decoder == decoder
    assert facts.decoder_reason == "" if has_gpu else "no GPU" in facts.decoder_reason and "NVDEC" in facts.decoder_reason
    [kind] = [kind for kind in KINDS if kind.name == "palette.avi"]
    facts = mats_ds.video_facts(write_clip(tmp_path / "b.avi", kind))
    assert (facts.decoder, facts.decoder_reason) == ("PyAV", "codec rawvideo")


def test_pictures_of_another_size_are_scaled_to_the_first(path, tmp_path):
    """A stream of H.264 that goes on with larger pictures, as conference recordings do."""
    kind = dataclasses.replace(next(kind for kind in KINDS if kind.name == "h264.ts"), gop=4)
    small = write_clip(tmp_path / "small.h264", kind, num_frames=8)
    large = write_clip(tmp_path / "large.h264", dataclasses.replace(kind, height=96, width=128), num_frames=8)
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    coded = decode_in_order(both)
    assert {picture.shape for picture in coded} == {(48, 80, 3), (96, 128, 3)}
    facts = mats_ds.video_facts(both)
    found = mats_ds.read_frames(both, range(facts.num_frames))
    assert found.shape == (16, 48, 80, 3)
    np.testing.assert_array_equal(found[:8], np.stack(coded[:8]))


def test_frames_need_no_torch(path):
    code = f"import sys, mats_ds; mats_ds.read_frames({str(path)!r}, [3]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
