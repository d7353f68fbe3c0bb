"""The frames that come are exactly the frames that were asked for."""

import dataclasses
from types import SimpleNamespace

import av
import numpy as np
import pytest

from mats_ds.core.clips import ClipSpec
from mats_ds.data.video import decode
from mats_ds.data.video.clip_frames import RgbConverter
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import decode_frames, frame_numbers
from mats_ds.data.video.indexing import index_video

FORMATS = [
    ("closed.mp4", {"b_frames": 2}),
    ("no_b.mp4", {}),
    ("open.mp4", {"b_frames": 3, "options": {"x264-params": "open-gop=1"}}),
    ("one_gop.mkv", {"b_frames": 2, "gop": 250}),
    ("vp9.webm", {"codec": "libvpx-vp9"}),
    ("alt_ref.webm", {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}}),
    ("vp8.webm", {"codec": "libvpx", "options": {"deadline": "realtime", "crf": "10", "b": "1M"}}),
    ("mpeg4.avi", {"codec": "mpeg4"}),
    ("mpeg4_b.avi", {"codec": "mpeg4", "b_frames": 2}),
    ("h264_b.avi", {"b_frames": 2}),
    ("motion.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
    ("stream.ts", {"b_frames": 2}),
    ("flash.flv", {"b_frames": 2}),
    ("hevc.mp4", {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"}}),
    ("av1.mp4", {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}, "height": 96, "width": 160}),
]


@pytest.fixture(scope="module")
def video(write_video, tmp_path_factory):
    """`video(name, options)`: the path of a 40-frame file, written once; skips where this PyAV
    lacks the encoder."""
    written = {}

    def get(name, options):
        if name not in written:
            try:
                written[name] = write_video(tmp_path_factory.mktemp("video") / name, num_frames=40, **options)
            except (av.error.FFmpegError, ValueError) as error:
                pytest.skip(f"this PyAV cannot write {name}: {error}")
        return str(written[name])

    return get


@pytest.mark.parametrize(("name", "options"), FORMATS, ids=[name for name, _ in FORMATS])
def test_every_format_gives_the_very_frames(video, read_numbers, name, options):
    path = video(name, options)
    index = index_video(path)
    assert index.num_frames == 40
    for numbers in ([0, 1, 2, 3], [0, 13, 26, 39], [37, 38, 39], [11, 12, 13], [5, 5, 30, 7], [39]):
        frames_THWC = decode_frames(path, np.array(numbers))
        assert frames_THWC.shape == (len(numbers), index.height, index.width, 3) and frames_THWC.dtype == np.uint8
        assert read_numbers(frames_THWC) == numbers


def whole_pictures(path: str, numbers, decode_by) -> np.ndarray:
    """Frames that one of the ways of decoding brings, RGB [T, H, W, 3], as they are coded."""
    index = index_video(path)
    convert, taken = RgbConverter(index.height, index.width), {}
    decode_by(path, index, np.unique(numbers), lambda number, frame: taken.update({number: convert(frame).copy()}))
    return np.stack([taken[number] for number in numbers])


@pytest.mark.parametrize(("name", "options"), FORMATS, ids=[name for name, _ in FORMATS])
def test_every_way_brings_the_same_bits(video, name, options):
    path = video(name, options)
    index = index_video(path)
    for numbers in ([3, 9, 17, 18, 31], [0, 12, 24, 36], [11, 39]):
        plain = whole_pictures(path, numbers, decode._decode_from_start)
        np.testing.assert_array_equal(decode_frames(path, np.array(numbers)), plain)
        if index.packets is not None:
            np.testing.assert_array_equal(whole_pictures(path, numbers, decode._decode_packets), plain)
        if index.trusts_pts:
            np.testing.assert_array_equal(whole_pictures(path, numbers, decode._decode_by_seeking), plain)


def test_mp4_and_mpeg4_in_avi_are_read_without_their_container(video, monkeypatch, read_numbers):
    for name in ("closed.mp4", "no_b.mp4", "open.mp4", "mpeg4.avi", "mpeg4_b.avi"):
        path = video(name, dict(FORMATS)[name])
        assert index_video(path).packets is not None, name
        monkeypatch.setattr(decode, "open_video", lambda *_, **__: pytest.fail("opened the container"))
        assert read_numbers(decode_frames(path, np.array([7, 30]))) == [7, 30]
        monkeypatch.undo()
    for name in ("vp9.webm", "one_gop.mkv", "stream.ts", "h264_b.avi"):
        assert index_video(video(name, dict(FORMATS)[name])).packets is None, name


def test_only_packets_that_wanted_frames_depend_on_are_decoded(write_video, tmp_path, monkeypatch):
    path = str(
        write_video(tmp_path / "a.mp4", num_frames=60, gop=12, b_frames=2, options={"x264-params": "b-adapt=0:b-pyramid=none"})
    )
    index = index_video(path)
    fed = []
    needed = decode._needed_packets
    monkeypatch.setattr(decode, "_needed_packets", lambda *given: (fed.append(packet) or packet for packet in needed(*given)))
    decode_frames(path, np.array([13, 40]))
    # frame 13 is a B-picture between 12 (the keyframe) and 15, frame 40 one between 39 and 42 after
    # the keyframe 36
    assert sorted(packet.pts for packet in fed) == [12, 13, 15, 36, 39, 40, 42]
    assert index.packets.is_reference_P.sum() < 30


@pytest.mark.parametrize("name", ["closed.mp4", "mpeg4_b.avi"])
def test_packets_that_fail_are_followed_by_the_container(video, read_numbers, monkeypatch, name):
    def fail(*_):
        raise UnreadableVideo("frame 3 did not come")

    path = video(name, dict(FORMATS)[name])
    monkeypatch.setattr(decode, "_decode_packets", fail)
    assert read_numbers(decode_frames(path, np.array([3, 30]))) == [3, 30]


def test_a_seek_that_misses_is_followed_by_one_pass_from_the_start(video, read_numbers, monkeypatch):
    path = video("one_gop.mkv", dict(FORMATS)["one_gop.mkv"])

    def miss(*_):
        raise UnreadableVideo("frame 3 did not come")

    monkeypatch.setattr(decode, "_decode_by_seeking", miss)
    assert read_numbers(decode_frames(path, np.array([3, 30]))) == [3, 30]


@pytest.mark.parametrize("name", ["closed.mp4", "vp9.webm"])
def test_only_part_of_the_file_is_decoded(video, monkeypatch, name):
    path = video(name, dict(FORMATS)[name])
    monkeypatch.setattr(decode, "_decode_from_start", lambda *_: pytest.fail("decoded from the start"))
    decode_frames(path, np.array([20, 25]))


def test_a_long_way_is_sought_and_a_short_one_decoded(write_video, read_numbers, tmp_path):
    path = str(write_video(tmp_path / "long.mkv", num_frames=200, gop=10, b_frames=2))
    index = index_video(path)
    numbers = [3, 9, 14, 60, 151, 188, 199]
    assert [run for _, run in decode._runs(index, np.array(numbers))] == [[3, 9, 14], [60], [151], [188, 199]]
    assert read_numbers(decode_frames(path, np.array(numbers))) == numbers


def test_frames_beyond_the_end_or_lost_are_unreadable(video, write_video, tmp_path):
    path = video("closed.mp4", dict(FORMATS)["closed.mp4"])
    with pytest.raises(UnreadableVideo, match="it has 40"):
        decode_frames(path, np.array([39, 40]))
    whole = write_video(tmp_path / "whole.mp4", num_frames=40, options={"movflags": "faststart"})
    index = index_video(str(whole))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableVideo):
        decode_frames(str(whole), np.array([38]), index=index)


