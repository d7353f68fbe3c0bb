"""MPEG-4 part 2 headers -> which packets of a stream show a picture, and in which order the
pictures are shown.

AVI files (UCF101, HMDB51) store no presentation times, and their packets are not always pictures:
encoders of the DivX family pack a P- and a B-picture into one packet and let an empty one follow,
or write empty pictures where nothing moved.
Source: ISO/IEC 14496-2, sections 6.2.3 (video object layer) and 6.2.5 (video object plane).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

VOP_START = b"\x00\x00\x01\xb6"
PREFIX = b"\x00\x00\x01"
INTRA, BIDIRECTIONAL, SPRITE = 0, 2, 3  # vop_coding_type; 1 is predicted
QUICK_BITS = 24  # that are left behind the seconds for the other fields, the time having 16 at most
HEADER_BYTES = 64  # more than any header that is read here takes


class _Bits:
    """Reads the bits of a few bytes from the first one on; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data.ljust(HEADER_BYTES, b"\0"), "big"), 8 * max(HEADER_BYTES, len(data))

    def read(self, count: int) -> int:
        self._left = max(0, self._left - count)
        return self._value >> self._left & ((1 << count) - 1)


def time_increment_bits(data: bytes) -> int | None:
    """Width of the time field of every picture header, from the layer header in `data`; None where
    there is none."""
    offset = -1
    while True:
        offset = data.find(PREFIX, offset + 1)
        if offset < 0 or offset + 3 >= len(data):
            return None
        if data[offset + 3] >> 4 == 2:  # start codes 20 to 2F
            return _layer_time_bits(_Bits(data[offset + 4 : offset + 4 + HEADER_BYTES]))


def _layer_time_bits(bits: _Bits) -> int:
    bits.read(1 + 8)  # random_accessible_vol, video_object_type_indication
    version = 1
    if bits.read(1):
        version = bits.read(4)
        bits.read(3)
    if bits.read(4) == 15:  # extended pixel aspect ratio
        bits.read(16)
    # vol_control_parameters, then vbv_parameters
    if bits.read(1) and (bits.read(2 + 1), bits.read(1))[1]:
        bits.read(79)
    if bits.read(2) == 3 and version != 1:  # grayscale shape
        bits.read(4)
    bits.read(1)
    return max(1, (bits.read(16) - 1).bit_length())


def coded_pictures(data: bytes, *, time_bits: int) -> list[tuple[int, int]]:
    """(offset, coding type) of the pictures in a packet that show something; offset: the byte at
    which the picture begins."""
    pictures = []
    offset = data.find(VOP_START)
    while offset >= 0:
        # Nearly every header has its few fields in eight bytes: coding type (2), ones for whole
        # seconds and a zero, a marker, the time, a marker, vop_coded.
        word = int.from_bytes(data[offset + 4 : offset + 12].ljust(8, b"\0"), "big")
        place = 61
        while word >> place & 1 and place > QUICK_BITS:
            place -= 1
        if place > QUICK_BITS:
            if word >> place - time_bits - 3 & 1:
                pictures.append((offset, word >> 62))
            offset = data.find(VOP_START, offset + 4)
            continue
        bits = _Bits(data[offset + 4 : offset + 4 + HEADER_BYTES])
        kind = bits.read(2)
        for _ in range(8 * HEADER_BYTES):  # modulo_time_base: a one for each whole second
            if not bits.read(1):
                break
        bits.read(1 + time_bits + 1)
        if bits.read(1):  # vop_coded
            pictures.append((offset, kind))
        offset = data.find(VOP_START, offset + 4)
    return pictures


def presentation_order(types_P: Sequence[int | None]) -> np.ndarray:
    """For pieces of one picture each (None: of none), the index at which each is shown, int64 [P];
    -1 for never.

    A B-picture is shown at once, any other when the next that is none comes. B-pictures before the
    second reference have nothing to refer to, and no decoder shows them.
    """
    number_P = np.full(len(types_P), -1, np.int64)
    shown, waiting, num_references = 0, -1, 0
    for index, kind in _present(types_P):
        if kind == BIDIRECTIONAL:
            if num_references < 2:
                continue
            number_P[index] = shown
            shown += 1
            continue
        num_references += 1
        if waiting >= 0:
            number_P[waiting] = shown
            shown += 1
        waiting = index
    if waiting >= 0:
        number_P[waiting] = shown
    return number_P


def _present(types_P: Sequence[int | None]) -> Iterable[tuple[int, int]]:
    return ((index, kind) for index, kind in enumerate(types_P) if kind is not None)
