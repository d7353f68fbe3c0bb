"""Seconds count on the clock of the file: a row means the pictures that a player shows between its
`start` and its `end`.

25 frames a second; the frames of `write_with_sound` begin later than the sound, or earlier.
"""

from __future__ import annotations

import csv
import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipSpec
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.checking.check_file import check_file
from mats_ds.data.prepare.checking.check_set import check_manifest
from mats_ds.data.prepare.copying.copies import make_copies
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.video.clock import clock_start
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import decode_frames, frame_numbers
from mats_ds.data.video.frames import read_frames, video_facts
from mats_ds.data.video.indexing import index_video
from mats_ds.visualization.excerpt import plan_excerpts
from tests.data.clip_files import KINDS, decode_in_order, write_clip, write_with_sound
from tests.video_files import SHARED

TICK = 0.0015  # Matroska and FLV round to milliseconds
SILENT = ("h264.avi", "mpeg4.avi", "mpeg4_b.avi", "mjpeg.avi", "h264.ts", "h264.mp4", "h264.flv", "vp9.webm")
# of an AAC encoder, whose first packet lies that much before the sound
PRIMING_SECONDS = 1024 / 16000


def numbers_of(path, first_seconds, last_seconds) -> list[int]:
    """The frames that a row of a manifest may use."""
    spec = ClipSpec(str(path), 0, 1, 1, 0.0, first_seconds=first_seconds, last_seconds=last_seconds)
    index = index_video(str(path))
    whole = [frame_numbers(dataclasses.replace(spec, start=start), index=index)[0] for start in (0.0, 1.0)]
    return [int(number) for number in whole]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(("pictures", "sound", "first"), [(2.0, 0.0, 2.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
def test_pictures_keep_their_distance_to_the_sound(tmp_path, suffix, pictures, sound, first):
    path = write_with_sound(tmp_path / f"a.{suffix}", pictures_begin_seconds=pictures, sound_begins_seconds=sound)
    seconds_F = video_facts(path).seconds
    np.testing.assert_allclose(seconds_F, first + np.arange(30) / 25, atol=TICK)
    assert video_facts(path).rate == pytest.approx(25)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "flv"])
def test_a_file_may_begin_at_any_time_stamp(tmp_path, suffix):
    """As transport streams of a broadcast and pieces of a long recording do."""
    path = write_with_sound(tmp_path / f"a.{suffix}", pictures_begin_seconds=12.0, sound_begins_seconds=11.0)
    with av.open(str(path)) as container:
        assert container.start_time > 10_000_000
    first = video_facts(path).seconds[0]
    assert first == pytest.approx(1.0, abs=TICK) or first == pytest.approx(1.0 + PRIMING_SECONDS, abs=TICK)


def test_a_row_means_the_pictures_that_a_player_shows(tmp_path):
    path = write_with_sound(tmp_path / "a.mkv", pictures_begin_seconds=2.0)
    assert numbers_of(path, 2.4, 2.8) == [10, 19]
    assert numbers_of(path, 0.0, 2.2) == [0, 4]
    assert numbers_of(path, None, None) == [0, 29]
    with pytest.raises(UnreadableVideo, match=r"no frame between 0\.5 s and 2 s; the first one is at 2\.000 s"):
        numbers_of(path, 0.5, 2.0)
    with pytest.raises(UnreadableVideo, match=r"no frame between 3\.5 s and its end; the last one is at 3\.160 s"):
        numbers_of(path, 3.5, None)


@pytest.mark.parametrize("name", SILENT)
def test_without_sound_the_first_frame_is_at_zero(tmp_path, name):
    [kind] = [kind for kind in KINDS if kind.name == name]
    try:
        path = write_clip(tmp_path / name, kind)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(str(error))
    np.testing.assert_allclose(index_video(str(path)).seconds(), np.arange(30) / 25, atol=TICK)


class Opened:
    """As much of a container as the clock asks for. Times in seconds."""

    def __init__(self, start_time: float | None, *begins: float | None):
        self.start_time = None if start_time is None else round(start_time * 1_000_000)
        third = Fraction(1, 90_000)
        self.streams = [Stream(None if begin is None else round(begin / third), third) for begin in begins]


@dataclasses.dataclass
class Stream:
    start_time: int | None
    time_base: Fraction


@pytest.mark.parametrize(
    ("container", "first_seconds", "start"),
    [
        (Opened(1.0, 1.0, 3.0), 3, 1),
        (Opened(1 / 3, 1 / 3, 3.0), 3, Fraction(1, 3)),  # exact, not in microseconds
        # pictures that are shown before the first packet's
        (Opened(1.0, 1.0), Fraction(24, 25), Fraction(24, 25)),
        (Opened(-0.064, -0.064, 0.0), 0, Fraction(-64, 1000)),
        (Opened(None, None), 5, 5),
        (Opened(0.5, None, 2.0), 2, Fraction(1, 2)),  # of no stream that is known
    ],
)
def test_zero_is_the_start_of_the_container_but_never_after_the_first_frame(container, first_seconds, start):
    assert clock_start(container, Fraction(first_seconds)) == start


def test_a_matroska_file_tells_when_its_pictures_end_and_not_how_long_they_last(tmp_path):
    path = write_with_sound(tmp_path / "a.mkv", pictures_begin_seconds=12.0, num_frames=100)
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["DURATION"].startswith("00:00:16")
    facts = check_file(str(path))
    assert (facts.num_frames, facts.warnings, facts.end_seconds) == (100, (), None)
    assert facts.first_frame_seconds == pytest.approx(12.0, abs=TICK) and facts.duration_seconds == pytest.approx(4.0, abs=TICK)
    whole = path.read_bytes()
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(whole[: len(whole) // 2])
    facts = check_file(str(torn))
    assert any("in its header" in warning for warning in facts.warnings)
    assert 12.0 + facts.duration_seconds - 0.04 < facts.end_seconds < 12.0 + facts.duration_seconds


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures_of_rows(manifest_path: Path) -> list[np.ndarray]:
    """First and last picture that each row may use."""
    manifest = read_manifest(manifest_path)
    rows = zip(manifest.paths, manifest.first_seconds_S, manifest.last_seconds_S, strict=True)
    found = []
    for path, first, last in rows:
        numbers = numbers_of(path, None if np.isnan(first) else float(first), None if np.isnan(last) else float(last))
        found.append(decode_frames(path, np.array(numbers)).astype(int))
    return found


@pytest.fixture
def late_videos(tmp_path) -> Path:
    """A manifest of a file whose pictures begin 2 s after the sound, and of one whose do not."""
    folder = tmp_path / "videos"
    write_with_sound(folder / "late.mkv", pictures_begin_seconds=2.0)
    write_with_sound(folder / "other.mp4", pictures_begin_seconds=0.0)
    rows = (
        "late.mkv,0,2.4,2.8",
        "late.mkv,1,1.0,2.2",
        "late.mkv,2,3.0,",
        "late.mkv,3,,2.6",
        "late.mkv,4,,",
        "other.mp4,5,0.4,0.8",
    )
    (folder / "list.csv").write_text("path,label,start,end\n" + "\n".join(rows) + "\n")
    return folder / "list.csv"


def test_a_row_means_the_same_pictures_in_a_copy(late_videos, tmp_path):
    before = pictures_of_rows(late_videos)
    summary = make_copies(read_manifest(late_videos), tmp_path / "out", settings=CopySettings(crf=6))
    rows = read_rows(summary.manifest)
    assert [(row["start"], row["end"]) for row in rows] == [
        ("0.4", "0.8"),
        ("0", "0.2"),
        ("1", ""),
        ("", "0.6"),
        ("", ""),
        ("0.4", "0.8"),
    ]
    for original, copied in zip(before, pictures_of_rows(summary.manifest), strict=True):
        assert np.abs(original - copied).mean() < 6 and original.shape == copied.shape


@pytest.mark.parametrize("reencode", [False, True])
def test_a_row_means_the_same_pictures_in_its_segment(late_videos, tmp_path, reencode):
    if reencode:  # keyframes too far apart to cut the file as it is
        write_with_sound(late_videos.parent / "late.mkv", pictures_begin_seconds=2.0, gop=250)
    late_videos.write_text("path,label,start,end\nlate.mkv,0,2.4,2.6\nlate.mkv,1,3.0,3.16\n")
    before = pictures_of_rows(late_videos)
    how = dict(segment_seconds=0.3, reencode=reencode, settings=CopySettings(crf=6, gop=8))
    summary = make_copies(read_manifest(late_videos), tmp_path / "out", **how)
    assert summary.num_pieces == 4 and not summary.failed
    after = pictures_of_rows(summary.manifest)
    labels = [row["label"] for row in read_rows(summary.manifest)]
    # A row that spans a cut becomes two: its first picture is the first one's, its last the last
    # one's.
    for label, original in enumerate(before):
        mine = [pictures for pictures, name in zip(after, labels, strict=True) if name == str(label)]
        assert np.abs(original[0] - mine[0][0]).mean() < 6 and np.abs(original[1] - mine[-1][1]).mean() < 6


def test_a_row_that_ends_before_the_first_picture_has_no_copy_and_is_named(late_videos, tmp_path):
    late_videos.write_text("path,label,start,end\nlate.mkv,0,0.5,1.5\nlate.mkv,1,2.0,2.5\n")
    summary = make_copies(read_manifest(late_videos), tmp_path / "out")
    assert [row["label"] for row in read_rows(summary.manifest)] == ["1"]
    [(path, reason)] = summary.failed.items()
    assert path.endswith("late.mkv") and "0.5 s" in reason and "1.5 s" in reason


def test_a_check_knows_where_the_pictures_lie(late_videos, tmp_path):
    late_videos.write_text("path,label,start,end\nlate.mkv,0,0.5,1.5\nlate.mkv,1,1.5,2.5\nlate.mkv,2,3.1,\nlate.mkv,3,3.2,\n")
    result = check_manifest(read_manifest(late_videos), out=tmp_path / "good.csv", quarantine=tmp_path / "bad.csv", num_workers=1)
    assert [row["label"] for row in read_rows(tmp_path / "good.csv")] == ["1", "2"]
    assert [row.label for row in result.bad] == [0, 3]
    assert "the first one is at 2.000 s" in result.bad[0].reason and "the last one is at 3.160 s" in result.bad[1].reason


def test_a_time_to_look_at_is_one_of_the_clock(late_videos):
    index = index_video(str(late_videos.parent / "late.mkv"))
    section = ClipSection(num_frames=4, stride=1, height=48, width=64, tubelet=(2, 16, 16))
    for start, number in ((2.4, 10), (0.0, 0), (1.9, 0)):
        specs = plan_excerpts(index, section=section, num_frames=4, num_clips=2, start_seconds=start)
        chosen = [frame_numbers(spec, index=index).tolist() for spec in specs]
        assert chosen == [list(range(first, first + 4)) for first in (number, number + 4)]


def test_pictures_two_seconds_after_the_sound():
    path = SHARED / "hard_inputs" / "video_2s_after_audio.mkv"
    if not path.exists():
        pytest.skip("no folder of hard inputs beside this checkout")
    facts = check_file(str(path))
    assert (facts.num_frames, facts.warnings, facts.end_seconds) == (75, (), None)
    coded = decode_in_order(path)
    first, last = numbers_of(path, 2.5, 3.5)
    assert (first, last) == (12, 36)  # at 2.503 s and 3.463 s
    np.testing.assert_array_equal(read_frames(path, [first])[0], coded[12])


def write_with_gaps(path: Path, numbers: list[int]) -> Path:
    """MPEG-4 with B-frames in AVI, which leaves the slots of other numbers empty: the frame before
    is shown for longer."""
    from tests.data.clip_files import picture

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.bit_rate = 48, 80, "yuv420p", 2_000_000
        packets = []
        for number in range(len(numbers)):
            packets += stream.encode(av.VideoFrame.from_ndarray(picture(number, height=48, width=80), format="rgb24"))
        packets += stream.encode()
        for packet, slot in zip(packets, numbers, strict=True):
            packet.pts = packet.dts = slot
            packet.time_base = Fraction(1, 25)
            container.mux(packet)
    return path


def test_frames_of_an_avi_file_with_b_frames_keep_their_slots_also_in_a_copy(tmp_path):
    slots = [*range(5), *range(9, 20), *range(40, 54)]
    path = write_with_gaps(tmp_path / "a.avi", slots)
    index = index_video(str(path))
    assert not index.trusts_pts
    np.testing.assert_allclose(index.seconds(), np.array(slots) / 25)
    assert numbers_of(path, 0.36, 1.6) == [5, 15]
    (tmp_path / "list.csv").write_text("path,label,start,end\na.avi,0,0.36,1.6\n")
    summary = make_copies(read_manifest(tmp_path / "list.csv"), tmp_path / "out")
    [copy] = read_manifest(summary.manifest).paths
    np.testing.assert_allclose(index_video(copy).seconds(), np.array(slots) / 25)
    assert numbers_of(copy, 0.36, 1.6) == [5, 15]
