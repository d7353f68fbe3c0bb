"""Crop, scale, flip and rotation on a CPU agree with plain arithmetic and with DALI."""

from __future__ import annotations

import dataclasses

import av
import numpy as np
import pytest
import torch

from mats_ds.core.clips import ClipSpec, CropSpec
from mats_ds.data.loading.dali import resize_region
from mats_ds.data.loading.reader import Region, read_decoded
from mats_ds.data.video.clip_frames import ClipCropper, reverse_rows, scale_pictures, shrink_factor
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.orientation import Orientation

SIZE = (32, 48)
CROP = CropSpec(height_scale=0.7, width_scale=0.9, top=0.25, left=0.75)


@pytest.fixture(scope="module")
def path(write_video, tmp_path_factory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "a.mp4", num_frames=6, height=72, width=112))


def frames_of(path, crop=CROP, *, size=SIZE, numbers=(1, 3), index=None) -> np.ndarray:
    index = index or index_video(path)
    cropper = ClipCropper(np.array(numbers), crop, index=index, size=size)
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            cropper.take(number, frame)
    return cropper.frames()


def cut(pictures_THWC: np.ndarray, crop=CROP) -> np.ndarray:
    top, left, height, width = crop.box(*pictures_THWC.shape[1:3])
    return np.ascontiguousarray(pictures_THWC[:, top : top + height, left : left + width])


def test_the_crop_is_the_part_of_the_picture_that_it_names(path):
    whole = decode_frames(path, np.array([1, 3]))
    _, _, height, width = CROP.box(*whole.shape[1:3])
    np.testing.assert_array_equal(frames_of(path, size=(height, width)), cut(whole))
    np.testing.assert_array_equal(frames_of(path), scale_pictures(cut(whole), size=SIZE))


def test_repeated_frames_are_repeated_and_unwanted_ones_left_out(path):
    frames = frames_of(path, numbers=(1, 1, 4))
    assert frames.shape == (3, *SIZE, 3)
    np.testing.assert_array_equal(frames[[0, 1]], frames_of(path, numbers=(1, 1)))
    np.testing.assert_array_equal(frames[2:], frames_of(path, numbers=(4,)))


