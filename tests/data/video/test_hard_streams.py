"""Streams whose containers mislead: every frame by number is that of a decoding from the start,
however it is asked for.

Wrong key marks, beginnings in the middle of a group of pictures, open groups, recovery points that
never recover, program and transport streams, fields, spliced and torn files. All are written here,
with PyAV and by changing bytes.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

import mats_ds
from mats_ds.core.clips import ClipSpec
from mats_ds.data.prepare.checking.check_file import check_file
from mats_ds.data.prepare.copying.transcode import transcode_file
from mats_ds.data.video import indexing
from mats_ds.data.video.containers import READ_ERRORS, UnreadableVideo, open_video
from mats_ds.data.video.decode import decode_frames, frame_numbers, visit_frames
from mats_ds.data.video.index import IndexCache, VideoIndex
from mats_ds.data.video.indexing import index_video

HEIGHT, WIDTH = 48, 80
TS_PACKET = 188
STREAMS = {  # name: (codec, options, GOP, B-frames)
    "closed.mp4": ("libx264", {}, 20, 2),
    "closed.ts": ("libx264", {}, 20, 2),
    "closed.flv": ("libx264", {}, 20, 2),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1"}, 20, 3),
    "open.ts": ("libx264", {"x264-params": "open-gop=1"}, 20, 3),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1"}, 20, 0),
    "refresh.ts": ("libx264", {"x264-params": "intra-refresh=1"}, 20, 0),
    "mbaff.ts": ("libx264", {"x264-params": "tff=1"}, 20, 2),
    "elementary.h264": ("libx264", {}, 20, 2),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none:pools=1:open-gop=1:keyint=20"}, 20, 3),
    "hevc.ts": ("libx265", {"x265-params": "log-level=none:pools=1:open-gop=1:keyint=20"}, 20, 3),
    "mpeg1.mpg": ("mpeg1video", {}, 12, 2),
    "mpeg2.mpg": ("mpeg2video", {}, 15, 2),
    "mpeg2.ts": ("mpeg2video", {}, 15, 2),
    "mpeg2.mkv": ("mpeg2video", {}, 15, 2),
    "elementary.m2v": ("mpeg2video", {}, 15, 2),
    "interlaced.ts": ("mpeg2video", {"flags": "+ilme+ildct", "top": "1"}, 15, 2),
    "mpeg4.avi": ("mpeg4", {}, 25, 0),
    "mpeg4.mp4": ("mpeg4", {}, 25, 2),
    "ms.avi": ("msmpeg4v2", {}, 25, 0),
    "h263.3gp": ("h263", {}, 25, 0),
    "flash.flv": ("flv", {}, 25, 0),
    "windows.wmv": ("wmv2", {}, 25, 0),
    "vp8.webm": ("libvpx", {"deadline": "realtime", "b": "300k"}, 20, 0),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "300k"}, 20, 0),
    "ffv1.mkv": ("ffv1", {}, 12, 0),
    "motion.avi": ("mjpeg", {}, 1, 0),
}
NUM_FRAMES = 75


def texture(number: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: moving stripes and noise, so that a picture decoded from wrong references
    differs."""
    rows, columns = np.mgrid[:height, :width]
    moving = 90 * np.sin((columns + 3 * number) / 5) + 90 * np.sin((rows - 2 * number) / 7)
    noise = np.random.default_rng(number).integers(-12, 12, (height, width))
    grey = np.clip(128 + 0.6 * moving + noise, 0, 255).astype(np.uint8)
    return np.stack([grey, np.roll(grey, number, 1), 255 - grey], -1)


@pytest.fixture(scope="module")
def stream_file(tmp_path_factory):
    """`stream_file(name)`: one of STREAMS, written once; skips where this PyAV lacks the
    encoder."""
    written: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in written:
            codec, options, gop, b_frames = STREAMS[name]
            path = tmp_path_factory.mktemp("streams") / name
            height, width = (96, 128) if codec == "h263" else (HEIGHT, WIDTH)
            options = {"preset": "ultrafast", "crf": "28", **options} if codec in ("libx264", "libx265") else dict(options)
            options["bf"] = str(b_frames)
            try:
                with av.open(str(path), "w") as container:
                    stream = container.add_stream(codec, rate=25, options=options)
                    stream.width, stream.height = width, height
                    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                    stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
                    stream.codec_context.bit_rate = 400_000
                    for number in range(NUM_FRAMES):
                        picture = texture(number, height, width)
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                    container.mux(stream.encode())
            except (av.error.FFmpegError, ValueError) as error:
                pytest.skip(f"this PyAV cannot write {name}: {error}")
            written[name] = path
        return written[name]

    return get


