"""MPEG-1 and MPEG-2 packets -> CodedPicture: when each picture is shown, and whether decoding can
begin with it.

Pictures come in the order of decoding: a B-picture is shown at once, an I- or P-picture when the
next of them comes. An I-picture with its sequence header is a key picture; B-pictures behind it
that are shown before it need the picture before, too, and belong to the key picture before. Source:
ISO/IEC 13818-2, sections 6.2.2 and 6.2.3; ISO/IEC 11172-2.
"""

from __future__ import annotations

from mats_ds.data.bitstream.bits import START_CODE, BrokenHeader
from mats_ds.data.bitstream.coded_picture import CodedPicture

PICTURE, SEQUENCE, EXTENSION, GROUP = 0x00, 0xB3, 0xB5, 0xB8
CODING_EXTENSION = 8
INTRA, PREDICTED, BIDIRECTIONAL = 1, 2, 3
FRAME = 3  # picture_structure
LAST = 1 << 62


class Mpeg2Reader:
    """Reads the packets of one stream in the order of decoding."""

    num_reorder = 1
    device_doubt = ""

    def __init__(self, extradata: bytes) -> None:
        self._sequence = _header(extradata, extradata.find(START_CODE + bytes([SEQUENCE])))
        self._num_references = self._count = 0

    def read(self, data: bytes) -> CodedPicture:
        """The picture in a packet. Raises BrokenHeader where the packet is not one frame that is
        fully understood."""
        kinds, has_sequence = [], False
        offset = data.find(START_CODE)
        while 0 <= offset < len(data) - 6:
            code = data[offset + 3]
            if code == PICTURE:
                kinds.append(data[offset + 5] >> 3 & 7)
            elif code == SEQUENCE:
                has_sequence = True
                sequence = _header(data, offset)
                if self._sequence and sequence != self._sequence:
                    raise BrokenHeader("parameters change on the way")
                self._sequence = sequence
            elif code == EXTENSION and data[offset + 4] >> 4 == CODING_EXTENSION and data[offset + 6] & 3 != FRAME:
                raise BrokenHeader("pictures are coded as fields")
            elif code == GROUP and data[offset + 7] >> 5 & 1:
                raise BrokenHeader("the stream is spliced")
            offset = data.find(START_CODE, offset + 4)
        if len(kinds) != 1 or kinds[0] not in (INTRA, PREDICTED, BIDIRECTIONAL):
            raise BrokenHeader("a packet is not one picture")
        return self._order(kinds[0], has_sequence)

    def _order(self, kind: int, has_sequence: bool) -> CodedPicture:
        """An epoch ends with a reference picture; the B-pictures that follow it in the file are
        shown before it."""
        self._count += 1
        if kind == BIDIRECTIONAL:
            if self._num_references < 2:
                raise BrokenHeader("pictures before the first key picture refer to what is not there")
            return CodedPicture(self._num_references, self._count, is_key=False)
        self._num_references += 1
        return CodedPicture(self._num_references, LAST, is_key=kind == INTRA and has_sequence)


def _header(data: bytes, offset: int) -> bytes:
    """The sequence header at `offset`: size, rate and matrices; empty where there is none."""
    if offset < 0:
        return b""
    end = data.find(START_CODE, offset + 4)
    return data[offset : len(data) if end < 0 else end].rstrip(b"\0")
