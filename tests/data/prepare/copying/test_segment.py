"""Segments hold the very packets of the long file, start at keyframes, decode alone and add up."""

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.segment import Segment, can_cut, segment_file
from mats_ds.data.prepare.copying.transcode import CopyFailed
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import UnreadableVideo, index_video
from mats_ds.data.video.orientation import Orientation

ROOT = Path(__file__).resolve().parents[4]
FORMATS = [
    ("closed.mp4", {"b_frames": 2, "options": {"x264-params": "scenecut=0"}}),
    ("no_b.mkv", {"options": {"x264-params": "scenecut=0"}}),
    ("vp9.webm", {"codec": "libvpx-vp9"}),
    ("mpeg4.avi", {"codec": "mpeg4"}),
    ("stream.ts", {"b_frames": 2, "options": {"x264-params": "scenecut=0"}}),
    ("av1.mp4", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1:scd=0"}, "height": 96, "width": 160}),
]


def write_heavy(path, num_frames):
    """One picture of noise as each of many large packets, twenty a second."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=20, options={"qmin": "1", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuvj420p"
        [first] = stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24"))
        data = bytes(first)
        for number in range(num_frames):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 20), stream, True
            container.mux(packet)
    return path


@pytest.mark.parametrize(("name", "how"), FORMATS, ids=[name for name, _ in FORMATS])
def test_segments_decode_alone_and_add_up(name, how, write_video, read_numbers, tmp_path):
    try:
        source = write_video(tmp_path / name, num_frames=96, **how)
    except ValueError as error:
        pytest.skip(str(error))
    segments = segment_file(source, tmp_path / "cut", seconds=1.0)
    # Keyframes every 12 frames of 1/20 s; cut at the first one at or after 1, 2, 3 and 4 seconds.
    assert [segment.first_frame for segment in segments] == [0, 24, 48, 60, 84]
    assert [segment.first_seconds for segment in segments] == pytest.approx([0.0, 1.2, 2.4, 3.0, 4.2])
    assert sum(segment.num_frames for segment in segments) == 96
    original_seconds = index_video(str(source)).seconds()
    for segment in segments:
        index = index_video(segment.path)
        here = slice(segment.first_frame, segment.first_frame + segment.num_frames)
        frames_THWC = decode_frames(segment.path, np.arange(index.num_frames))
        assert read_numbers(frames_THWC) == list(range(96))[here]
        assert (frames_THWC == decode_frames(str(source), np.arange(96)[here])).all()
        assert index.seconds() == pytest.approx(original_seconds[here] - original_seconds[here][0], abs=2e-3)
        assert segment.num_bytes == Path(segment.path).stat().st_size
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [Path(segment.path).name for segment in segments]


def test_never_cuts_where_later_frames_refer_across(write_video, read_numbers, tmp_path):
    source = write_video(tmp_path / "open.mp4", num_frames=96, b_frames=3, options={"x264-params": "open-gop=1:scenecut=0"})
    try:
        segments = segment_file(source, tmp_path / "cut", seconds=1.0)
    except CopyFailed as failure:
        assert "too far apart" in failure.reason and not list((tmp_path / "cut").iterdir())
        return
    numbers = [read_numbers(decode_frames(piece.path, np.arange(piece.num_frames))) for piece in segments]
    assert sum(numbers, []) == list(range(96))


def test_says_when_keyframes_are_too_far_apart_and_reencodes_only_if_asked(write_video, read_numbers, tmp_path):
    source = write_video(tmp_path / "far.mp4", num_frames=96, gop=250, options={"x264-params": "scenecut=0"})
    with pytest.raises(CopyFailed, match=r"too far apart.*4\.8 s.*--reencode"):
        segment_file(source, tmp_path / "cut", seconds=1.0)
    assert "too far apart" in can_cut(source, seconds=1.0) and not can_cut(source, seconds=3.0)
    assert list((tmp_path / "cut").iterdir()) == []
    segments = segment_file(source, tmp_path / "cut", seconds=1.0, reencode=CopySettings(gop=10))
    numbers = [read_numbers(decode_frames(piece.path, np.arange(piece.num_frames))) for piece in segments]
    assert len(segments) == 5 and sum(numbers, []) == list(range(96))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [f"far_{number:04d}.mp4" for number in range(5)]


def test_refuses_files_whose_times_cannot_be_trusted(write_video, tmp_path):
    source = write_video(tmp_path / "b.avi", codec="mpeg4", b_frames=2)
    with pytest.raises(CopyFailed, match="time stamps"):
        segment_file(source, tmp_path / "cut", seconds=1.0)


@pytest.mark.parametrize("kind", ["empty", "text", "audio", "truncated", "vanished"])
def test_refuses_broken_files(kind, write_broken, tmp_path):
    with pytest.raises(UnreadableVideo):
        segment_file(write_broken(kind), tmp_path / "cut", seconds=1.0)
    assert list((tmp_path / "cut").iterdir()) == []


def test_maps_time_ranges_onto_segments():
    segment = Segment("a_0001.mp4", first_frame=20, num_frames=20, first_seconds=10.0, last_seconds=20.0, num_bytes=1)

    def show(start, end):
        times = segment.time_range(start, end)
        return times and tuple(None if math.isnan(seconds) else seconds for seconds in times)

    assert show(math.nan, math.nan) == (None, None)
    assert show(12.0, 15.5) == (2.0, 5.5)
    assert show(5.0, 13.0) == (None, 3.0)
    assert show(18.0, 30.0) == (8.0, None)
    assert show(0.0, 10.0) is None and show(20.0, 25.0) is None
    assert show(19.8, 30.0) is None  # less than a frame of half a second


def test_keeps_the_rotation(write_video, tmp_path):
    from tests.data.prepare.copying.test_transcode import write_turned

    source = write_turned(write_video(tmp_path / "a.mp4"), tmp_path / "turned.mp4", 90)
    segments = segment_file(source, tmp_path / "cut", seconds=1.0)
    assert len(segments) > 1 and all(index_video(piece.path).orientation == Orientation(1) for piece in segments)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_refuses_lengths_that_mean_nothing(seconds, write_video, tmp_path):
    with pytest.raises(ValueError, match="at least 0.1 seconds"):
        segment_file(write_video(tmp_path / "a.mp4"), tmp_path / "cut", seconds=seconds)


def test_memory_does_not_grow_with_the_bytes_of_the_file(tmp_path):
    short, long = write_heavy(tmp_path / "short.mkv", 20), write_heavy(tmp_path / "long.mkv", 400)
    assert long.stat().st_size > 60e6
    code = (
        "import resource, sys\nfrom mats_ds.data.prepare.copying.segment import segment_file\n"
        "for path in sys.argv[1:]:\n"
        "    segment_file(path, path + '.cut', seconds=1.0)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, short, long], cwd=ROOT, capture_output=True, text=True, check=True)
    after_short_kib, after_long_kib = map(int, done.stdout.split())
    assert after_long_kib - after_short_kib < 30 << 10