def checksum(frame: av.VideoFrame) -> int:
    return zlib.crc32(np.ascontiguousarray(frame.to_ndarray(format="rgb24")))


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    """All frames that a decoding from the start shows, packets that fail passed over."""
    container, stream = open_video(str(path))
    with container:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except READ_ERRORS:
                continue
            yield from frames


def sequential(path: Path) -> tuple[list[int], list[int | None]]:
    """Checksums and time stamps of these frames."""
    shown = [(checksum(frame), frame.pts) for frame in decoded(path)]
    return [check for check, _ in shown], [stamp for _, stamp in shown]


def read(path: Path, numbers: list[int], index: VideoIndex) -> list[int]:
    taken: dict[int, int] = {}
    visit_frames(str(path), np.array(numbers), index=index, take=lambda number, frame: taken.update({number: checksum(frame)}))
    return [taken[number] for number in numbers]


def assert_reads_as_decoded(path: Path) -> VideoIndex:
    """Alone (first asked for, and not), in order, backwards, in clips and at random."""
    shown, stamps = sequential(path)
    index = index_video(str(path))
    count = index.num_frames
    assert count == len(shown), (path.name, count, len(shown), index.doubt)
    draw = random.Random(path.name)
    requests = [[number] for number in sorted(draw.sample(range(count), min(count, 12)))]
    requests += [list(range(count)), list(range(count))[::-1], [count - 1], [0]]
    requests += [[min(count - 1, begin + 3 * step) for step in range(8)] for begin in draw.sample(range(count), min(count, 4))]
    requests += [draw.choices(range(count), k=5) for _ in range(3)]
    for numbers in requests:
        assert read(path, numbers, index) == [shown[number] for number in numbers], (path.name, numbers, index.doubt)
    if None not in stamps and stamps == sorted(set(stamps)):
        assert index.pts_F.tolist() == stamps if index.trusts_pts else not index.doubt
    return index


