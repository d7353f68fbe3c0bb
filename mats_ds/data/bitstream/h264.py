"""H.264 packets -> CodedPicture: when each picture is shown, and whether decoding can begin with
it. Source: ITU-T H.264.

A picture is a key picture if it is an IDR picture, or one of I-slices only whose recovery point
message promises exact pictures from itself on (x264's open groups of pictures). What a container
marks as a key sample says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mats_ds.data.bitstream.bits import Bits, BrokenHeader, split_units, unwrap_wraps, without_emulation
from mats_ds.data.bitstream.coded_picture import CodedPicture

SLICE, IDR_SLICE, SEI, SPS, PPS = 1, 5, 6, 7, 8
REFUSED = frozenset((2, 3, 4, 10, 11))  # data partitions, end of sequence, end of stream
RECOVERY_POINT = 6  # payload type, annex D
I_SLICE = 2
CHROMA_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
SLICE_HEADER_BYTES = 24  # more than the fields that are read here take


@dataclass(frozen=True)
class _Sequence:
    """The fields of a sequence parameter set. num_reorder: pictures that wait at most, None where
    it does not say."""

    has_colour_planes: bool
    frame_num_bits: int
    order_kind: int
    order_bits: int
    frames_only: bool
    num_reorder: int | None


@dataclass(frozen=True)
class _Pictures:
    """The fields of a picture parameter set."""

    sequence: int
    has_bottom_order: bool
    has_redundant: bool


class H264Reader:
    """Reads the packets of one stream in the order of decoding."""

    def __init__(self, extradata: bytes) -> None:
        self._units: dict[tuple[int, int], bytes] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, _Pictures] = {}
        self._previous_low = self._previous_high = 0
        self._previous_number, self._previous_is_reference = 0, False
        self._epoch, self._count = 0, 0
        self.length_size = 0
        if extradata[:1] == b"\x01":
            self.length_size = (extradata[4] & 3) + 1 if len(extradata) > 6 else 4
            for unit in _units_of_avcc(extradata):
                self._note_parameters(unit)
        else:
            for begin, end in split_units(extradata, 0):
                self._note_parameters(extradata[begin:end])

    @property
    def num_reorder(self) -> int | None:
        """The most pictures that wait, as the stream states; None where it does not."""
        known = [sequence.num_reorder for sequence in self._sequences.values()]
        return None if not known or None in known else min(known)

    @property
    def device_doubt(self) -> str:
        """Streams that may hold fields, whatever their first picture is."""
        return "" if all(sequence.frames_only for sequence in self._sequences.values()) else "interlaced"

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet. Raises BrokenHeader where the packet is not one frame that is
        fully understood."""
        first, num_starts, recovers = -1, 0, False
        first_kind = 0
        for begin, end in split_units(data, self.length_size):
            kind = data[begin] & 31
            if kind in (SLICE, IDR_SLICE):
                if first < 0:
                    first, first_kind = begin, kind
                # first_mb_in_slice is 0: one bit
                num_starts += end - begin > 1 and data[begin + 1] >= 128
                if kind != first_kind:
                    raise BrokenHeader("a packet is not one picture")
            elif kind == SEI:
                recovers = recovers or _promises_exact(without_emulation(data[begin + 1 : end]))
            elif kind in (SPS, PPS):
                self._note_parameters(data[begin:end])
            elif kind in REFUSED:
                raise BrokenHeader(f"H.264 unit of type {kind}")
        if num_starts != 1:
            raise BrokenHeader("a packet is not one picture")
        picture = self._read_slice(data[first : first + SLICE_HEADER_BYTES])
        if not picture.is_key and recovers and self._is_intra(data):
            return CodedPicture(picture.epoch, picture.order, is_key=True)
        return picture

    def _is_intra(self, data: bytes) -> bool:
        for begin, _ in split_units(data, self.length_size):
            if data[begin] & 31 == SLICE:
                bits = Bits(without_emulation(data[begin + 1 : begin + 9]))
                bits.unsigned()
                if bits.unsigned() % 5 != I_SLICE:
                    return False
        return True

    def _read_slice(self, unit: bytes) -> CodedPicture:
        is_idr, is_reference = unit[0] & 31 == IDR_SLICE, unit[0] >> 5 & 3
        bits = Bits(without_emulation(unit[1:]))
        bits.unsigned()  # first_mb_in_slice
        is_intra = bits.unsigned() % 5 == I_SLICE
        pictures = self._pictures.get(bits.unsigned())
        sequence = pictures and self._sequences.get(pictures.sequence)
        if not sequence:
            raise BrokenHeader("parameters of a picture are missing")
        bits.skip(2 * sequence.has_colour_planes)
        self._follow(bits.read(sequence.frame_num_bits), sequence, is_idr=is_idr, is_reference=bool(is_reference))
        if not sequence.frames_only and bits.read(1):
            raise BrokenHeader("pictures are coded as fields")
        if is_idr:
            bits.unsigned()  # idr_pic_id
            self._epoch += 1
            self._previous_low = self._previous_high = 0
        self._count += 1
        if sequence.order_kind == 1:
            raise BrokenHeader("pictures are ordered by type 1")
        low, high = 0, 0
        if sequence.order_kind == 0:
            low = bits.read(sequence.order_bits)
            high = unwrap_wraps(low, self._previous_low, self._previous_high, 1 << sequence.order_bits)
            if is_reference:
                self._previous_low, self._previous_high = low, high
            if pictures.has_bottom_order:
                bits.signed()
        if is_idr:
            if pictures.has_redundant:
                bits.unsigned()
            if not is_intra or bits.read(1):
                raise BrokenHeader("pictures before a key picture are thrown away")
        return CodedPicture(self._epoch, self._count if sequence.order_kind == 2 else high + low, is_key=is_idr)

    def _follow(self, number: int, sequence: _Sequence, *, is_idr: bool, is_reference: bool) -> None:
        """frame_num counts the reference pictures. Raises BrokenHeader where one is missing,
        section 7.4.3."""
        if not is_idr and self._count:
            steps = (number - self._previous_number) % (1 << sequence.frame_num_bits)
            if steps > 1 or (steps == 0 and self._previous_is_reference):
                raise BrokenHeader("pictures are missing")
        self._previous_number, self._previous_is_reference = number, is_reference

    def _note_parameters(self, unit: bytes) -> None:
        """Keep a parameter set. Raises BrokenHeader where one is replaced by another: decoding
        could not begin after it."""
        unit = unit.rstrip(b"\0")
        bits = Bits(without_emulation(unit[1:]))
        kind = unit[0] & 31 if unit else 0
        if kind == SPS:
            number, sequence = _read_sequence(bits)
            self._sequences[number] = sequence
        elif kind == PPS:
            number, pictures = _read_pictures(bits)
            self._pictures[number] = pictures
        else:
            return
        known = self._units.get((kind, number), b"" if self._count else unit)
        if known != unit:
            raise BrokenHeader("parameters change on the way")
        self._units[kind, number] = unit


