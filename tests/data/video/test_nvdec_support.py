"""A file goes to NVDEC only where that gives the frames that PyAV gives, and the reason why not is
told."""

import contextlib
import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from mats_ds.data.video.containers import UnreadableVideo, open_video
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import NVDEC_LIMITS, CodecLimits, device_can_decode, why_on_cpu

HEIGHT, WIDTH = 144, 176


def write(
    path, *, codec="libx264", options=None, height=HEIGHT, width=WIDTH, colours=None, colour_range=None, first_pts=0, step=1
):
    """Twenty frames of noise that moves, in time steps of 1/20 s."""
    noise = np.random.default_rng(0).integers(0, 255, (height, 2 * width, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(20), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.gop_size = 10
        if colours is not None:
            context.colorspace = colours
        if colour_range is not None:
            context.color_range = colour_range
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, number : number + width]), format="rgb24")
            frame.pts, frame.time_base = first_pts + number, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def reason(path) -> str:
    return why_on_cpu(index_video(str(path)))


@pytest.mark.parametrize(
    "codec, name", [("libx264", "a.mp4"), ("libx264", "a.mkv"), ("mpeg4", "a.avi"), ("libvpx-vp9", "a.webm")]
)
def test_plain_files_of_all_codecs_go_to_nvdec(tmp_path, codec, name):
    assert reason(write(tmp_path / name, codec=codec)) == ""


@pytest.mark.parametrize(
    "height, width", [(144, 170), (146, 176), (200, 176), (145, 177)], ids=["width", "height", "of 8", "odd"]
)
@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_sides_are_multiples_of_16(tmp_path, codec, height, width):
    """DALI finds a decoder by the coded size and cuts out the picture size of its first file."""
    if codec == "libx264" and height % 2:
        pytest.skip("H.264 in 4:2:0 has even sides")
    assert reason(write(tmp_path / "a.mkv", codec=codec, height=height, width=width)) == "sides that are no multiples of 16"


def test_a_picture_cut_out_of_a_larger_one_is_left_to_pyav(tmp_path):
    """352 x 256 pixels of which the header cuts off 16 columns: both sizes are multiples of 16."""
    cut = {"preset": "ultrafast", "x264-params": "crop-rect=0,0,16,0"}
    path = write(tmp_path / "a.mp4", options=cut)
    index = index_video(path)
    assert (index.height, index.width, index.coded_width) == (HEIGHT, WIDTH - 16, WIDTH)
    assert why_on_cpu(index) == "pictures cut out of larger ones"


@pytest.mark.parametrize(
    "colours, expected",
    [
        (Colorspace.ITU601, ""),
        (6, ""),
        (Colorspace.ITU709, "BT.709 colours"),
        (Colorspace.SMPTE240M, "SMPTE 240M colours"),
        (Colorspace.FCC, "FCC colours"),
    ],
)
def test_nvdec_gets_the_colours_that_dali_converts(tmp_path, colours, expected):
    """DALI always converts by BT.601; PyAV does as the file says."""
    assert reason(write(tmp_path / "a.mp4", colours=colours)) == expected


def test_full_range_is_found_where_the_pixel_format_does_not_tell_it(tmp_path):
    path = write(tmp_path / "a.webm", codec="libvpx-vp9", colour_range=ColorRange.JPEG)
    index = index_video(path)
    assert (index.pixel_format, why_on_cpu(index)) == ("yuv420p", "full-range colours")