def rewrite(source: Path, target: Path, *, keep=lambda number: True, change=lambda packet: None) -> Path:
    """The same packets in another container, those that `keep` names, each changed."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and keep(number):
                packet.stream = stream
                change(packet)
                new.mux(packet)
    return target


def cut_front(source: Path, target: Path, *, share: float, unit: int, head: int) -> Path:
    """A recording that starts when it starts: a share of the file is missing behind its first
    `head` units."""
    data = source.read_bytes()
    first = max(head + 1, int(len(data) * share) // unit)
    target.write_bytes(data[: head * unit] + data[first * unit :])
    return target


@pytest.mark.parametrize("name", STREAMS)
def test_every_frame_of_a_sound_stream(stream_file, name):
    index = assert_reads_as_decoded(stream_file(name))
    assert index.num_frames == NUM_FRAMES and index.num_silent == 0


QUICK = (
    "closed.mp4",
    "closed.ts",
    "closed.flv",
    "open.mp4",
    "hevc.mp4",
    "mpeg2.mpg",
    "mpeg4.avi",
    "vp8.webm",
    "vp9.webm",
    "motion.avi",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_sound_stream_is_indexed_without_decoding_it(stream_file, monkeypatch, name):
    monkeypatch.setattr(indexing, "_CACHE", IndexCache(1 << 20))
    monkeypatch.setattr(indexing, "record", lambda *_, **__: pytest.fail("decoded to be indexed"))
    index = index_video(str(stream_file(name)))
    assert index.num_frames == NUM_FRAMES and index.doubt == "" and index.is_sound_F is None


def test_key_pictures_are_those_of_the_headers(stream_file, tmp_path):
    """Every fourth picture of one encoder is a key picture; intra refresh has one, though its
    container marks more."""
    marked = rewrite(stream_file("closed.mp4"), tmp_path / "a.mkv", change=lambda packet: setattr(packet, "is_keyframe", True))
    index = index_video(str(marked))
    assert np.searchsorted(index.pts_F, index.keyframe_pts_K).tolist() == [0, 20, 40, 60]
    assert len(index_video(str(stream_file("refresh.mp4"))).keyframe_pts_K) == 1
    # these recovery points promise exact pictures
    assert len(index_video(str(stream_file("open.mp4"))).keyframe_pts_K) >= 3


@pytest.mark.parametrize("name", ["closed.mp4", "open.mp4", "refresh.mp4", "hevc.mp4", "mpeg4.mp4", "h263.3gp"])
def test_without_a_list_of_sync_samples(stream_file, tmp_path, name):
    path = tmp_path / name
    data = stream_file(name).read_bytes()
    assert b"stss" in data
    path.write_bytes(data.replace(b"stss", b"free"))
    assert_reads_as_decoded(path)
    assert check_file(str(path)).gop == check_file(str(stream_file(name))).gop > 10


@pytest.mark.parametrize("name", ["closed.mp4", "hevc.mp4", "mpeg4.mp4", "h263.3gp"])
def test_with_sync_samples_that_are_none(stream_file, tmp_path, name):
    data = bytearray(stream_file(name).read_bytes())
    place = data.index(b"stss") + 8
    [count] = struct.unpack_from(">I", data, place)
    for entry in range(1, count):  # the first one stays: a list of two beginnings is no list
        [sample] = struct.unpack_from(">I", data, place + 4 + 4 * entry)
        struct.pack_into(">I", data, place + 4 + 4 * entry, sample + 3)
    path = tmp_path / name
    path.write_bytes(data)
    assert_reads_as_decoded(path)


@pytest.mark.parametrize("name", ["mpeg4.avi", "ms.avi"])
def test_an_avi_index_that_marks_every_frame(stream_file, tmp_path, name):
    data = bytearray(stream_file(name).read_bytes())
    place = data.rindex(b"idx1")
    [size] = struct.unpack_from("<I", data, place + 4)
    for entry in range(place + 8, place + 8 + size, 16):
        data[entry + 4] |= 0x10  # AVIIF_KEYFRAME
    path = tmp_path / name
    path.write_bytes(data)
    assert_reads_as_decoded(path)
    assert check_file(str(path)).gop == 25


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("closed.mp4", "a.mkv"),
        ("closed.flv", "a.flv"),
        ("hevc.mp4", "a.mkv"),
        ("mpeg2.mkv", "a.mkv"),
        ("mpeg4.mp4", "a.mkv"),
        ("vp8.webm", "a.webm"),
        ("vp9.webm", "a.webm"),
        ("ffv1.mkv", "a.mkv"),
        ("flash.flv", "a.flv"),
    ],
)
@pytest.mark.parametrize("mark", [True, False])
def test_key_marks_on_every_packet_or_none(stream_file, tmp_path, name, target, mark):
    path = rewrite(stream_file(name), tmp_path / target, change=lambda packet: setattr(packet, "is_keyframe", mark))
    assert_reads_as_decoded(path)


@pytest.mark.parametrize("name", ["closed.ts", "open.ts", "refresh.ts", "mbaff.ts", "hevc.ts", "mpeg2.ts", "interlaced.ts"])
def test_a_transport_stream_that_begins_in_a_group_of_pictures(stream_file, tmp_path, name):
    path = cut_front(stream_file(name), tmp_path / name, share=0.17, unit=TS_PACKET, head=3)
    index = assert_reads_as_decoded(path)
    assert index.num_frames < NUM_FRAMES and index.doubt
    facts = check_file(str(path))
    assert (facts.num_frames, facts.start_seconds, facts.end_seconds) == (index.num_frames, None, None)


@pytest.mark.parametrize("name", ["mpeg1.mpg", "mpeg2.mpg", "elementary.m2v", "elementary.h264"])
def test_other_streams_that_begin_in_a_group_of_pictures(stream_file, tmp_path, name):
    path = cut_front(stream_file(name), tmp_path / name, share=0.17, unit=1, head=0)
    assert assert_reads_as_decoded(path).num_frames < NUM_FRAMES


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("closed.mp4", "a.mkv"),
        ("open.mp4", "a.mp4"),
        ("refresh.mp4", "a.mkv"),
        ("hevc.mp4", "a.mp4"),
        ("mpeg2.mkv", "a.mkv"),
        ("mpeg4.mp4", "a.mkv"),
        ("vp8.webm", "a.webm"),
    ],
)
@pytest.mark.parametrize("lost", [7, "to the second key"])
def test_first_packets_that_are_missing(stream_file, tmp_path, name, target, lost):
    """From the middle of a group, and from a key picture whose leading pictures need the group
    before."""
    with av.open(str(stream_file(name))) as container:
        marks = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    first = 7 if lost == 7 else next(number for number, mark in enumerate(marks) if mark and number > 0)
    path = rewrite(stream_file(name), tmp_path / target, keep=lambda number: number >= first)
    assert_reads_as_decoded(path)


def test_check_transcode_and_both_samplings_agree_on_what_comes(stream_file, tmp_path):
    path = cut_front(stream_file("closed.ts"), tmp_path / "a.ts", share=0.17, unit=TS_PACKET, head=3)
    shown, stamps = sequential(path)
    index = index_video(str(path))
    facts = check_file(str(path))
    assert facts.num_frames == len(shown) and index.num_silent > 0
    assert any(str(index.num_silent) in said and "before the first frame" in said for said in facts.warnings)
    done = transcode_file(path, tmp_path / "copy.mp4")
    assert done.num_frames == len(shown) and not done.problem
    seconds = (np.array(stamps) - stamps[0]) * float(index.time_base)
    copied = index_video(done.target).seconds()
    np.testing.assert_allclose(copied - copied[0], seconds, atol=1e-6)
    for sampling in ("dense", "uniform"):
        spec = ClipSpec(path=str(path), sample=0, num_frames=8, stride=4, start=1.0, sampling=sampling)
        numbers = frame_numbers(spec, index=index)
        assert numbers.max() < len(shown)
        assert read(path, numbers.tolist(), index) == [shown[number] for number in numbers]


@pytest.mark.parametrize("name", ["closed.ts", "hevc.ts", "mpeg2.ts", "mpeg2.mpg", "elementary.h264"])
def test_two_recordings_in_one_file(stream_file, tmp_path, name):
    """The second begins its times anew."""
    data = stream_file(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data + data)
    assert assert_reads_as_decoded(path).num_frames >= 2 * NUM_FRAMES - 4


@pytest.mark.parametrize("name", ["closed.mp4", "hevc.mp4", "mpeg2.mkv", "mpeg4.mp4"])
def test_packets_that_are_missing_on_the_way(stream_file, tmp_path, name):
    """A decoder may then show fewer frames than there are packets, and others after a seek."""
    path = rewrite(stream_file(name), tmp_path / "a.mkv", keep=lambda number: number not in (30, 31, 32))
    assert assert_reads_as_decoded(path).num_frames <= NUM_FRAMES - 3


@pytest.mark.parametrize("name", ["closed.ts", "mpeg2.ts", "hevc.ts"])
def test_a_hole_in_a_transport_stream(stream_file, tmp_path, name):
    """Damaged frames keep their number and are refused; all others are those of a decoding from the
    start."""
    data = stream_file(name).read_bytes()
    first = len(data) // TS_PACKET * 2 // 5
    path = tmp_path / name
    path.write_bytes(data[: first * TS_PACKET] + data[(first + 5) * TS_PACKET :])
    shown, _ = sequential(path)
    index = index_video(str(path))
    assert index.doubt and index.num_frames == len(shown)
    sound = np.flatnonzero(index.is_sound_F).tolist()
    assert len(sound) >= 0.6 * NUM_FRAMES and read(path, sound, index) == [shown[number] for number in sound]
    assert read(path, [sound[-1]], index) == [shown[sound[-1]]]
    for damaged in np.flatnonzero(~index.is_sound_F)[:2].tolist():
        with pytest.raises(UnreadableVideo, match=str(damaged)):
            read(path, [damaged], index)
    # ... but looked at they can be, as decoding shows them
    assert mats_ds.video_facts(path).damaged_frames.tolist() == np.flatnonzero(~index.is_sound_F).tolist()
    looked_at = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded(path)])
    numbers = [len(shown) - 1, *np.flatnonzero(~index.is_sound_F).tolist(), sound[0]]
    np.testing.assert_array_equal(mats_ds.read_frames(path, numbers), looked_at[numbers])


@pytest.mark.parametrize(("name", "share"), [("closed.ts", 0.83), ("mpeg2.mpg", 0.83), ("mpeg2.ts", 0.83)])
def test_the_frames_before_a_torn_end(stream_file, tmp_path, name, share):
    data = stream_file(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    shown, _ = sequential(path)
    index = index_video(str(path))
    assert len(shown) - 1 <= index.num_frames <= len(shown)
    whole = list(range(index.num_frames - 2))
    assert read(path, whole, index) == shown[: len(whole)]


@pytest.mark.parametrize("name", ["closed.mp4", "mpeg4.mp4", "hevc.mp4"])
def test_times_that_do_not_follow_the_pictures(stream_file, tmp_path, name):
    """Without composition times a file says that pictures are shown in the order of decoding;
    decoders know better."""
    data = stream_file(name).read_bytes()
    assert b"ctts" in data
    path = tmp_path / name
    path.write_bytes(data.replace(b"ctts", b"free"))
    assert assert_reads_as_decoded(path).doubt


def test_a_transport_stream_is_landed_in_without_decoding_from_its_start(stream_file, monkeypatch):
    from mats_ds.data.video import decode

    path = stream_file("closed.ts")
    index = index_video(str(path))
    fed = []
    original = decode.open_video

    def counting(*given, **options):
        container, stream = original(*given, **options)
        fed.append(stream)
        return container, stream

    monkeypatch.setattr(decode, "open_video", counting)
    monkeypatch.setattr(decode, "_decode_from_start", lambda *_: pytest.fail("decoded from the start"))
    shown, _ = sequential(path)
    assert read(path, [45, 62], index) == [shown[45], shown[62]]
    assert len(fed) == 1 and index.seek_table.packet_K.tolist() == [-1, 20, 40, 60]


def test_a_key_packet_that_is_not_where_it_was_is_found_by_counting(stream_file, monkeypatch):
    import dataclasses

    path = stream_file("mpeg2.mpg")
    shown, _ = sequential(path)
    index = index_video(str(path))
    table = dataclasses.replace(index.seek_table, checksum_K=index.seek_table.checksum_K + 1)
    assert read(path, [40, 70], dataclasses.replace(index, seek_table=table)) == [shown[40], shown[70]]


def test_interlaced_frames_come_woven_and_are_said(stream_file):
    for name in ("interlaced.ts", "mbaff.ts"):
        index = index_video(str(stream_file(name)))
        assert index.is_interlaced and index.num_frames == NUM_FRAMES and not index.plain
        facts = check_file(str(stream_file(name)))
        assert any("interlaced" in said for said in facts.warnings)
        assert facts.cpu_reason == ("interlaced" if name == "mbaff.ts" else "codec mpeg2video")
        assert decode_frames(str(stream_file(name)), np.array([3])).shape == (1, HEIGHT, WIDTH, 3)
    assert not index_video(str(stream_file("closed.ts"))).is_interlaced


def test_a_file_none_of_whose_packets_decode(stream_file, tmp_path):
    data = stream_file("refresh.ts").read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(data[: 3 * TS_PACKET] + data[len(data) * 9 // 10 // TS_PACKET * TS_PACKET :])
    with pytest.raises(UnreadableVideo):
        index_video(str(path))


@pytest.mark.slow
def test_real_and_hard_files_read_as_decoded(real_videos):
    paths = sorted((real_videos.parent / "hard_inputs").glob("*.*"))
    paths += sorted(path for path in (real_videos / "real").rglob("*.*") if path.is_file())
    kinds = (".mp4", ".ts", ".mpg", ".mkv", ".avi", ".mov", ".MOV", ".webm", ".3gp")
    # see below
    paths = [path for path in paths if path.suffix in kinds and path.name != "corrupted_tail.mp4"]
    wrong, num_read = [], 0
    for path in paths:
        try:
            index = index_video(str(path))
        except UnreadableVideo:
            continue
        if index.height * index.width * index.num_frames > 1280 * 720 * 150:
            continue
        shown, _ = sequential(path)
        num_read += 1
        draw = random.Random(path.name)
        requests = [[draw.randrange(len(shown))], [len(shown) - 1], sorted(draw.choices(range(len(shown)), k=6))]
        if index.num_frames != len(shown):
            wrong.append((path.name, index.num_frames, len(shown)))
        elif any(read(path, numbers, index) != [shown[number] for number in numbers] for numbers in requests):
            wrong.append((path.name, "another picture"))
    assert num_read > 60 and not wrong


@pytest.mark.slow
def test_a_real_file_with_a_damaged_packet_is_shown_as_decoded(real_videos):
    path = real_videos / "real" / "edge" / "corrupted_tail.mp4"
    facts, numbers = mats_ds.video_facts(path), [40, 28, 48, 0]
    shown = dict(enumerate(decoded(path)))
    assert (facts.num_frames, facts.damaged_frames.tolist()) == (len(shown), list(range(28, 49)))
    expected = np.stack([shown[number].to_ndarray(format="rgb24") for number in numbers])
    np.testing.assert_array_equal(mats_ds.read_frames(path, numbers), expected)
    with pytest.raises(UnreadableVideo, match="28"):  # training and `check` take what lies before
        decode_frames(str(path), np.array([28]))
