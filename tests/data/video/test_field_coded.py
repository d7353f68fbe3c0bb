"""Field-coded (PAFF) H.264: two packets make one frame, woven as it is coded. The stream is written
here bit by bit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.data.prepare.checking.check_file import check_file
from mats_ds.data.prepare.copying.transcode import transcode_file
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.nvdec_support import device_can_decode
from tests.data.video.test_hard_streams import assert_reads_as_decoded, sequential

COLUMNS, FIELD_ROWS = 3, 2  # macroblocks: 48 x 64 pixels
NUM_FRAMES, GOP = 70, 10
MACROBLOCK_BYTES = 256 + 2 * 64


class BitWriter:
    """Collects bits. Source of all syntax here: ITU-T H.264, section 7.3."""

    def __init__(self) -> None:
        self.digits = ""

    def write(self, value: int, count: int) -> None:
        self.digits += f"{value:0{count}b}" if count else ""

    def golomb(self, *values: int) -> None:
        for value in values:
            digits = f"{value + 1:b}"
            self.digits += "0" * (len(digits) - 1) + digits

    def unit(self, header: int) -> bytes:
        """A NAL unit with its start code."""
        digits = self.digits + "1"
        digits += "0" * (-len(digits) % 8)
        data = bytes([header]) + int(digits, 2).to_bytes(len(digits) // 8, "big")
        escaped, zeros = bytearray(), 0
        for byte in data:
            if zeros >= 2 and byte <= 3:
                escaped.append(3)
                zeros = 0
            escaped.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\x00\x00\x00\x01" + bytes(escaped)


def parameters() -> bytes:
    sequence = BitWriter()
    sequence.write(77 << 16 | 30, 24)  # main profile, level 3
    # number, frame_num 4 bits, order type 0 of 8 bits, two reference frames
    sequence.golomb(0, 0, 0, 4, 2)
    sequence.write(0, 1)
    sequence.golomb(COLUMNS - 1, FIELD_ROWS - 1)
    # not frames only, not adaptive, direct 8 x 8, no cropping, no usability information
    sequence.write(0b001_00, 5)
    pictures = BitWriter()
    pictures.golomb(0, 0)
    pictures.write(0, 2)
    pictures.golomb(0, 0, 0)
    pictures.write(0, 3)
    pictures.golomb(0, 0, 0)
    pictures.write(0b100, 3)  # the deblocking filter is told
    return sequence.unit(0x67) + pictures.unit(0x68)


def field(number: int, *, bottom: bool) -> bytes:
    """Every GOP frames an IDR picture; every third frame repeats the one before (P-slices of
    skipped macroblocks)."""
    place = number % GOP
    is_idr, is_repeat = place == 0 and not bottom, place % 3 == 2
    slice_ = BitWriter()
    slice_.golomb(0, 5 if is_repeat else 7, 0)
    slice_.write(place, 4)
    slice_.write(2 | bottom, 2)
    if is_idr:
        slice_.golomb(number // GOP % 2)
    slice_.write(2 * place + bottom, 8)
    if is_repeat:
        slice_.write(0, 2)
    slice_.write(0, 2 if is_idr else 1)
    slice_.golomb(0, 1)  # quantiser, no deblocking
    if is_repeat:
        slice_.golomb(COLUMNS * FIELD_ROWS)
    else:
        draw = np.random.default_rng(2 * number + bottom)
        for _ in range(COLUMNS * FIELD_ROWS):
            slice_.golomb(25)  # I_PCM
            slice_.write(0, -len(slice_.digits) % 8)
            level = int(draw.integers(40, 200))
            slice_.digits += "".join(f"{int(value):08b}" for value in draw.integers(level, level + 40, MACROBLOCK_BYTES))
    delimiter = b"\x00\x00\x00\x01\x09\xf0"
    return delimiter + (parameters() if is_idr else b"") + slice_.unit(0x65 if is_idr else 0x61)


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fields") / "fields.h264"
    path.write_bytes(b"".join(field(number, bottom=bottom) for number in range(NUM_FRAMES) for bottom in (False, True)))
    return path


def pack(fields: Path, target: Path, *, first: int = 0) -> Path:
    """One packet a field, from field `first` on, timed at 50 fields a second."""
    units = [field(number, bottom=bottom) for number in range(NUM_FRAMES) for bottom in (False, True)]
    with av.open(str(fields)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, data in enumerate(units[first:], first):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = number
            packet.is_keyframe = number % (2 * GOP) == 0
            new.mux(packet)
    return target


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4", "fields.h264"])
def test_two_fields_are_one_frame(fields, tmp_path, name):
    path = fields if name.endswith(".h264") else pack(fields, tmp_path / name)
    index = assert_reads_as_decoded(path)
    assert index.num_frames == NUM_FRAMES and (index.height, index.width) == (64, 48)
    assert index.is_interlaced and "fields" in index.doubt
    assert not index.plain and not device_can_decode(index)
    if name == "a.ts":
        np.testing.assert_allclose(index.seconds() - index.seconds()[0], np.arange(NUM_FRAMES) / 25, atol=1e-6)


def test_fields_come_woven(fields, tmp_path):
    """The even rows are the top field, the odd ones the bottom field: each of its own noise around
    its own level."""
    path = pack(fields, tmp_path / "a.ts")
    [picture] = decode_frames(str(path), np.array([4]))
    for bottom in (0, 1):
        draw = np.random.default_rng(2 * 4 + bottom)
        level = int(draw.integers(40, 200))
        luma = draw.integers(level, level + 40, MACROBLOCK_BYTES)[:256].reshape(16, 16)
        rows = picture[bottom : 2 * 16 : 2, :16].mean(-1)
        assert np.corrcoef(rows.ravel(), luma.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("first", [1, 7, 12])
def test_a_recording_that_begins_between_fields(fields, tmp_path, first):
    path = pack(fields, tmp_path / "a.ts", first=first)
    index = assert_reads_as_decoded(path)
    assert index.num_frames <= NUM_FRAMES - first // 2
    facts = check_file(str(path))
    assert facts.num_frames == index.num_frames and any("interlaced" in said for said in facts.warnings)


def test_a_copy_has_one_picture_a_frame(fields, tmp_path):
    path = pack(fields, tmp_path / "a.ts")
    done = transcode_file(path, tmp_path / "copy.mp4")
    assert done.num_frames == len(sequential(path)[0]) == NUM_FRAMES and not done.problem
