"""Which packets show a picture: hidden references of VP8 and VP9, packed and empty packets of
MPEG-4."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.data.bitstream.mpeg4 import coded_pictures, presentation_order, time_increment_bits
from mats_ds.data.bitstream.pictures import PictureCounter
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import device_can_decode

# a P-picture at the same time that is not coded: what XviD writes
EMPTY_PACKET = b"\x00\x00\x01\xb6\x50\x00\x00"


def test_reference_only_packets_of_vp9_are_not_shown():
    """First bytes of VP9 packets: frame marker 10, profile bits, show_existing_frame, frame_type,
    show_frame."""

    def shows(first: int, last: int = 0, codec: str = "vp9") -> bool:
        [piece] = PictureCounter(codec, b"").split(bytes([first, 0, 0, last]), is_hidden=False)
        return piece.is_shown

    assert shows(0b10_00_0_0_1_0)  # shown key frame
    assert not shows(0b10_00_0_1_0_0)  # hidden inter frame
    assert shows(0b10_00_1_0_0_0)  # shows a frame decoded before
    assert shows(0b10_00_0_1_0_0, last=0b110_00_001)  # superframe
    assert not shows(0b10_11_0_0_1_0)  # profile 3 has a reserved bit: frame_type 1, show_frame 0
    assert shows(0b10_11_0_0_1_1)
    assert shows(0b0001_0000, codec="vp8") and not shows(0b0000_0000, codec="vp8")
    assert shows(0, codec="h264")


def test_pictures_are_shown_in_the_order_of_their_kinds():
    intra, predicted, both = 0, 1, 2
    assert presentation_order([intra, predicted, both, both, predicted, both]).tolist() == [0, 3, 1, 2, 5, 4]
    # nothing to refer to
    assert presentation_order([intra, both, predicted]).tolist() == [0, -1, 1]
    assert presentation_order([intra, None, predicted, predicted]).tolist() == [0, -1, 1, 2]


def packets_of(path: Path) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """(extradata, [(bytes, is a keyframe)]) of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata)
        return extradata, [(bytes(packet), packet.is_keyframe) for packet in container.demux(stream) if packet.size]


def write_packets(path: Path, like: Path, extradata: bytes, packets: list[tuple[bytes, bool]]) -> str:
    """An AVI of these packets, one a frame."""
    with av.open(str(like)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.codec_context.extradata = extradata
        for number, (data, is_keyframe) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 20)
            packet.pts = packet.dts = number
            packet.is_keyframe = is_keyframe
            target.mux(packet)
    return str(path)


@pytest.fixture
def with_b(write_video, tmp_path) -> Path:
    return write_video(tmp_path / "plain.avi", codec="mpeg4", b_frames=2, num_frames=31)


def pack(extradata: bytes, packets: list[tuple[bytes, bool]]) -> list[tuple[bytes, bool]]:
    """As encoders of the DivX family do: the first B-picture of a group beside its reference, an
    empty packet at its end."""
    bits = time_increment_bits(extradata)
    kinds = [coded_pictures(data, time_bits=bits)[0][1] for data, _ in packets]
    packed, place = [], 0
    while place < len(packets):
        data, is_keyframe = packets[place]
        group = place + 1
        while group < len(packets) and kinds[group] == 2:
            group += 1
        following = packets[place + 1 : group]
        if following:
            packed += [(data + following[0][0], is_keyframe), *following[1:], (EMPTY_PACKET, False)]
        else:
            packed.append((data, is_keyframe))
        place = group
    return packed


@pytest.mark.parametrize("lose_last", [False, True])
def test_packed_pictures_are_counted_and_found(with_b, tmp_path, read_numbers, lose_last):
    extradata, packets = packets_of(with_b)
    marked = extradata.replace(b"Lavc", b"DivX503b1393p\0Lavc", 1) if b"Lavc" in extradata else extradata
    packed = pack(extradata, packets)
    assert len(packed) == len(packets) and any(data == EMPTY_PACKET for data, _ in packed)
    while lose_last and packed[-1][0] != EMPTY_PACKET:
        packed.pop()
    path = write_packets(tmp_path / "packed.avi", with_b, marked, packed[: -1 if lose_last else None])
    index = index_video(path)
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert index.num_frames == len(frames)
    assert not index.plain and not device_can_decode(index)
    assert index.packets is not None
    numbers = random.Random(0).sample(range(index.num_frames), 8)
    assert read_numbers(decode_frames(path, np.array(numbers))) == read_numbers(np.stack([frames[number] for number in numbers]))
    assert read_numbers(decode_frames(path, np.array([index.num_frames - 1]))) == read_numbers(frames[-1][None])


def test_packets_without_a_picture_keep_a_file_from_the_device(write_video, tmp_path, read_numbers):
    plain = write_video(tmp_path / "plain.avi", codec="mpeg4", num_frames=20)
    assert device_can_decode(index_video(str(plain)))
    extradata, packets = packets_of(plain)
    path = write_packets(tmp_path / "gaps.avi", plain, extradata, [*packets[:7], (EMPTY_PACKET, False), *packets[7:]])
    index = index_video(path)
    assert index.num_frames == 20 and not index.plain and not device_can_decode(index)
    assert read_numbers(decode_frames(path, np.array([3, 6, 7, 19]))) == [3, 6, 7, 19]


def test_headers_that_cannot_be_read_keep_a_file_from_the_device():
    counter = PictureCounter("mpeg4", b"")
    assert len(counter.split(b"\x00\x00\x01\xb6\x10\x80", is_hidden=False)) == 1
    assert not counter.is_certain and counter.order() is None
    assert time_increment_bits(b"\x00\x00\x01\xb0\xf5") is None


@pytest.mark.slow
def test_real_files_of_the_divx_family_are_read_to_their_last_frame(real_videos):
    num_packed = 0
    for path in sorted((real_videos / "ucf101_5class").glob("*/*.avi")):
        index = index_video(str(path))
        assert index.packets is not None, path.name
        if index.plain:
            assert device_can_decode(index)
            continue
        num_packed += 1
        assert not device_can_decode(index)
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert index.num_frames == len(frames), path.name
    assert num_packed >= 10