def test_a_flip_mirrors_left_and_right(path):
    flipped = frames_of(path, dataclasses.replace(CROP, flip=True))
    np.testing.assert_array_equal(flipped, frames_of(path)[:, :, ::-1])
    for width in (56, 51):  # rows of whole words of eight bytes, and others
        pictures = np.random.default_rng(0).integers(0, 255, (3, 13, width, 3), np.uint8)
        np.testing.assert_array_equal(reverse_rows(pictures), pictures[:, :, ::-1, ::-1])


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [False, True])
def test_the_crop_of_a_rotated_video_refers_to_the_upright_picture(path, rotation, flip):
    index = dataclasses.replace(index_video(path), orientation=Orientation(rotation // 90))
    whole = decode_frames(path, np.array([1, 3]), index=index)
    assert whole.shape[1:3] == index.upright_size
    crop = dataclasses.replace(CROP, flip=flip)
    _, _, height, width = crop.box(*whole.shape[1:3])
    expected = cut(whole)[:, :, ::-1] if flip else cut(whole)
    np.testing.assert_array_equal(frames_of(path, crop, size=(height, width), index=index), expected)
    scaled = frames_of(path, crop, index=index).astype(int)
    assert scaled.shape[1:3] == SIZE
    # scaling before or after a turn may round differently
    assert np.abs(scaled - scale_pictures(np.ascontiguousarray(expected), size=SIZE)).max() <= 1


@pytest.mark.parametrize(
    ("size", "crop", "factor"),
    [
        ((64, 48), {}, 3),  # 480 is 3.75 x twice 64: a third is still large enough
        ((64, 48), {"height_scale": 0.66, "width_scale": 0.66}, 2),
        ((224, 224), {}, 1),
        ((500, 500), {}, 1),
    ],
)
def test_large_pictures_are_shrunk_first_and_stay_twice_as_large_as_needed(size, crop, factor):
    crop = CropSpec(**crop)
    assert shrink_factor(crop, (480, 640), size) == factor
    _, _, height, width = crop.box(480 // factor, 640 // factor)
    assert factor == 1 or (height >= 2 * size[0] and width >= 2 * size[1])


def test_a_shrunk_picture_is_the_average_of_what_it_stands_for(tmp_path, write_video):
    path = str(write_video(tmp_path / "large.mp4", num_frames=6, height=96, width=160))
    small = frames_of(path, CropSpec(width_scale=160 / 96), size=(12, 20))
    whole = decode_frames(path, np.array([1, 3]))
    averages = whole.reshape(2, 12, 8, 20, 8, 3).mean(axis=(2, 4))
    inner = np.s_[:, 1:-1, 1:-1]
    assert shrink_factor(CropSpec(width_scale=160 / 96), (96, 160), (12, 20)) == 4
    # the triangle filter reaches over its neighbours
    assert np.abs(averages[inner] - small[inner]).mean() < 12


def dali_frames(pictures_THWC: np.ndarray, region: Region, size: tuple[int, int]) -> np.ndarray:
    """What the graphs of the GPU route make of whole pictures, here on a CPU."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import Pipeline, fn, types

    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipe:
        video = fn.external_source(name="video", dtype=types.UINT8, ndim=4, layout="FHWC")
        corners = [fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("start", "end")]
        pipe.set_outputs(resize_region(video, start=corners[0], end=corners[1], size=size))
    pipe.build()
    pipe.feed_input("video", [pictures_THWC])
    pipe.feed_input("start", [np.float32(region.origin)])
    pipe.feed_input("end", [np.float32(region.end)])
    return torch.from_dlpack(pipe.run()[0].as_tensor()).numpy()[0].copy()


@pytest.mark.parametrize("size", [(40, 56), (120, 100), (44, 90)])
@pytest.mark.parametrize("flip", [False, True])
def test_torch_scales_as_dali_does(size, flip):
    """They differ by rounding, and at the border: DALI filters over the pixels outside of the crop,
    torch does not see them."""
    coarse = np.random.default_rng(3).integers(0, 255, (3, 15, 20, 3), np.uint8)
    pictures = scale_pictures(coarse, size=(90, 120))
    crop = CropSpec(0.8, 1.1, 0.5, 0.3, flip)
    top, left, height, width = crop.box(90, 120)
    ours = scale_pictures(cut(pictures, crop), size=size)
    ours = ours[:, :, ::-1] if flip else ours
    dali = dali_frames(pictures, Region((top, left, top + height, left + width), flip), size)
    difference = np.abs(ours.astype(int) - dali)
    inner = difference[:, 3:-3, 3:-3]
    assert difference.mean() < 0.3 and inner.max() <= 1, (difference.mean(), inner.max(), difference.max())


@pytest.mark.slow
def test_real_clips_scale_as_dali_scales_them(real_videos):
    path = str(real_videos / "real" / "k400_arm_wrestling_340x256.mp4")
    spec = ClipSpec(path=path, sample=0, num_frames=16, stride=4, start=0.3, crop=CropSpec(0.875, 0.875, 0.4, 0.6))
    ours = read_decoded(spec, size=(224, 224)).frames_THWC
    index = index_video(path)
    begin = int(0.3 * (index.num_frames - 63))
    whole = decode_frames(path, begin + 4 * np.arange(16))
    top, left, height, width = spec.crop.box(*whole.shape[1:3])
    dali = dali_frames(whole, Region((top, left, top + height, left + width), False), (224, 224))
    difference = np.abs(ours.astype(int) - dali)
    assert difference.mean() < 0.2 and np.percentile(difference, 99) <= 1 and difference.max() <= 20, difference.mean()


def test_scaling_and_flipping_start_no_threads():
    code = """
        import os, numpy as np, torch
        torch.set_num_threads(4)
        from mats_ds.data.video.clip_frames import reverse_rows, scale_pictures
        pictures = np.zeros((16, 250, 260, 3), np.uint8)
        num_threads = len(os.listdir("/proc/self/task"))
        reverse_rows(scale_pictures(pictures, size=(224, 225)))
        print(len(os.listdir("/proc/self/task")) - num_threads, torch.backends.cpu.get_cpu_capability())
    """
    import os
    import subprocess
    import sys
    import textwrap
    from pathlib import Path

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs Linux's /proc")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    num_new, capability = done.stdout.split(maxsplit=1)
    if "AVX" not in capability:
        pytest.skip(f"torch has no kernel for uint8 on {capability}")
    assert num_new == "0"
