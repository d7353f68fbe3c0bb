"""A training copy shows the original's frames at the original's times, upright and small; it is
written whole or not at all."""

import hashlib
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.data.prepare.copying import transcode
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.transcode import CopyFailed, transcode_file
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import UnreadableVideo, index_video
from mats_ds.data.video.orientation import Orientation

ROOT = Path(__file__).resolve().parents[4]
FORMATS = [
    ("closed.mp4", {"b_frames": 2}),
    ("open.mp4", {"b_frames": 3, "options": {"x264-params": "open-gop=1"}}),
    ("one_gop.mkv", {"b_frames": 2, "gop": 250}),
    ("vp9.webm", {"codec": "libvpx-vp9"}),
    ("mpeg4_b.avi", {"codec": "mpeg4", "b_frames": 2}),
    ("h264_b.avi", {"b_frames": 2}),
    ("full_range.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
    ("stream.ts", {"b_frames": 2}),
    ("ten_bit.mp4", {"pixel_format": "yuv420p10le"}),
    ("odd.mp4", {"pixel_format": "yuv444p", "height": 49, "width": 83}),
]


def numbers_of(path, read_numbers):
    return read_numbers(decode_frames(str(path), np.arange(index_video(str(path)).num_frames)))


def write_timed(path, milliseconds, picture_of):
    """A Matroska file whose frames are shown at these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(picture_of(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_turned(source, target, degrees):
    """The same packets with a note that players turn the picture."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.set_display_rotation(degrees)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return target


@pytest.mark.parametrize(("name", "how"), FORMATS, ids=[name for name, _ in FORMATS])
def test_has_the_same_frames_at_the_same_times(name, how, write_video, read_numbers, tmp_path):
    source = write_video(tmp_path / name, **how)
    done = transcode_file(source, tmp_path / "copy" / "a.mp4")
    copy, original = index_video(done.target), index_video(str(source))
    assert numbers_of(done.target, read_numbers) == list(range(40))
    assert np.abs(copy.seconds() - original.seconds()).max() < 1e-9
    keyframes = np.searchsorted(copy.pts_F, copy.keyframe_pts_K)
    assert keyframes[0] == 0 and np.diff([*keyframes, 40]).max() <= CopySettings().gop
    assert (copy.codec, copy.pixel_format, copy.plain) == ("h264", "yuv420p", True)
    assert (done.num_frames, done.height, done.width) == (40, 48, 80)  # odd.mp4 has 49 x 83
    assert done.duration_seconds == pytest.approx(2.0)
    assert [path.name for path in Path(done.target).parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", ["full_range.avi", "ten_bit.mp4", "closed.mp4"])
def test_keeps_the_colours(name, write_video, tmp_path):
    source = write_video(tmp_path / name, **dict(FORMATS)[name])
    done = transcode_file(source, tmp_path / "a.mp4", settings=CopySettings(crf=8))
    difference = decode_frames(done.target, [7]).astype(int) - decode_frames(str(source), [7])
    # The reader itself shows 8-bit 4:2:0 one level of 255 darker than other formats.
    assert abs(difference.mean()) < 2.0 and abs(difference).mean() < 4.0


def test_writes_vp9_whose_every_packet_is_one_frame(write_video, read_numbers, tmp_path):
    source = write_video(tmp_path / "a.avi", b_frames=2)
    done = transcode_file(source, tmp_path / "b.mp4", settings=CopySettings(codec="vp9", gop=7))
    copy = index_video(done.target)
    assert (copy.codec, copy.plain) == ("vp9", True)
    assert np.diff(np.searchsorted(copy.pts_F, copy.keyframe_pts_K)).max() == 7
    assert numbers_of(done.target, read_numbers) == list(range(40))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_stands_upright(degrees, write_video, tmp_path):
    source = write_turned(write_video(tmp_path / "a.mp4"), tmp_path / "turned.mp4", degrees)
    assert index_video(str(source)).orientation == Orientation(degrees % 360 // 90)
    done = transcode_file(source, tmp_path / "copy.mp4", settings=CopySettings(crf=8))
    copy = index_video(done.target)
    assert copy.orientation.is_plain and (copy.height, copy.width) == ((48, 80) if degrees == 180 else (80, 48))
    difference = decode_frames(done.target, [5, 30]).astype(int) - decode_frames(str(source), [5, 30])
    assert abs(difference).mean() < 4.0


def test_keeps_uneven_times_exactly(read_numbers, tmp_path):
    from tests.video_files import number_picture

    milliseconds = [0, 33, 67, 300, 301, 900, 2500, 2517, 2533, 7001]
    source = write_timed(tmp_path / "a.mkv", milliseconds, number_picture)
    done = transcode_file(source, tmp_path / "copy.mp4")
    assert (index_video(done.target).seconds() * 1000).round(6).tolist() == milliseconds
    assert numbers_of(done.target, read_numbers) == list(range(10))


@pytest.mark.parametrize(
    ("short_side", "size"), [(24, (24, 40)), (48, (48, 80)), (256, (48, 80))], ids=["shrinks", "keeps", "never enlarges"]
)
def test_sets_the_short_side(short_side, size, write_video, read_numbers, tmp_path):
    done = transcode_file(write_video(tmp_path / "a.mp4"), tmp_path / "b.mp4", settings=CopySettings(short_side=short_side))
    assert (done.height, done.width) == size
    assert numbers_of(done.target, read_numbers) == list(range(40))


@pytest.mark.parametrize("name", ["torn.mkv", "torn.avi"])
def test_refuses_a_torn_file_and_keeps_its_part_only_if_asked(name, write_video, read_numbers, tmp_path):
    source = write_video(tmp_path / name, num_frames=200)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableVideo):
        transcode_file(source, tmp_path / "out" / "a.mp4")
    assert list((tmp_path / "out").iterdir()) == []
    done = transcode_file(source, tmp_path / "out" / "a.mp4", keep_partial=True)
    assert done.problem and 50 < done.num_frames < 150
    assert numbers_of(done.target, read_numbers) == list(range(done.num_frames))


@pytest.mark.parametrize("name", ["torn.mkv", "torn.avi"])
def test_the_readable_part_is_enough_where_nothing_beyond_is_needed(name, write_video, read_numbers, tmp_path):
    source = write_video(tmp_path / name, num_frames=200)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    last_seconds = float(index_video(str(source)).seconds()[-1])
    with pytest.raises(UnreadableVideo):
        # two frames of 1/20 s
        transcode_file(source, tmp_path / "a.mp4", needed_seconds=last_seconds + 0.1)
    done = transcode_file(source, tmp_path / "a.mp4", needed_seconds=last_seconds + 0.025)
    assert done.problem and numbers_of(done.target, read_numbers) == list(range(done.num_frames))
    assert done.num_frames >= 50


def test_calls_back_for_every_frame_encoded_and_verified(write_video, tmp_path):
    beats = []
    transcode_file(write_video(tmp_path / "a.mp4"), tmp_path / "b.mp4", on_heartbeat=lambda: beats.append(1))
    assert len(beats) == 2 * 40


@pytest.mark.parametrize("kind", ["empty", "text", "audio", "truncated", "vanished", "garbage", "folder"])
def test_says_what_is_wrong_with_a_broken_file(kind, write_broken, tmp_path):
    with pytest.raises(UnreadableVideo):
        transcode_file(write_broken(kind), tmp_path / "a.mp4", keep_partial=True)
    assert not list(tmp_path.glob("*.mp4*"))


def test_leaves_the_original_alone(write_video, tmp_path):
    source = write_video(tmp_path / "a.mp4")
    before = hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns
    transcode_file(source, tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="the original itself"):
        transcode_file(source, source)
    assert (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns) == before


def test_leaves_nothing_half_written(write_video, monkeypatch, tmp_path):
    def fail(part, target):
        assert part.stat().st_size > 0 and not target.exists()
        raise OSError("no room")

    monkeypatch.setattr(transcode, "publish", fail)
    with pytest.raises(OSError, match="no room"):
        transcode_file(write_video(tmp_path / "a.mp4"), tmp_path / "out" / "b.mp4")
    assert list((tmp_path / "out").iterdir()) == []


def test_notices_a_copy_that_is_not_what_was_put_in(write_video, tmp_path):
    from array import array

    path = write_video(tmp_path / "a.mp4", gop=24)
    scale = int(1 / index_video(str(path)).time_base / 20)

    def verify(num_frames=40, gop=24, width=80, stretch=1):
        times = array("q", range(0, num_frames * scale * stretch, scale * stretch))
        written = transcode._Written(width, 48, index_video(str(path)).time_base, times)
        transcode.verify_copy(path, written, gop=gop)

    verify()
    for wrong in ({"num_frames": 39}, {"num_frames": 41}, {"gop": 23}, {"width": 82}, {"stretch": 2}):
        with pytest.raises(CopyFailed):
            verify(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"codec": "h265"}, "h264, vp9"),
        ({"short_side": 255}, "even"),
        ({"short_side": 2}, "16"),
        ({"gop": 0}, "gop"),
        ({"crf": 52}, "51"),
        ({"codec": "vp9", "crf": 64}, "63"),
        ({"preset": "fats"}, "veryfast"),
        ({"codec": "vp9", "preset": "fast"}, "0, 1, 2"),
    ],
)
def test_refuses_settings_that_no_encoder_takes(wrong, words):
    with pytest.raises(ValueError, match=words):
        CopySettings(**wrong)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_file(write_video, tmp_path):
    short = write_video(tmp_path / "short.mp4", num_frames=50, height=480, width=640)
    # 230 MB of decoded pictures
    long = write_video(tmp_path / "long.mp4", num_frames=500, height=480, width=640)
    code = (
        "import resource, sys\nfrom mats_ds.data.prepare.copying.transcode import transcode_file\n"
        "for path in sys.argv[1:]:\n"
        "    transcode_file(path, path + '.copy.mp4')\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, short, long], cwd=ROOT, capture_output=True, text=True, check=True)
    after_short_kib, after_long_kib = map(int, done.stdout.split())
    assert after_long_kib - after_short_kib < 30 << 10


def test_copies_real_clips(real_videos, tmp_path):
    names = ["ucf101_v_ApplyEyeMakeup_g01_c01.avi", "ssv2_166766.webm", "moviepy_fire2_vfr_rot180.mp4", "asl_yes.mkv"]
    for name in names:
        source = str(real_videos / "real" / name)
        done = transcode_file(source, tmp_path / f"{name}.mp4")
        original, copy = index_video(source), index_video(done.target)
        assert np.abs(original.seconds() - copy.seconds()).max() < 1e-9
        assert min(copy.upright_size) == min(256, min(original.upright_size))
