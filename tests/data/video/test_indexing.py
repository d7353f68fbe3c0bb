"""What a file holds is told by its packets, and what is wrong with it by one exception."""

import csv
import os

import av
import numpy as np
import pytest

from mats_ds.data.video import indexing
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.index import IndexCache, _size
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.orientation import Orientation


@pytest.mark.parametrize(
    ("name", "options", "codec", "trusts_pts"),
    [
        ("a.mp4", {"b_frames": 2}, "h264", True),
        ("a.mkv", {"b_frames": 2}, "h264", True),
        ("a.webm", {"codec": "libvpx-vp9"}, "vp9", True),
        ("a.avi", {"codec": "mpeg4"}, "mpeg4", True),
        ("b.avi", {"codec": "mpeg4", "b_frames": 2}, "mpeg4", False),
        ("c.avi", {"b_frames": 2}, "h264", False),
    ],
)
def test_frames_keyframes_and_times_come_from_the_packets(write_video, tmp_path, name, options, codec, trusts_pts):
    index = index_video(str(write_video(tmp_path / name, num_frames=40, gop=10, **options)))
    assert (index.codec, index.num_frames, index.trusts_pts, index.plain) == (codec, 40, trusts_pts, trusts_pts)
    assert (index.height, index.width, index.orientation, index.pixel_format) == (48, 80, Orientation(), "yuv420p")
    assert index.frame_rate == pytest.approx(20)
    np.testing.assert_allclose(index.seconds(), np.arange(40) / 20, atol=0.001)
    if trusts_pts:
        assert len(index.keyframe_pts_K) == 4 and set(index.keyframe_pts_K) <= set(index.pts_F)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"b_frames": 2}),
        ("a.mov", {"b_frames": 3}),
        ("a.mkv", {"b_frames": 2}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.avi", {"codec": "mpeg4"}),
    ],
)
def test_a_seek_lands_on_the_keyframe_itself(write_video, tmp_path, name, options):
    index = index_video(str(write_video(tmp_path / name, num_frames=40, gop=10, **options)))
    container, stream = indexing.open_video(index.path)
    with container:
        for keyframe_pts, seek_to in zip(index.keyframe_pts_K, index.keyframe_seek_K, strict=True):
            container.seek(int(seek_to), stream=stream, backward=True)
            assert next(container.demux(stream)).pts == keyframe_pts


def test_a_codec_that_nothing_decodes_is_one_reason(write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(UnreadableVideo, match="no decoder for its video codec"):
        index_video(str(path))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty"),
        ("text", "a text file, not a video"),
        ("garbage", "no video that FFmpeg knows"),
        ("truncated", "cut off"),
        ("audio", "no video stream in it, only audio"),
        ("vanished", "No such file"),
        ("folder", "directory"),
    ],
)
def test_everything_that_is_wrong_is_one_exception_with_one_line(write_broken, kind, reason):
    path = str(write_broken(kind))
    for _ in range(2):  # the second time from memory
        with pytest.raises(UnreadableVideo, match=reason) as caught:
            index_video(path)
        assert caught.value.reason and "\n" not in caught.value.reason


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_that_may_not_be_read(write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4")
    path.chmod(0)
    with pytest.raises(UnreadableVideo, match="ermission"):
        index_video(str(path))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UnreadableVideo, match="not a regular file"):
        index_video(str(tmp_path / "a.mp4"))


def test_a_path_that_no_system_takes():
    with pytest.raises(UnreadableVideo, match="null"):
        index_video("a\0b.mp4")


def test_a_file_that_breaks_off_keeps_what_lies_before(write_video, tmp_path):
    whole = write_video(tmp_path / "whole.webm", codec="libvpx-vp9", num_frames=40)
    part = tmp_path / "part.webm"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert 0 < index_video(str(part)).num_frames < 40


def test_an_index_is_remembered_until_the_file_changes(write_video, tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=20)
    first = index_video(str(path))
    monkeypatch.setattr(indexing, "_read_index", lambda *_: pytest.fail("read again"))
    assert index_video(str(path)) is first
    monkeypatch.undo()
    write_video(path, num_frames=30)
    assert index_video(str(path)).num_frames == 30


def test_the_memory_of_indices_is_bounded(write_video, tmp_path, monkeypatch):
    cache = IndexCache(max_bytes=5000)
    monkeypatch.setattr(indexing, "_CACHE", cache)
    for number in range(6):
        index_video(str(write_video(tmp_path / f"{number}.mp4", num_frames=20)))
    assert 1 <= len(cache._entries) < 6
    assert cache._num_bytes == sum(_size(entry) for entry in cache._entries.values()) <= 5000
    assert any("5.mp4" in identity[0] for identity in cache._entries)


def test_a_pyav_that_knows_no_metadata_errors_is_enough(write_video, tmp_path, monkeypatch):
    """PyAV 19 dropped the argument."""
    path, real = str(write_video(tmp_path / "a.mp4", num_frames=9)), av.open
    monkeypatch.setattr(av, "open", lambda file, mode="r", *, options=None: real(file, mode, options=options))
    assert index_video(path).num_frames == 9


@pytest.mark.slow
def test_real_clips_have_the_frames_that_their_list_says(real_videos):
    with open(real_videos / "real" / "MANIFEST.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["error"]]
    # Two files hold two video streams of different length; the list counted the other one.
    two_streams = ("fir_ceiling_p1.mp4", "nasa_2audio.mp4")
    checked = 0
    for row in rows:
        path = real_videos / row["path"]
        if path.exists() and path.name not in two_streams:
            index = index_video(str(path))
            assert index.num_frames == int(row["frames"]), path
            assert index.orientation == Orientation(int(row["rotation"] or 0) % 360 // 90), path
            checked += 1
    assert checked > 20
