"""What is decoded at which size, and what may go to a hardware decoder."""

from __future__ import annotations

import dataclasses

import pytest

from mats_ds.clips import ClipSpec, CropSpec
from mats_ds.data.probe import index_video
from mats_ds.data.routes import device_can_decode, read_decoded


@pytest.fixture(scope="module")
def large_video(tmp_path_factory, write_video):
    return str(write_video(tmp_path_factory.mktemp("videos") / "large.mp4", num_frames=6, height=480, width=640))


def spec_of(path, **crop):
    return ClipSpec(path=path, sample=0, num_frames=2, stride=1, start=0.0, crop=CropSpec(**crop))


@pytest.mark.parametrize(
    ("size", "crop", "picture"),
    [
        ((64, 48), {}, (160, 213)),  # 480 is 3.75 x twice 64: a third is still large enough
        ((64, 48), {"height_scale": 0.66, "width_scale": 0.66}, (240, 320)),
        ((224, 224), {}, (480, 640)),
        ((500, 500), {}, (480, 640)),
    ],
)
def test_large_pictures_are_shrunk_while_they_are_decoded_and_stay_twice_as_large_as_needed(large_video, size, crop, picture):
    clip = read_decoded(spec_of(large_video, **crop), size=size)
    assert clip.frames_THWC.shape[1:3] == picture
    top, left, bottom, right = clip.region.corners
    if picture != (480, 640):
        assert bottom - top >= 2 * size[0] and right - left >= 2 * size[1]
    assert 0 <= top < bottom <= picture[0] and 0 <= left < right <= picture[1]


def test_hardware_decoders_get_plain_upright_files_only(large_video):
    index = index_video(large_video)
    assert device_can_decode(index)
    for change in ({"rotation": 90}, {"pixel_format": "yuv444p"}, {"codec": "mjpeg"}, {"height": 20}, {"plain": False}):
        assert not device_can_decode(dataclasses.replace(index, **change)), change
