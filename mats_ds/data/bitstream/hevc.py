"""HEVC packets -> CodedPicture: when each picture is shown, and whether decoding can begin with it.
Source: ITU-T H.265.

A picture is a key picture if it is an IDR or a CRA picture. What follows a CRA in the file and is
shown before it (RASL) needs pictures from before it: such a picture belongs to the key picture
before. Spliced streams (BLA) are left to be decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from mats_ds.data.bitstream.bits import Bits, BrokenHeader, split_units, unwrap_wraps, without_emulation
from mats_ds.data.bitstream.coded_picture import CodedPicture

LEADING = range(6, 10)  # RADL and RASL
BLA, IRAP, IDR = range(16, 19), range(16, 24), range(19, 21)
SPS, PPS, END_OF_SEQUENCE, END_OF_STREAM = 33, 34, 36, 37
LAST_SLICE = 31
SLICE_HEADER_BYTES = 32


@dataclass(frozen=True)
class _Sequence:
    has_colour_planes: bool
    order_bits: int
    num_reorder: int


@dataclass(frozen=True)
class _Pictures:
    sequence: int
    has_output_flag: bool
    num_extra_bits: int


class HevcReader:
    """Reads the packets of one stream in the order of decoding."""

    device_doubt = ""

    def __init__(self, extradata: bytes) -> None:
        self._units: dict[tuple[int, int], bytes] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._pictures: dict[int, _Pictures] = {}
        self._previous_low = self._previous_high = 0
        self._epoch, self._count = 0, 0
        self.length_size = 0
        if extradata[:1] == b"\x01" and len(extradata) > 22:
            self.length_size = (extradata[21] & 3) + 1
            for unit in _units_of_hvcc(extradata):
                self._note_parameters(unit)
        else:
            for begin, end in split_units(extradata, 0):
                self._note_parameters(extradata[begin:end])

    @property
    def num_reorder(self) -> int | None:
        """The most pictures that wait."""
        return min((sequence.num_reorder for sequence in self._sequences.values()), default=None)

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet. Raises BrokenHeader where the packet is not one frame that is
        fully understood."""
        first, num_starts = None, 0
        for begin, end in split_units(data, self.length_size):
            kind = data[begin] >> 1 & 63
            if end - begin < 3 or (data[begin] & 1) << 5 | data[begin + 1] >> 3:  # of another layer
                continue
            if kind <= LAST_SLICE:
                if first is None:
                    first = begin
                num_starts += data[begin + 2] >= 128
            elif kind in (SPS, PPS):
                self._note_parameters(data[begin:end])
            elif kind in (END_OF_SEQUENCE, END_OF_STREAM):
                raise BrokenHeader(f"HEVC unit of type {kind}")
        if first is None or num_starts != 1:
            raise BrokenHeader("a packet is not one picture")
        return self._read_slice(data[first : first + SLICE_HEADER_BYTES])

    def _read_slice(self, unit: bytes) -> CodedPicture:
        kind, layer = unit[0] >> 1 & 63, unit[1] & 7
        bits = Bits(without_emulation(unit[2:]))
        bits.skip(1)
        if kind in BLA and self._count:
            raise BrokenHeader("the stream is spliced")
        if kind in IRAP and bits.read(1) and self._count:
            raise BrokenHeader("pictures before a key picture are thrown away")
        pictures = self._pictures.get(bits.unsigned())
        sequence = pictures and self._sequences.get(pictures.sequence)
        if not sequence:
            raise BrokenHeader("parameters of a picture are missing")
        bits.skip(pictures.num_extra_bits)
        bits.unsigned()  # slice_type
        if pictures.has_output_flag and not bits.read(1):
            raise BrokenHeader("a picture is not shown")
        bits.skip(2 * sequence.has_colour_planes)
        low = high = 0
        if kind in IDR:
            self._epoch += 1
        else:
            low = bits.read(sequence.order_bits)
            if self._count:
                high = unwrap_wraps(low, self._previous_low, self._previous_high, 1 << sequence.order_bits)
        is_unreferenced = kind < 16 and kind % 2 == 0
        # temporal layer 0 is sent as 1
        if layer == 1 and kind not in LEADING and not is_unreferenced:
            self._previous_low, self._previous_high = low, high
        self._count += 1
        return CodedPicture(self._epoch, high + low, is_key=kind in IRAP)

    def _note_parameters(self, unit: bytes) -> None:
        unit = unit.rstrip(b"\0")
        kind = unit[0] >> 1 & 63 if unit else 0
        if kind not in (SPS, PPS) or (unit[0] & 1) << 5 | unit[1] >> 3:
            return
        bits = Bits(without_emulation(unit[2:]))
        if kind == SPS:
            number, sequence = _read_sequence(bits)
            self._sequences[number] = sequence
        else:
            number, pictures = _read_pictures(bits)
            self._pictures[number] = pictures
        known = self._units.get((kind, number), b"" if self._count else unit)
        if known != unit:
            raise BrokenHeader("parameters change on the way")
        self._units[kind, number] = unit


def _units_of_hvcc(extradata: bytes) -> list[bytes]:
    """The parameter sets in an hvcC box. Source: ISO/IEC 14496-15, section 8.3.3.1."""
    units, offset = [], 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[offset + 1 : offset + 3], "big")
        offset += 3
        for _ in range(count):
            size = int.from_bytes(extradata[offset : offset + 2], "big")
            units.append(extradata[offset + 2 : offset + 2 + size])
            offset += 2 + size
    return units


def _read_sequence(bits: Bits) -> tuple[int, _Sequence]:
    bits.skip(4)
    num_layers = bits.read(3)
    bits.skip(1)
    bits.skip(88 + 8)  # general profile, tier and level
    present = [(bits.read(1), bits.read(1)) for _ in range(num_layers)]
    if num_layers:
        bits.skip(2 * (8 - num_layers))
    for has_profile, has_level in present:
        bits.skip(88 * has_profile + 8 * has_level)
    number = bits.unsigned()
    has_colour_planes = bits.unsigned() == 3 and bool(bits.read(1))
    bits.unsigned(), bits.unsigned()  # width, height
    if bits.read(1):
        for _ in range(4):
            bits.unsigned()
    bits.unsigned(), bits.unsigned()  # bit depths
    order_bits = bits.unsigned() + 4
    num_reorder = 0
    for _ in range(num_layers + 1 if bits.read(1) else 1):
        bits.unsigned()
        num_reorder = bits.unsigned()
        bits.unsigned()
    return number, _Sequence(has_colour_planes, order_bits, num_reorder)


def _read_pictures(bits: Bits) -> tuple[int, _Pictures]:
    number, sequence = bits.unsigned(), bits.unsigned()
    bits.skip(1)
    return number, _Pictures(sequence, bool(bits.read(1)), bits.read(3))
