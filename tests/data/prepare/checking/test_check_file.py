"""What a file really holds is found by decoding it; where it breaks, the part that decodes is told,
or why none can be used."""

import csv
import os
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.core.clips import ClipSpec
from mats_ds.data.prepare.checking.check_file import check_file, varies
from mats_ds.data.video.decode import decode_frames, frame_numbers
from mats_ds.data.video.faults import explain
from mats_ds.data.video.indexing import UnreadableVideo, index_video
from mats_ds.data.video.nvdec_support import device_can_decode

NOBODY = 65534
# bytes from the name of the box to its matrix. Source: ISO/IEC 14496-12, track header box, version
# 0
TKHD_MATRIX = 44
QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
# bytes from the name of the chunk to the number of frames. Source: AVISTREAMHEADER of the AVI
# format
STRH_LENGTH = 40


@pytest.fixture
def patch_bytes():
    """`patch_bytes(path, place, replacement)`."""

    def patch(path, place, replacement):
        data = bytearray(path.read_bytes())
        data[place : place + len(replacement)] = replacement
        path.write_bytes(data)

    return patch


def test_tells_what_a_file_holds(write_video, tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=12, b_frames=2, height=96, width=160, frame_rate=25)
    facts = check_file(str(path))
    assert (facts.num_frames, facts.codec, facts.pixel_format, facts.num_video_streams) == (40, "h264", "yuv420p", 1)
    assert (facts.height, facts.width, facts.rotation) == (96, 160, 0)
    assert (facts.gop, facts.gop_max) == (12, 12) and facts.profile
    assert facts.fps == pytest.approx(25) and facts.duration_seconds == pytest.approx(1.6) and not facts.vfr
    assert facts.bytes == path.stat().st_size
    assert facts.decode_seconds > 0 and facts.clip_seconds > 0
    assert (facts.start_seconds, facts.end_seconds, facts.warnings, facts.cpu_reason) == (None, None, (), "")


@pytest.mark.parametrize(
    ("name", "options", "cpu_reason"),
    [
        ("plain.mp4", {"height": 48, "width": 64}, ""),
        ("vp9.webm", {"codec": "libvpx-vp9", "height": 128, "width": 160}, ""),
        ("b.avi", {"codec": "mpeg4", "b_frames": 2}, "AVI with B-frames"),
        ("h264.avi", {"b_frames": 2}, "AVI with B-frames"),
        ("ten.mp4", {"pixel_format": "yuv420p10le"}, "10-bit colours"),
        ("444.mp4", {"pixel_format": "yuv444p"}, "4:4:4 colours"),
        ("odd.webm", {"codec": "libvpx-vp9", "height": 131, "width": 121}, "a side below NVDEC's 128 pixels"),
        ("one.mp4", {"pixel_format": "yuv444p", "height": 1, "width": 1}, "4:4:4 colours"),
        ("jpeg.mkv", {"codec": "mjpeg", "pixel_format": "yuvj420p"}, "codec mjpeg"),
    ],
)
def test_says_why_a_file_is_left_to_the_cpu(write_video, tmp_path, name, options, cpu_reason):
    size = {"height": 48, "width": 80} | options
    if size["width"] == 1:  # too narrow for the numbered pictures
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=5)
            stream.width, stream.height, stream.pix_fmt = 1, 1, "yuv444p"
            for _ in range(20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((1, 1, 3), np.uint8), format="rgb24")))
            container.mux(stream.encode())
    else:
        path = write_video(tmp_path / name, num_frames=20, **options)
    facts = check_file(str(path))
    assert (facts.num_frames, facts.height, facts.width) == (20, size["height"], size["width"])
    assert facts.cpu_reason == cpu_reason
    assert device_can_decode(index_video(str(path))) == (not cpu_reason)


def test_sizes_are_those_of_the_upright_picture(write_video, tmp_path, patch_bytes):
    path = write_video(tmp_path / "a.mp4", num_frames=20, height=48, width=80)
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in QUARTER_TURN)
    patch_bytes(path, path.read_bytes().index(b"tkhd") + TKHD_MATRIX, matrix)
    facts = check_file(str(path))
    assert (facts.rotation % 180, facts.height, facts.width, facts.cpu_reason) == (90, 80, 48, "rotation")


