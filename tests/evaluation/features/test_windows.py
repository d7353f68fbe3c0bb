"""Sliding windows: which frames of a video each has, decoded once, held no longer than needed."""

from fractions import Fraction

import av
import numpy as np
import pytest

from mats_ds.data.video import decode
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.evaluation.features.windows import VideoPart, WindowTimes, plan_windows, read_windows, stream_windows

PICTURE, SIZE = (48, 80), (48, 48)  # of the videos and their centre crops: nothing is scaled


def write_video(path, times, *, gop=12, codec="libx264"):
    """A picture at each of these hundredths of a second; every picture differs."""
    noise = np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = PICTURE[1], PICTURE[0], "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 100)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * number, axis=1), format="rgb24")
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture
def steady(tmp_path):
    """Four seconds, 25 frames a second."""
    return write_video(tmp_path / "steady.mp4", range(0, 400, 4))


def windows_of(path, window, hop, *, num_frames=4, **part):
    return plan_windows(path, WindowTimes(window, hop), num_frames=num_frames, **part)


def test_windows_begin_a_hop_apart_and_lie_in_the_video(steady):
    windows = windows_of(steady, 1.0, 0.5)
    assert windows.numbers_WT.shape == (7, 4) and windows.duration_seconds == pytest.approx(4.0)
    assert windows.numbers_WT[0].tolist() == [0, 6, 12, 18]  # shown at 0, 0.25, 0.5, 0.75 s
    assert windows.numbers_WT[3].tolist() == [37, 43, 50, 56]  # from 1.5 s on
    assert windows.numbers_WT[-1].tolist() == [75, 81, 87, 93]  # from 3 to 4 s
    assert len(windows_of(steady, 1.0, 0.7).numbers_WT) == 5  # 0.2 s are left, less than a hop
    assert len(windows_of(steady, 1.0, 2.0).numbers_WT) == 2  # with gaps


def test_a_video_shorter_than_a_window_has_one_that_repeats_its_last_frame(steady):
    assert windows_of(steady, 8.0, 1.0).numbers_WT.tolist() == [[0, 50, 99, 99]]


def test_a_part_of_a_file_counts_from_its_start(steady):
    windows = windows_of(steady, 1.0, 0.5, first_seconds=1.0, last_seconds=2.5)
    assert windows.origin_seconds == 1.0
    assert windows.numbers_WT.tolist() == [[25, 31, 37, 43], [37, 43, 50, 56]]
    with pytest.raises(UnreadableVideo):
        windows_of(steady, 1.0, 0.5, first_seconds=9.0)


def test_seconds_count_and_not_frames_where_the_rate_varies(tmp_path):
    times = [*range(0, 200, 4), *range(200, 420, 20)]  # 25 frames a second, then 5
    path = write_video(tmp_path / "vfr.mp4", times)
    numbers = windows_of(path, 1.0, 1.0).numbers_WT
    shown = np.array(times)[numbers] / 100
    moments = np.arange(4)[:, None] + np.arange(4) / 4
    assert len(numbers) == 4 and np.all(shown <= moments + 1e-6) and np.all(moments - shown < [[0.04], [0.04], [0.2], [0.2]])


def count_decoded(monkeypatch):
    """The number of frames that decoders have given, counted as they are taken."""
    counted = []
    real = decode._take_wanted

    def count(frames, missing, take):
        counted.append(len(frames))
        return real(frames, missing, take)

    monkeypatch.setattr(decode, "_take_wanted", count)
    return counted


@pytest.mark.parametrize("hop", [0.04, 0.2, 1.0, 3.0])
def test_the_frames_are_the_videos_own_and_are_decoded_once(steady, monkeypatch, hop):
    windows = windows_of(steady, 1.0, hop)
    index = index_video(steady)
    expected = decode_frames(steady, np.arange(index.num_frames))[:, :, 16:64]
    counted = count_decoded(monkeypatch)
    given = []
    read_windows(windows, size=SIZE, give=given.append)
    assert len(given) == len(windows.numbers_WT)
    for frames, numbers in zip(given, windows.numbers_WT, strict=True):
        assert np.array_equal(frames, expected[numbers])
    assert sum(counted) <= index.num_frames  # however much windows overlap


def test_no_more_frames_are_held_than_a_window_lasts(steady, monkeypatch):
    from mats_ds.evaluation.features import windows as module

    held = []
    real = module._Collector.take

    def take(self, number, frame):
        real(self, number, frame)
        held.append(len(self._frames))

    monkeypatch.setattr(module._Collector, "take", take)
    read_windows(windows_of(steady, 0.4, 0.04, num_frames=8), size=SIZE, give=lambda frames: None)
    assert 8 <= max(held) <= 12  # ten frames in 0.4 s


def test_a_decoding_that_begins_anew_gives_each_window_once(steady, monkeypatch):
    windows = windows_of(steady, 1.0, 0.5)
    expected = []
    read_windows(windows, size=SIZE, give=expected.append)
    real, failed = decode._take_sound, []

    def fail_once(number, frame, take):
        if number == 50 and not failed:
            failed.append(number)
            raise UnreadableVideo("as if a packet were missing")
        return real(number, frame, take)

    monkeypatch.setattr(decode, "_take_sound", fail_once)
    given = []
    read_windows(windows, size=SIZE, give=given.append)
    assert failed and np.array_equal(given, expected)


def test_many_videos_come_in_order_and_a_broken_one_costs_only_itself(tmp_path, steady):
    short = write_video(tmp_path / "short.mp4", range(0, 40, 4))
    (tmp_path / "broken.mp4").write_text("no video")
    parts = [VideoPart(row, str(path), None, None) for row, path in enumerate([steady, tmp_path / "broken.mp4", short, steady])]
    found = []
    for stream in stream_windows(parts, WindowTimes(1.0, 0.5), num_frames=4, size=SIZE, micro_batch=3, num_threads=2):
        try:
            found.append([len(batch) for batch in stream.batches()])
        except UnreadableVideo:
            found.append(None)
    assert found == [[3, 3, 1], None, [1], [3, 3, 1]]


@pytest.mark.parametrize("times", [(0, 1), (1, 0), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 1e-9), (1e300, 1)])
def test_times_that_are_none_are_refused(times):
    with pytest.raises(ValueError, match=r"0.01 to 86,400 seconds, got"):
        WindowTimes(*times)
