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
from mats_ds.data.bitstream.h264_parameters import PictureSet, SequenceSet, read_picture_set, read_sequence_set, units_of_avcc

SLICE, IDR_SLICE, SEI, SPS, PPS = 1, 5, 6, 7, 8
REFUSED = frozenset((2, 3, 4, 10, 11))  # data partitions, end of sequence, end of stream
RECOVERY_POINT = 6  # payload type, annex D
I_SLICE = 2
START_BYTES = 4  # of a slice: its unit's header and most often all up to frame_num
SLICE_HEADER_BYTES = 24  # more than the fields that are read here take


@dataclass(frozen=True)
class _SliceStart:
    """A slice header up to frame_num, which begins at the bit `offset` behind the unit's first
    byte."""

    sequence: SequenceSet
    offset: int
    is_reference: bool


class H264Reader:
    """Reads the packets of one stream in the order of decoding."""

    def __init__(self, extradata: bytes) -> None:
        self._units: dict[tuple[int, int], bytes] = {}
        self._sequences: dict[int, SequenceSet] = {}
        self._pictures: dict[int, PictureSet] = {}
        self._previous_low = self._previous_high = 0
        self._previous_number, self._previous_is_reference = 0, False
        self._epoch, self._count = 0, 0
        self._starts: dict[bytes, _SliceStart] = {}
        self.length_size = 0
        if extradata[:1] == b"\x01":
            self.length_size = (extradata[4] & 3) + 1 if len(extradata) > 6 else 4
            for unit in units_of_avcc(extradata):
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
        start = self._starts.get(unit[:START_BYTES])
        if start is not None:
            return self._read_known_slice(unit, start)
        is_idr, is_reference = unit[0] & 31 == IDR_SLICE, unit[0] >> 5 & 3
        bits = Bits(without_emulation(unit[1:]))
        bits.unsigned()  # first_mb_in_slice
        is_intra = bits.unsigned() % 5 == I_SLICE
        pictures = self._pictures.get(bits.unsigned())
        sequence = pictures and self._sequences.get(pictures.sequence)
        if not sequence:
            raise BrokenHeader("parameters of a picture are missing")
        bits.skip(2 * sequence.has_colour_planes)
        if not pictures.has_bottom_order:
            self._note_start(unit, bits.offset, sequence)
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
        order = 0
        if sequence.order_kind == 0:
            order = self._unwrap(bits.read(sequence.order_bits), sequence, is_reference=bool(is_reference))
            if pictures.has_bottom_order:
                bits.signed()
        if is_idr:
            if pictures.has_redundant:
                bits.unsigned()
            if not is_intra or bits.read(1):
                raise BrokenHeader("pictures before a key picture are thrown away")
        return CodedPicture(self._epoch, self._count if sequence.order_kind == 2 else order, is_key=is_idr)

    def _note_start(self, unit: bytes, offset: int, sequence: SequenceSet) -> None:
        """Remember the fields that a slice begins with: in a stream there are few different ones,
        and reading them costs more than all others."""
        is_usual = sequence.frames_only and sequence.order_kind != 1 and unit[0] & 31 != IDR_SLICE
        if is_usual and offset <= 8 * (START_BYTES - 1) and b"\0\0\3" not in unit:
            self._starts[unit[:START_BYTES]] = _SliceStart(sequence, offset, bool(unit[0] >> 5 & 3))

    def _read_known_slice(self, unit: bytes, start: _SliceStart) -> CodedPicture:
        """The same for a slice of whole frames, not IDR, of which a like one has been read."""
        sequence = start.sequence
        data = without_emulation(unit[1:])
        size = sequence.frame_num_bits + sequence.order_bits
        left = 8 * len(data) - start.offset - size
        if left < 0:
            raise BrokenHeader("a header ends too early")
        fields = int.from_bytes(data, "big") >> left & (1 << size) - 1
        self._follow(fields >> sequence.order_bits, sequence, is_idr=False, is_reference=start.is_reference)
        self._count += 1
        if sequence.order_kind == 2:
            return CodedPicture(self._epoch, self._count, False)
        low = fields & (1 << sequence.order_bits) - 1
        return CodedPicture(self._epoch, self._unwrap(low, sequence, is_reference=start.is_reference), False)

    def _unwrap(self, low: int, sequence: SequenceSet, *, is_reference: bool) -> int:
        high = unwrap_wraps(low, self._previous_low, self._previous_high, 1 << sequence.order_bits)
        if is_reference:
            self._previous_low, self._previous_high = low, high
        return high + low

    def _follow(self, number: int, sequence: SequenceSet, *, is_idr: bool, is_reference: bool) -> None:
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
        self._starts.clear()
        unit = unit.rstrip(b"\0")
        bits = Bits(without_emulation(unit[1:]))
        kind = unit[0] & 31 if unit else 0
        if kind == SPS:
            number, sequence = read_sequence_set(bits)
            self._sequences[number] = sequence
        elif kind == PPS:
            number, pictures = read_picture_set(bits)
            self._pictures[number] = pictures
        else:
            return
        known = self._units.get((kind, number), b"" if self._count else unit)
        if known != unit:
            raise BrokenHeader("parameters change on the way")
        self._units[kind, number] = unit


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