def test_counts_frames_whatever_the_header_says(write_video, tmp_path, patch_bytes):
    path = write_video(tmp_path / "a.avi", codec="mpeg4", num_frames=40)
    patch_bytes(path, path.read_bytes().index(b"strh") + STRH_LENGTH, (41).to_bytes(4, "little"))
    facts = check_file(str(path))
    assert facts.num_frames == 40 and facts.warnings == ("header says 41 frames, 40 decode",)


@pytest.mark.parametrize("num_frames", [1, 3, 10])
def test_short_files_are_readable(write_video, tmp_path, num_frames):
    facts = check_file(str(write_video(tmp_path / "a.mp4", num_frames=num_frames)))
    assert facts.num_frames == num_frames and facts.fps > 0 and facts.duration_seconds > 0
    assert facts.warnings == (f"{num_frames} frame{'s' if num_frames > 1 else ''}: a clip of 16 repeats some",)


def test_says_which_of_two_video_streams_is_used(tmp_path):
    path = tmp_path / "two.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=20) for _ in range(2)]
        for stream, (height, width) in zip(streams, ((48, 64), (96, 160)), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(20):
            for stream in streams:
                picture = np.zeros((stream.height, stream.width, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    facts = check_file(str(path))
    assert (facts.num_video_streams, facts.num_frames, facts.cpu_reason) == (2, 20, "several video streams")
    assert facts.warnings == (f"2 video streams, number {index_video(str(path)).stream_index} is used",)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ([40] * 100, False),
        ([33, 34, 33] * 30, False),  # 30 frames a second in whole milliseconds
        ([40] * 99 + [80], False),  # one frame was left out
        ([40, 40, 80] * 30, True),
        ([40] * 50 + [20] * 50, True),
        ([], False),
    ],
)
def test_a_frame_rate_varies_when_more_than_a_few_gaps_differ(gaps, expected):
    seconds_F = np.cumsum([0, *gaps]) / 1000
    assert varies(seconds_F, tick_seconds=0.001) == expected


def test_the_frame_rate_is_that_of_the_usual_gap(tmp_path):
    path = tmp_path / "vfr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 80, 3), np.uint8), format="rgb24")
            frame.pts = number + number // 4  # every fifth frame of 25 a second is missing
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    facts = check_file(str(path))
    assert facts.vfr and facts.fps == pytest.approx(25) and facts.num_frames == 40
    assert facts.duration_seconds == pytest.approx(49 / 25)


def test_of_a_file_that_breaks_late_only_the_sound_part_is_used(write_video, read_numbers, tmp_path, break_packet):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=40)
    break_packet(path, 25)
    facts = check_file(str(path))
    assert facts.num_frames == 25 and facts.start_seconds is None
    assert facts.warnings == (
        "damaged in part: decodes up to frame 25 of 40, then: the data there is damaged; frames 0 to 24 can be used",
    )
    spec = ClipSpec(path=str(path), sample=0, num_frames=25, stride=1, start=1.0, last_seconds=facts.end_seconds)
    numbers = frame_numbers(spec, index=index_video(str(path)))
    assert read_numbers(decode_frames(str(path), numbers)) == list(range(25))


def test_of_a_file_with_a_hole_the_longest_sound_part_is_used(write_video, read_numbers, tmp_path, break_packet):
    path = write_video(tmp_path / "a.mp4", num_frames=60, gop=20)
    break_packet(path, 5)  # frames 5 to 19 are lost, until the next keyframe
    facts = check_file(str(path))
    assert facts.num_frames == 40 and facts.end_seconds is None
    spec = ClipSpec(path=str(path), sample=0, num_frames=40, stride=1, start=0.0, first_seconds=facts.start_seconds)
    numbers = frame_numbers(spec, index=index_video(str(path)))
    assert read_numbers(decode_frames(str(path), numbers)) == list(range(20, 60))


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.webm", {"codec": "libvpx-vp9"})])
def test_a_file_that_ends_long_before_its_header_says_is_told_from_a_whole_one(write_video, tmp_path, name, options):
    path = write_video(tmp_path / name, num_frames=200, **options)
    whole = check_file(str(path))
    assert (whole.end_seconds, whole.warnings) == (None, ())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    facts = check_file(str(path))
    last_seconds = (facts.num_frames - 1) / 20
    assert 16 < facts.num_frames < 190 and facts.end_seconds == pytest.approx(last_seconds + 0.5 / 20)
    [warning] = [said for said in facts.warnings if "header" in said]
    assert warning == f"ends after {last_seconds:.2f} s of the 10.00 s in its header"