@pytest.mark.parametrize("height, width", [(HEIGHT, WIDTH), (720, 1280)], ids=["small", "HD"])
def test_pyav_shows_untagged_files_of_any_size_by_bt601(tmp_path, height, width):
    """So NVDEC may have them: DALI takes the same. One colour: coding changes nothing."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        planes = [np.full(height * width, 100), np.full(height * width // 4, 90), np.full(height * width // 4, 200)]
        picture = np.concatenate(planes).astype(np.uint8).reshape(height * 3 // 2, width)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode())
    by_bt601 = 255 / 219 * (100 - 16) + 255 / 224 * np.array([1.402 * 72, -0.344136 * -38 - 0.714136 * 72, 1.772 * -38])
    shown = decode_frames(str(path), np.array([1]))[0, height // 2, width // 2]
    np.testing.assert_allclose(shown, by_bt601, atol=2.5)
    assert index_video(str(path)).colour_space == 2 and reason(path) == ""


def test_colours_that_only_the_container_states_count_on_every_way(tmp_path):
    """Decoded by their packets, without the container, and by seeking in it."""
    whole, path = write(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    container, stream = open_video(whole)
    with container, av.open(path, "w", options={"movflags": "write_colr"}) as output:
        template = output.add_stream_from_template(stream)
        template.codec_context.colorspace = Colorspace.ITU709
        for packet in container.demux(stream):
            if packet.size:
                packet.stream = template
                output.mux(packet)
    index, untagged = index_video(path), index_video(whole)
    assert (index.colour_space, untagged.colour_space) == (1, 2) and why_on_cpu(index) == "BT.709 colours"
    by_packets = decode_frames(path, np.array([3]), index=index)
    by_seeking = decode_frames(path, np.array([3]), index=dataclasses.replace(index, packets=None))
    assert index.packets is not None and np.array_equal(by_packets, by_seeking)
    assert np.abs(by_packets.astype(int) - decode_frames(whole, np.array([3]), index=untagged)).max() > 8


def test_times_that_dali_does_not_count_are_left_to_pyav(tmp_path):
    path = write(tmp_path / "a.mp4")
    index = index_video(path)
    for shift, expected in ((0, ""), (-1, "time stamps below 0"), (2**31, "time stamps beyond 31 bits")):
        moved = dataclasses.replace(index, pts_F=index.pts_F - index.pts_F[0] + shift)
        assert why_on_cpu(moved) == expected
    late = write(tmp_path / "late.mkv", first_pts=20 * 3_000_000)  # 34 days, in milliseconds
    assert index_video(late).pts_F[-1] > 2**31 and reason(late) == "time stamps beyond 31 bits"


def test_a_stream_that_may_hold_fields_is_left_to_pyav(tmp_path):
    """Its pictures are whole frames, its header allows fields."""
    path = write(tmp_path / "a.mp4", options={"preset": "ultrafast", "x264-params": "fake-interlaced=1"})
    index = index_video(path)
    assert index.plain and not index.is_interlaced and why_on_cpu(index) == "interlaced"


def test_other_frames_than_the_header_counts(tmp_path):
    """The sample count of an MP4 is one of its boxes, that of an AVI only a number."""
    path = tmp_path / "a.avi"
    write(path, codec="mpeg4")
    content = bytearray(path.read_bytes())
    at = content.index(b"strh") + 40
    content[at : at + 4] = (25).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    assert index_video(str(path)).num_frames == 20 and reason(path) == "other frames than its header counts"


@pytest.mark.parametrize("name", ["libx264.mkv", "libvpx-vp9.webm", "mpeg4.avi"])
def test_a_torn_file_is_left_to_pyav(tmp_path, name):
    """Where it breaks off between two packets, nothing but its header tells."""
    content = Path(write(tmp_path / name, codec=name.partition(".")[0])).read_bytes()
    judged = {}
    for part in (0.6, 0.7, 0.8, 0.9):
        path = tmp_path / f"{part}-{name}"
        path.write_bytes(content[: int(len(content) * part)])
        with contextlib.suppress(UnreadableVideo):
            judged[index_video(str(path)).num_frames] = reason(path)
    assert judged and max(judged) < 20
    assert set(judged.values()) <= {"ends before its header says", "a packet is torn"}, judged


def test_a_lost_packet_of_h264_is_left_to_pyav(tmp_path):
    source = write(tmp_path / "a.mkv", options={"preset": "ultrafast", "bf": "0"})
    container, stream = open_video(source)
    with container, av.open(str(tmp_path / "b.mkv"), "w") as output:
        template = output.add_stream_from_template(stream)
        for number, packet in enumerate(container.demux(stream)):
            if packet.size and number != 5:
                packet.stream = template
                output.mux(packet)
    assert reason(tmp_path / "b.mkv") == "pictures are missing"


def test_vp9_that_changes_its_size_on_the_way(tmp_path):
    """Two streams one after the other in one track."""
    parts = [write(tmp_path / f"{height}.webm", codec="libvpx-vp9", height=height) for height in (144, 160)]
    assert [reason(path) for path in parts] == ["", ""]
    with av.open(str(tmp_path / "both.webm"), "w") as output:
        template = None
        for number, path in enumerate(parts):
            container, stream = open_video(path)
            with container:
                template = template or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.size:
                        packet.pts += 1000 * number
                        packet.dts = packet.pts
                        packet.stream = template
                        output.mux(packet)
    assert index_video(str(tmp_path / "both.webm")).num_frames == 40
    assert reason(tmp_path / "both.webm") == "pictures of several sizes"


def test_film_grain_of_av1_is_left_to_pyav(tmp_path):
    for params, expected in (("", ""), ("film-grain=10", "film grain")):
        path = tmp_path / f"{len(params)}.mp4"
        try:
            write(path, codec="libsvtav1", options={"preset": "12", "svtav1-params": params} if params else {"preset": "12"})
        except (av.error.FFmpegError, ValueError):
            pytest.skip("this PyAV writes no AV1")
        assert reason(path) == expected


@pytest.mark.parametrize("name", ["a.flv", "a.ts", "a.nut"])
def test_containers_that_dali_was_not_seen_to_read(tmp_path, name):
    assert reason(write(tmp_path / name)).startswith("container ")


def test_the_limits_are_those_of_the_gpu_that_was_asked(tmp_path):
    index = index_video(write(tmp_path / "a.mp4"))
    small = CodecLimits((64, 64), (128, 4096), 8192)
    assert why_on_cpu(index, {"h264": small}) == "a side above NVDEC's 128 pixels"
    few = CodecLimits((64, 64), (4096, 4096), 50)
    assert why_on_cpu(index, {"h264": few}) == "more than NVDEC's 50 macroblocks"
    assert why_on_cpu(index, {"h264": CodecLimits((160, 64), (4096, 4096), 9999)}) == "a side below NVDEC's 160 pixels"
    assert why_on_cpu(index, {"vp9": NVDEC_LIMITS["vp9"]}) == "this GPU does not decode h264"
    assert why_on_cpu(dataclasses.replace(index, codec="mjpeg")) == "codec mjpeg"
    assert not device_can_decode(index, {}) and device_can_decode(index)
    assert why_on_cpu(dataclasses.replace(index, profile="High 10")) == "profile High 10"
    assert why_on_cpu(dataclasses.replace(index, num_bytes=65 << 20)) == "larger than 64 MiB"
