"""H.264 parameter sets -> the fields of them that reading slice headers needs. Source: ITU-T H.264,
sections 7.3.2.1 and 7.3.2.2, annex E; ISO/IEC 14496-15, section 5.3.3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mats_ds.data.bitstream.bits import Bits, BrokenHeader

CHROMA_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))


@dataclass(frozen=True)
class SequenceSet:
    """The fields of a sequence parameter set. num_reorder: pictures that wait at most, None where
    it does not say."""

    has_colour_planes: bool
    frame_num_bits: int
    order_kind: int
    order_bits: int
    frames_only: bool
    num_reorder: int | None


@dataclass(frozen=True)
class PictureSet:
    """The fields of a picture parameter set."""

    sequence: int
    has_bottom_order: bool
    has_redundant: bool


def units_of_avcc(extradata: bytes) -> list[bytes]:
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


def read_sequence_set(bits: Bits) -> tuple[int, SequenceSet]:
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
    return number, SequenceSet(has_colour_planes, frame_num_bits, order_kind, order_bits, frames_only, num_reorder)


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


def read_picture_set(bits: Bits) -> tuple[int, PictureSet]:
    number, sequence = bits.unsigned(), bits.unsigned()
    bits.skip(1)
    has_bottom_order = bool(bits.read(1))
    if bits.unsigned():
        raise BrokenHeader("pictures are cut into slice groups")
    bits.unsigned(), bits.unsigned(), bits.skip(3)
    bits.signed(), bits.signed(), bits.signed()
    bits.skip(2)
    return number, PictureSet(sequence, has_bottom_order, bool(bits.read(1)))
