"""Bytes of a coded video -> header fields: fixed and Exp-Golomb numbers, and the NAL units of H.264
and HEVC.

Source: ITU-T H.264 and H.265, sections 7.2 to 7.4 and 9.1 (Exp-Golomb codes), annex B (start
codes); ISO/IEC 14496-15 (lengths).
"""

from __future__ import annotations

START_CODE = b"\x00\x00\x01"


class BrokenHeader(ValueError):
    """A header ends too early, or says what no sound stream says."""


class Bits:
    """Reads the bits of `data` from the first one on. Raises BrokenHeader behind the end."""

    def __init__(self, data: bytes) -> None:
        self._digits = bin(1 << 8 * len(data) | int.from_bytes(data, "big"))[3:]
        self._offset = 0

    @property
    def offset(self) -> int:
        """How many bits were read."""
        return self._offset

    def read(self, count: int) -> int:
        """The next `count` bits as a number."""
        begin, self._offset = self._offset, self._offset + count
        if self._offset > len(self._digits):
            raise BrokenHeader("a header ends too early")
        return int(self._digits[begin : self._offset], 2) if count else 0

    def skip(self, count: int) -> None:
        """Pass over `count` bits."""
        self._offset += count

    def unsigned(self) -> int:
        """The next Exp-Golomb number, ue(v)."""
        one = self._digits.find("1", self._offset)
        end = 2 * one - self._offset + 1
        if one < 0 or end > len(self._digits):
            raise BrokenHeader("a header ends too early")
        self._offset = end
        return int(self._digits[one:end], 2) - 1

    def signed(self) -> int:
        """The next Exp-Golomb number with a sign, se(v)."""
        value = self.unsigned()
        return (value + 1) // 2 if value & 1 else -(value // 2)


def without_emulation(unit: bytes) -> bytes:
    """A NAL unit without the bytes 3 that keep it free of start codes."""
    return unit.replace(b"\x00\x00\x03", b"\x00\x00") if b"\x00\x00\x03" in unit else unit


def split_units(data: bytes, length_size: int) -> list[tuple[int, int]]:
    """(begin, end) of the NAL units in a packet; `length_size` bytes of length stand before each,
    or with 0 a start code.

    Raises BrokenHeader where lengths reach beyond the packet.
    """
    units = []
    if not length_size:
        begin = data.find(START_CODE)
        while begin >= 0:
            end = data.find(START_CODE, begin + 3)
            units.append((begin + 3, len(data) if end < 0 else end))
            begin = end
        return [unit for unit in units if unit[0] < unit[1]]
    offset, num_bytes = 0, len(data)
    while offset + length_size <= num_bytes:
        begin = offset + length_size
        offset = begin + int.from_bytes(data[offset:begin], "big")
        if offset > begin:
            units.append((begin, offset))
    if offset != num_bytes:
        raise BrokenHeader("units do not fill their packet")
    return units


def unwrap_wraps(low: int, previous_low: int, previous_high: int, modulus: int) -> int:
    """The multiple of `modulus` to add to a counter of which only `low` is sent. Source: H.264
    section 8.2.1.1, H.265 8.3.1."""
    if low < previous_low and previous_low - low >= modulus // 2:
        return previous_high + modulus
    if low > previous_low and low - previous_low > modulus // 2:
        return previous_high - modulus
    return previous_high