def _units_of_avcc(extradata: bytes) -> list[bytes]:
    """The parameter sets in an avcC box. Source: ISO/IEC 14496-15, section 5.3.3.1."""
    units, offset = [], 5
    for mask in (31, 255):
        if offset >= len(extradata):
            break
        count, offset = extradata[offset] & mask, offset + 1
        for _ in range(count):
            size = int.from_bytes(extradata[offset : offset + 2], "big")
            units.append(extradata[offset + 2 : offset + 2 + size])
            offset += 2 + size
    return units


def _read_sequence(bits: Bits) -> tuple[int, _Sequence]:
    profile = bits.read(8)
    bits.skip(16)
    number = bits.unsigned()
    has_colour_planes = False
    if profile in CHROMA_PROFILES:
        chroma = bits.unsigned()
        has_colour_planes = chroma == 3 and bool(bits.read(1))
        bits.unsigned(), bits.unsigned(), bits.skip(1)
        if bits.read(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    frame_num_bits = bits.unsigned() + 4
    order_kind, order_bits = bits.unsigned(), 0
    if order_kind == 0:
        order_bits = bits.unsigned() + 4
    elif order_kind == 1:
        bits.skip(1)
        bits.signed(), bits.signed()
        for _ in range(bits.unsigned()):
            bits.signed()
    # reference frames, gaps, width, height
    bits.unsigned(), bits.skip(1), bits.unsigned(), bits.unsigned()
    frames_only = bool(bits.read(1))
    bits.skip(1 if frames_only else 2)
    if bits.read(1):
        for _ in range(4):
            bits.unsigned()
    num_reorder = _read_num_reorder(bits) if bits.read(1) else None
    return number, _Sequence(has_colour_planes, frame_num_bits, order_kind, order_bits, frames_only, num_reorder)


def _skip_scaling_list(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed() + 256) % 256
        last = following or last


def _read_num_reorder(bits: Bits) -> int | None:
    """max_num_reorder_frames from the usability information, annex E."""
    if bits.read(1) and bits.read(8) == 255:
        bits.skip(32)
    if bits.read(1):
        bits.skip(1)
    if bits.read(1):
        bits.skip(4)
        if bits.read(1):
            bits.skip(24)
    if bits.read(1):
        bits.unsigned(), bits.unsigned()
    if bits.read(1):
        bits.skip(65)
    has_nal = bits.read(1)
    if has_nal:
        _skip_buffer_model(bits)
    has_vcl = bits.read(1)
    if has_vcl:
        _skip_buffer_model(bits)
    bits.skip((has_nal or has_vcl) + 1)
    if not bits.read(1):
        return None
    bits.skip(1)
    for _ in range(4):
        bits.unsigned()
    return bits.unsigned()


def _skip_buffer_model(bits: Bits) -> None:
    count = bits.unsigned() + 1
    bits.skip(8)
    for _ in range(count):
        bits.unsigned(), bits.unsigned(), bits.skip(1)
    bits.skip(20)


def _read_pictures(bits: Bits) -> tuple[int, _Pictures]:
    number, sequence = bits.unsigned(), bits.unsigned()
    bits.skip(1)
    has_bottom_order = bool(bits.read(1))
    if bits.unsigned():
        raise BrokenHeader("pictures are cut into slice groups")
    bits.unsigned(), bits.unsigned(), bits.skip(3)
    bits.signed(), bits.signed(), bits.signed()
    bits.skip(2)
    return number, _Pictures(sequence, has_bottom_order, bool(bits.read(1)))


def _promises_exact(messages: bytes) -> bool:
    """Whether one of the messages is a recovery point that promises exact pictures from this one
    on, annex D.2.8."""
    offset = 0
    while offset + 2 < len(messages):
        numbers = [0, 0]  # type and size: bytes of 255 add up
        for which in range(2):
            while offset < len(messages) and messages[offset] == 255:
                numbers[which] += 255
                offset += 1
            if offset >= len(messages):
                return False
            numbers[which] += messages[offset]
            offset += 1
        kind, size = numbers
        if kind == RECOVERY_POINT:
            bits = Bits(messages[offset : offset + size])
            # recovery_frame_cnt, exact_match_flag, broken_link_flag
            return bits.unsigned() == 0 and bits.read(2) == 0b10
        offset += size
    return False