def test_says_where_frames_lie_far_apart(tmp_path):
    from tests.data.prepare.copying.test_transcode import write_timed
    from tests.video_files import number_picture

    milliseconds = [*range(0, 1000, 50), *range(3000, 4000, 50)]
    facts = check_file(str(write_timed(tmp_path / "a.mkv", milliseconds, number_picture)))
    assert "no frame between 0.95 s and 3.00 s" in facts.warnings


def test_a_file_that_may_not_be_read(write_video):
    """Root may read everything, so it lays its rights down for this test."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = write_video(Path(folder) / "secret.mp4")
        path.chmod(0o000)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(UnreadableVideo, match="Permission denied"):
                check_file(str(path))
        finally:
            os.seteuid(user)


def test_a_file_that_breaks_early_is_bad(write_video, tmp_path, break_packet):
    path = write_video(tmp_path / "a.mp4", num_frames=40, gop=40)
    break_packet(path, 10)
    with pytest.raises(UnreadableVideo, match="only 10 of 40 frames in a row decode: the data there is damaged"):
        check_file(str(path))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "a text file, not a video"),
        ("garbage", "no video that FFmpeg knows, or its beginning is damaged"),
        ("truncated", "cut off: the index at its end (moov) is missing; its download or recording did not finish"),
        ("audio", "no video stream in it, only audio"),
        ("vanished", "No such file or directory (FileNotFoundError)"),
        ("folder", "a directory"),
    ],
)
def test_a_bad_file_is_described_in_words(write_broken, kind, reason):
    with pytest.raises(UnreadableVideo) as caught:
        check_file(str(write_broken(kind)))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>403</html>", "an HTML page, not a video: the download was answered with a page"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG picture, not a video"),
        (bytes(5000), "filled with zero bytes: its copy or download did not finish"),
        ("ein Text über Vögel".encode(), "a text file, not a video"),
        (
            b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00\x00\x00\x00\x10moovencv\x00\x00\x00\x00",
            "encrypted: nothing decodes without its key",
        ),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer (run `git lfs pull`), not a video"),
    ],
)
def test_the_bytes_tell_more_than_the_decoder(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert explain(str(path), "Invalid data found when processing input (InvalidDataError)") == reason
    assert explain(str(path), "Permission denied (PermissionError)") == "Permission denied (PermissionError)"


def test_packets_without_a_picture_do_not_cut_a_file_in_two(real_videos):
    path = real_videos / "ucf101_5class" / "JumpingJack" / "v_JumpingJack_g20_c01.avi"
    if not path.exists():
        pytest.skip(f"no {path.name} here")
    facts = check_file(str(path))
    assert (facts.num_frames, facts.start_seconds) == (116, None)
    [warning] = facts.warnings
    assert "120 frames" in warning and "116 decode" in warning
    for start in (0.0, 0.5, 1.0):
        spec = ClipSpec(path=str(path), sample=0, num_frames=16, stride=4, start=start, last_seconds=facts.end_seconds)
        index = index_video(str(path))
        assert decode_frames(str(path), frame_numbers(spec, index=index)).shape == (16, 240, 320, 3)


# Their manifest counts the first stream; the loader takes the one that FFmpeg recommends.
SEVERAL_STREAMS = {"fir_ceiling_p1.mp4", "nasa_2audio.mp4"}


@pytest.mark.slow
def test_real_files_hold_what_their_manifest_says(real_videos):
    wrong = []
    with open(real_videos / "real" / "MANIFEST.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        expected = int(row["frames"])
        try:
            facts = check_file(str(real_videos / row["path"]))
        except UnreadableVideo as unreadable:
            if expected or not unreadable.reason:
                wrong.append((row["path"], unreadable.reason))
            continue
        name = row["path"].rpartition("/")[2]
        if name not in SEVERAL_STREAMS and (facts.num_frames, facts.vfr) != (expected, row["vfr"] == "1"):
            wrong.append((name, facts.num_frames, expected, facts.vfr, row["vfr"]))
    assert len(rows) > 90 and not wrong
