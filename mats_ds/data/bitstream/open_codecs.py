"""VP8, VP9 and AV1 packets -> CodedPicture: whether a packet shows one frame, and whether decoding
can begin with it.

Packets are shown in the order in which they come; some only serve as reference. Sources: RFC 6386
section 9.1 (VP8); VP9 bitstream specification, section 6.2 and annex B (superframes); AV1 bitstream
specification, sections 5.3 to 5.5, 5.9.2.
"""

from __future__ import annotations

import functools

from mats_ds.data.bitstream.bits import Bits, BrokenHeader
from mats_ds.data.bitstream.coded_picture import CodedPicture

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # obu_type
KEY_FRAME = 0
SIZE_CHANGES = "pictures of several sizes"
VP9_HEADER_BYTES = 13  # more than the fields that are read here take


class Vp8Reader:
    """Reads the packets of one stream."""

    num_reorder = 0

    def __init__(self, extradata: bytes) -> None:
        self._count = 0
        self._sizes: set[bytes] = set()

    @property
    def device_doubt(self) -> str:
        return SIZE_CHANGES if len(self._sizes) > 1 else ""

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet; `frame_type` 0 is a key frame, which has the size."""
        self._count += 1
        is_key = not data[0] & 1
        if is_key:
            self._sizes.add(data[6:10])
        return CodedPicture(0, self._count, is_key=is_key, is_shown=bool(data[0] >> 4 & 1))


class Vp9Reader:
    """Reads the packets of one stream."""

    num_reorder = 0

    def __init__(self, extradata: bytes) -> None:
        self._count = 0
        self._sizes = {0}

    @property
    def device_doubt(self) -> str:
        return SIZE_CHANGES if len(self._sizes) > 2 else ""

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet. Raises BrokenHeader where it shows several, or is none."""
        begins = _vp9_frames(data)
        frames = [_read_vp9_frame(data[begin : begin + 1]) for begin in begins]
        for begin in begins:
            self._sizes.add(_vp9_size(data[begin : begin + VP9_HEADER_BYTES]))
        num_shown = sum(is_shown for is_shown, _ in frames)
        if num_shown > 1:
            raise BrokenHeader("a packet shows several pictures")
        self._count += 1
        return CodedPicture(0, self._count, is_key=bool(frames) and frames[0][1], is_shown=num_shown == 1)


def _vp9_frames(data: bytes) -> list[int]:
    """Offsets of the frames of a packet: a superframe ends in an index of their sizes."""
    marker = data[-1]
    if marker >> 5 != 0b110:
        return [0]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = data[-2 - count * width :]
    if index[:1] != data[-1:]:
        return [0]
    begins, offset = [], 0
    for number in range(count):
        size = int.from_bytes(index[1 + number * width : 1 + (number + 1) * width], "little")
        if size:
            begins.append(offset)
        offset += size
    if offset > len(data):
        raise BrokenHeader("a superframe is longer than its packet")
    return begins


@functools.cache
def _read_vp9_frame(header: bytes) -> tuple[bool, bool]:
    """(is shown, is a key frame), from the first byte of a frame."""
    bits = Bits(header)
    if bits.read(2) != 2:
        raise BrokenHeader("no VP9 frame")
    if bits.read(2) == 3:  # profile 3
        bits.skip(1)
    if bits.read(1):  # show_existing_frame
        return True, False
    is_key = bits.read(1) == KEY_FRAME
    return bool(bits.read(1)), is_key


def _vp9_size(frame: bytes) -> int:
    """The size field of a frame, twice 16 bits; 0 where it takes over that of another frame, is
    such a frame shown again, or has a profile that no device is given.

    A key frame has 8 bits, a sync code of 24, four of colour, then the size. Any other one has
    whether it is intra (if it is not shown), two bits (unless it is resilient to errors); then an
    intra one has the sync code, 8 bits and the size, one with references 8 bits, 4 for each of
    three references, and up to three bits of which a one says that it has the size of that one.
    """
    if not frame or frame[0] & 0b111000:
        return 0
    is_predicted, is_hidden, is_resilient = frame[0] & 0b100, not frame[0] & 0b10, frame[0] & 1
    bits = int.from_bytes(frame[1:13].ljust(12, b"\0"), "big")
    begin = 24 + 4
    if is_predicted:
        begin = is_hidden + (0 if is_resilient else 2)
        if is_hidden and bits >> 95:
            begin += 24 + 8
        elif bits >> 96 - begin - 8 - 3 * 4 - 3 & 0b111:
            return 0
        else:
            begin += 8 + 3 * 4 + 3
    return bits >> 96 - begin - 32 & 0xFFFFFFFF


class Av1Reader:
    """Reads the packets (temporal units) of one stream."""

    num_reorder = 0

    def __init__(self, extradata: bytes) -> None:
        self._count = 0
        self._sequence = b""  # of the packets: encoders write another one into the container

    @property
    def device_doubt(self) -> str:
        """Film grain: the last bit of a sequence header, before the one that ends it."""
        number = int.from_bytes(self._sequence, "big")
        return "film grain" if number and number // (number & -number) >> 1 & 1 else ""

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet. Raises BrokenHeader where it shows several, or is none."""
        frames = self._read_units(data)
        num_shown = sum(is_shown for is_shown, _ in frames)
        if num_shown != 1:
            raise BrokenHeader(f"a packet shows {num_shown} pictures")
        self._count += 1
        return CodedPicture(0, self._count, is_key=frames[0] == (True, True))

    def _read_units(self, data: bytes) -> list[tuple[bool, bool]]:
        """(is shown, is a key frame) of the frames."""
        frames, offset = [], 0
        while offset < len(data):
            kind, has_extension, has_size = data[offset] >> 3 & 15, data[offset] >> 2 & 1, data[offset] >> 1 & 1
            offset += 1 + has_extension
            size = len(data) - offset
            if has_size:
                size, offset = _read_size(data, offset)
            if offset + size > len(data):
                raise BrokenHeader("a unit is longer than its packet")
            if kind == SEQUENCE_HEADER:
                sequence = data[offset : offset + size]
                if data[offset] >> 3 & 1:
                    raise BrokenHeader("a still picture")
                if self._sequence and sequence != self._sequence:
                    raise BrokenHeader("parameters change on the way")
                self._sequence = sequence
            elif kind in (FRAME_HEADER, FRAME) and size:
                header = data[offset]  # show_existing_frame, frame_type (2), show_frame
                shows_existing, is_key = header >> 7, header >> 5 & 3 == KEY_FRAME
                frames.append((bool(shows_existing or header >> 4 & 1), is_key and not shows_existing))
            offset += size
        return frames


def _read_size(data: bytes, offset: int) -> tuple[int, int]:
    """(value, offset behind it) of a leb128 number."""
    value = 0
    for number in range(8):
        if offset >= len(data):
            break
        byte = data[offset]
        value |= (byte & 127) << 7 * number
        offset += 1
        if byte < 128:
            return value, offset
    raise BrokenHeader("a unit has no size")


class IntraReader:
    """Reads the packets of a codec that knows nothing but key pictures."""

    num_reorder = 0
    device_doubt = ""

    def __init__(self, extradata: bytes) -> None:
        self._count = 0

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet."""
        self._count += 1
        return CodedPicture(0, self._count, is_key=True)
