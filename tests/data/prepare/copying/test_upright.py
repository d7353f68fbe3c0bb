"""A copy has sides and colours that NVDEC decodes right: nothing stretched, little cut off, the
colours those that PyAV shows of the original."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.transcode import transcode_file
from mats_ds.data.prepare.copying.upright import MAX_CUT, copy_shape
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import why_on_cpu

UNTAGGED = 2  # FFmpeg's number


@pytest.mark.parametrize(
    "original, copy",
    [
        ((256, 340), (256, 336)),
        ((480, 640), (256, 336)),
        ((1080, 1920), (256, 448)),
        ((1920, 1080), (448, 256)),
        ((240, 320), (240, 320)),
        ((240, 426), (240, 416)),
        ((288, 352), (256, 320)),
        ((176, 191), (160, 176)),  # sides next to it would cut off more
        ((40, 60), (40, 60)),  # below what NVDEC takes
        ((1, 1), (2, 2)),
    ],
)
def test_sides_at_the_default_size(original, copy):
    shape = copy_shape(*original, short_side=256)
    assert (shape.height, shape.width) == copy


def test_other_short_sides_give_even_sides_and_cut_nothing_off():
    shape = copy_shape(256, 340, short_side=250)
    assert (shape.height, shape.width) == (250, 332) == (shape.whole_height, shape.whole_width)


def test_for_every_original_of_usual_size():
    for height in range(200, 800, 7):
        for width in range(200, 1400, 11):
            shape = copy_shape(height, width, short_side=256)
            sides, wholes = (shape.height, shape.width), (shape.whole_height, shape.whole_width)
            assert not any(side % 16 for side in sides), (height, width, shape)
            assert all(side <= whole <= limit for side, whole, limit in zip(sides, wholes, (height, width), strict=True))
            assert 1 - shape.num_pixels / (wholes[0] * wholes[1]) <= MAX_CUT + 0.01
            assert abs(wholes[1] / wholes[0] * height / width - 1) < 0.01  # stretched by rounding only


def write_colours(path, *, tag, height=192, width=288, colour_range=None, codec="libx264"):
    """Five areas of one colour each from left to right, over the whole width."""
    # planes of 4:2:0: the colours have half the height and half the width, and lie below
    area_of_column = np.arange(width) * 5 // width
    y, u, v = np.uint8([(60, 100, 160), (200, 120, 140), (100, 90, 200), (150, 180, 100), (90, 128, 128)]).T
    colours = np.stack([np.tile(plane[area_of_column[::2]], (height // 2, 1)) for plane in (u, v)])
    picture = np.concatenate([np.tile(y[area_of_column], (height, 1)), colours.reshape(height // 2, width)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(20), options={"crf": "1"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace = tag
        if colour_range is not None:
            stream.codec_context.color_range = colour_range
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize("tag", [UNTAGGED, Colorspace.ITU709, Colorspace.SMPTE240M, Colorspace.ITU601])
@pytest.mark.parametrize("short_side", [192, 96], ids=["same size", "smaller"])
def test_copies_are_tagged_and_converted_to_bt601(tmp_path, tag, short_side):
    """BT.709 shown by BT.601 is up to 20 levels off: [201 54 0] instead of [215 61 0]."""
    source = write_colours(tmp_path / "a.mp4", tag=tag)
    done = transcode_file(source, tmp_path / "copy.mp4", settings=CopySettings(short_side=short_side, crf=1))
    copy = index_video(done.target)
    assert (copy.colour_space, copy.colour_range, why_on_cpu(copy)) == (5, 1, "")
    before, after = decode_frames(source, [1])[0], decode_frames(done.target, [1])[0]
    for number in range(5):
        shown = [
            picture[picture.shape[0] // 2, (2 * number + 1) * picture.shape[1] // 10].astype(int) for picture in (before, after)
        ]
        assert np.abs(shown[0] - shown[1]).max() <= 4, (number, shown)


def test_the_middle_is_kept(tmp_path):
    """Of 280 columns, 4 are cut off at each end: a line in the middle stays there."""
    picture = np.full((192, 280, 3), 40, np.uint8)
    picture[:, 138:142] = 220
    picture[:, :4] = picture[:, -4:] = (0, 255, 0)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(20), options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 280, 192, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    done = transcode_file(tmp_path / "a.mp4", tmp_path / "copy.mp4", settings=CopySettings(crf=1))
    assert (done.height, done.width) == (192, 272)
    shown = decode_frames(done.target, [1])[0].astype(int)
    green = shown[:, :, 1] - shown[:, :, 0]
    assert np.abs(green).max() < 40  # nothing of the two edges
    assert shown[96, :, 0].argmax() in range(133, 139)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_copy_of_a_real_clip_goes_to_nvdec_and_shows_what_it_showed(real_videos, tmp_path, codec):
    source = str(real_videos / "real" / "k400_pool_part0_32f.mp4")
    done = transcode_file(source, tmp_path / "copy.mp4", settings=CopySettings(codec=codec, crf=12))
    assert (done.height, done.width) == (256, 336) and why_on_cpu(index_video(done.target)) == ""
    before = decode_frames(source, [0, 20])[:, :, 2:338].astype(int)
    assert np.abs(before - decode_frames(done.target, [0, 20])).mean() < 3.0


def test_full_range_becomes_video_range(tmp_path):
    source = write_colours(
        tmp_path / "a.webm", tag=UNTAGGED, colour_range=ColorRange.JPEG, codec="libvpx-vp9", height=128, width=160
    )
    done = transcode_file(source, tmp_path / "copy.mp4", settings=CopySettings(crf=1))
    copy = index_video(done.target)
    assert why_on_cpu(index_video(source)) == "full-range colours" and why_on_cpu(copy) == ""
    assert np.abs(decode_frames(source, [1]).astype(int) - decode_frames(done.target, [1])).mean() < 3.0