@pytest.mark.parametrize("kind", ["empty", "text", "garbage", "truncated", "audio", "vanished", "folder"])
def test_broken_files_are_unreadable(write_broken, kind):
    with pytest.raises(UnreadableVideo):
        decode_frames(str(write_broken(kind)), np.array([0]))


def test_a_file_that_vanishes_after_its_index_was_read(write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4")
    index = index_video(str(path))
    path.unlink()
    with pytest.raises(UnreadableVideo, match="No such file"):
        decode_frames(str(path), np.array([0]), index=index)


def spec_of(**values) -> ClipSpec:
    return ClipSpec(**{"path": "", "sample": 0, "num_frames": 4, "stride": 3, "start": 0.0, **values})


def numbers_of(index, **values) -> list[int]:
    return frame_numbers(spec_of(**values), index=index).tolist()


@pytest.fixture(scope="module")
def index(video):
    return index_video(video("closed.mp4", dict(FORMATS)["closed.mp4"]))


def test_dense_frames_lie_a_stride_apart_and_start_picks_the_beginning(index):
    assert numbers_of(index) == [0, 3, 6, 9]
    assert numbers_of(index, start=0.5) == [14, 17, 20, 23]
    # 28 + 12 frames = 40: the last beginning
    assert numbers_of(index, start=0.999999) == [28, 31, 34, 37]
    assert numbers_of(index, start=1.0) == [28, 31, 34, 37]


def test_a_share_that_binary_numbers_miss_names_the_frame_that_it_means():
    """Clip 7 of 11, and 9 of 10: in binary, 7 / 10 of 90 and 9 / 10 of 10 are a little less than 63
    and 9."""
    assert numbers_of(SimpleNamespace(num_frames=101), start=7 / 10)[0] == 63
    assert numbers_of(SimpleNamespace(num_frames=40), start=9 / 10, sampling="uniform") == [9, 19, 29, 39]


def test_more_frames_over_the_same_span(index):
    assert numbers_of(index, num_frames=6, span=12) == [0, 2, 4, 6, 8, 10]
    assert numbers_of(index, num_frames=5, span=12, start=1.0) == [28, 30, 32, 35, 37]


def test_a_video_shorter_than_the_span_is_used_whole(index):
    assert numbers_of(index, num_frames=8, stride=10) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert numbers_of(index, num_frames=8, stride=1, last_seconds=0.2) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_span_in_seconds_takes_the_frames_that_are_shown_at_its_moments(index):
    """20 frames a second: 0.6 s are 12 frames."""
    assert numbers_of(index, span_seconds=0.6) == numbers_of(index, span=12) == [0, 3, 6, 9]
    assert numbers_of(index, span_seconds=0.6, start=1.0) == [28, 31, 34, 37]
    assert numbers_of(index, span_seconds=0.1) == [0, 0, 1, 1]
    # longer than the video: all of it
    assert numbers_of(index, span_seconds=60.0) == [0, 10, 20, 30]
    assert numbers_of(index, span_seconds=0.4, first_seconds=0.5) == [10, 12, 14, 16]


def test_a_span_in_seconds_is_right_where_the_frame_rate_varies(index):
    # 10 frames at one tick each, then 30 frames four times as long
    ticks = np.cumsum([0, *[1] * 9, *[4] * 30])
    ticks = ticks * int(index.pts_F[1] - index.pts_F[0])
    varying = dataclasses.replace(index, pts_F=ticks)
    one = float(ticks[1] * index.time_base)
    assert numbers_of(varying, span_seconds=16 * one) == [0, 4, 8, 9]
    assert np.allclose(np.diff(varying.seconds()[numbers_of(varying, span_seconds=32 * one, start=0.5)]), 8 * one)


def test_uniform_frames_come_one_from_each_segment(index):
    assert numbers_of(index, sampling="uniform") == [0, 10, 20, 30]
    assert numbers_of(index, sampling="uniform", start=0.5) == [5, 15, 25, 35]
    assert numbers_of(index, sampling="uniform", start=0.999999) == [9, 19, 29, 39]
    assert numbers_of(index, sampling="uniform", start=1.0)[-1] == 39


def test_uniform_frames_at_a_place_of_their_own_in_each_segment(index):
    own = dict(sampling="uniform", start=0.3)
    assert numbers_of(index, **own, segment_starts=(0.0, 0.9, 0.5, 0.25)) == [0, 19, 25, 32]
    # 14 frames from number 10 on, segments of 3.5
    here = dict(**own, first_seconds=0.5, last_seconds=1.2)
    assert numbers_of(index, **here, segment_starts=(0.999, 0.0, 0.999, 0.0)) == [13, 13, 20, 20]
    with pytest.raises(AssertionError, match="for each of its segments"):
        numbers_of(index, **own, segment_starts=(0.5, 0.5))


def test_only_the_allowed_seconds_are_used(index):
    """20 frames a second: 0.5 s is frame 10, and the end is not included."""
    assert numbers_of(index, first_seconds=0.5) == [10, 13, 16, 19]
    assert numbers_of(index, first_seconds=0.5, last_seconds=1.0, start=1.0) == [10, 12, 15, 17]
    assert numbers_of(index, first_seconds=0.5, last_seconds=1.2, start=1.0) == [12, 15, 18, 21]
    with pytest.raises(UnreadableVideo, match="no frame between 7 s and its end; the last one is at 1.950 s"):
        numbers_of(index, first_seconds=7.0)


@pytest.mark.parametrize(("name", "quarter_turns"), [("rot0", 0), ("rot90", 3), ("rot180", 2), ("rot270", 1)])
def test_rotated_video_comes_upright(real_videos, name, quarter_turns):
    path = str(real_videos / "real" / "edge" / f"{name}_3f.mov")
    index = index_video(path)
    frames_THWC = decode_frames(path, np.array([0, 2]))
    assert frames_THWC.shape[1:3] == index.upright_size
    with av.open(path) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    error = np.abs(np.rot90(picture, quarter_turns).astype(int) - frames_THWC[0])
    assert error.mean() < 2


@pytest.mark.slow
def test_real_clips_by_seeking_equal_plain_decoding(real_videos):
    paths = sorted((real_videos / "real").glob("*.*")) + sorted((real_videos / "ucf101_5class").glob("*/*.avi"))[::30]
    paths = [path for path in paths if path.suffix != ".csv" and path.stat().st_size < 800_000]
    for path in paths:
        index = index_video(str(path))
        if index.height * index.width > 640 * 480:
            continue
        span = min(48, index.num_frames)
        numbers = (index.num_frames - span) // 2 + np.arange(6) * span // 6
        plain = index.orientation.apply(whole_pictures(str(path), numbers, decode._decode_from_start), axes=(1, 2))
        np.testing.assert_array_equal(decode_frames(str(path), numbers), plain, err_msg=path.name)
