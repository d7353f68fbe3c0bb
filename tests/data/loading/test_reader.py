"""What is decoded at which size, and what may go to a hardware decoder."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mats_ds.core.clips import ClipSpec, CropSpec
from mats_ds.data.loading import reader
from mats_ds.data.loading.reader import DecodedClip, EncodedClip, read_decoded, read_for_device
from mats_ds.data.video import nvdec_support
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import device_can_decode
from mats_ds.data.video.orientation import Orientation


@pytest.fixture(scope="module")
def large_video(tmp_path_factory, write_video):
    return str(write_video(tmp_path_factory.mktemp("videos") / "large.mp4", num_frames=6, height=480, width=640))


def spec_of(path, **crop):
    return ClipSpec(path=path, sample=0, num_frames=2, stride=1, start=0.0, crop=CropSpec(**crop))


@pytest.mark.parametrize("size", [(64, 48), (500, 510)])
@pytest.mark.parametrize("flip", [False, True])
def test_decoded_clips_come_cropped_scaled_and_flipped(large_video, size, flip):
    clip = read_decoded(spec_of(large_video, height_scale=0.66, width_scale=0.5, flip=flip), size=size)
    assert clip.frames_THWC.shape == (2, *size, 3) and clip.frames_THWC.dtype == np.uint8
    assert clip.frames_THWC.flags.c_contiguous and clip.num_bytes == 2 * size[0] * size[1] * 3


def test_a_file_too_long_for_the_device_is_not_read_whole(large_video, monkeypatch):
    codecs = {"h264": nvdec_support.NVDEC_LIMITS["h264"]}
    spec = spec_of(large_video)
    assert isinstance(read_for_device(spec, codecs=codecs, size=(32, 48)), EncodedClip)
    monkeypatch.setattr(nvdec_support, "MAX_ENCODED_BYTES", 100)
    monkeypatch.setattr(reader, "read_encoded", lambda *_: pytest.fail("read whole"))
    assert isinstance(read_for_device(spec, codecs=codecs, size=(32, 48)), DecodedClip)


def test_hardware_decoders_get_plain_upright_files_only(large_video):
    index = index_video(large_video)
    assert device_can_decode(index)
    others = ({"pixel_format": "yuv444p"}, {"codec": "mjpeg"}, {"height": 20}, {"plain": False})
    for change in ({"orientation": Orientation(quarters=1)}, {"orientation": Orientation(mirrored=True)}, *others):
        assert not device_can_decode(dataclasses.replace(index, **change)), change
