"""Packets of a video stream -> the pictures in each: not every packet is one visible frame.

VP8 and VP9 know packets that only serve as reference. MPEG-4 files of the DivX family (8 of 100
clips of UCF101) pack a P- and a B-picture into one packet and put an empty one after the last of a
group; decoders then lag behind by a picture, and one that still waits when the file ends is never
shown.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mats_ds.data.bitstream.mpeg4 import BIDIRECTIONAL, SPRITE, coded_pictures, presentation_order, time_increment_bits


class Piece(NamedTuple):
    """The part of a packet, `size` bytes from `offset` on, that holds one picture.

    is_disposable: no other refers to it, as far as is known here. is_shown: false for a picture
    that only serves as reference.
    """

    offset: int
    size: int
    is_shown: bool = True
    is_disposable: bool = False


class PictureCounter:
    """Finds the pictures in the packets of a stream, which come in order.

    is_certain: whether all headers could be read. is_packed: whether a packet held several
    pictures. has_sprites: whether one is predicted by the motion of all of it. kinds: the coding
    types of the pictures in the last packet.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self.is_certain = True
        self.is_packed = False
        self.has_sprites = False
        self.kinds: list[int] = []
        self._codec = codec
        self._types_P: list[int | None] = []
        self._time_bits = time_increment_bits(extradata) if codec == "mpeg4" else None
        self._one_waits = False

    def split(self, data: bytes, *, is_hidden: bool) -> list[Piece]:
        """The pieces of the next packet; `is_hidden` says that its container shows none of them."""
        self.kinds = []
        if self._codec != "mpeg4":
            return [Piece(0, len(data), not is_hidden and _shows(data, self._codec))]
        if self._time_bits is None:
            self._time_bits = time_increment_bits(data)
        if self._time_bits is None:
            self.is_certain = False
            return [Piece(0, len(data), not is_hidden)]
        pictures = coded_pictures(data, time_bits=self._time_bits)
        if not pictures:
            # the empty packet that calls for the last picture of a packed group
            if self._one_waits:
                self._one_waits = False
                return []
            self._types_P.append(None)
            return [Piece(0, len(data), is_shown=False)]
        self.kinds = [kind for _, kind in pictures]
        self.is_packed |= len(pictures) > 1
        self.has_sprites |= SPRITE in self.kinds
        self._one_waits |= len(pictures) > 1
        self._types_P += [None if is_hidden else kind for _, kind in pictures]
        beginnings = [0, *(offset for offset, _ in pictures[1:]), len(data)]
        return [
            Piece(beginnings[number], beginnings[number + 1] - beginnings[number], not is_hidden, kind == BIDIRECTIONAL)
            for number, (_, kind) in enumerate(pictures)
        ]

    def order(self) -> np.ndarray | None:
        """The frame that each piece shows, -1 for none, where the kinds of the pictures show it;
        None where they do not."""
        if self._codec != "mpeg4" or not self.is_certain:
            return None
        types_P = self._types_P[:-1] + [None] if self._one_waits else self._types_P
        return presentation_order(types_P)


def _shows(data: bytes, codec: str) -> bool:
    """Whether a packet yields a visible frame; VP8 and VP9 know packets that only serve as
    reference.

    Source: RFC 6386 section 9.1 (show_frame is bit 4 of the frame tag); VP9 bitstream
    specification, uncompressed header and annex B (a superframe ends in a marker byte 110xxxxx and
    always shows its last frame).
    """
    if codec not in ("vp8", "vp9"):
        return True
    if codec == "vp8":
        return bool(data[0] >> 4 & 1)
    if data[-1] >> 5 == 0b110:
        return True
    bits = f"{data[0]:08b}"
    offset = 5 if bits[2:4] == "11" else 4  # profile 3 has one reserved bit more
    shows_existing, _, shown = bits[offset : offset + 3] if offset == 4 else bits[5:8]
    return "1" in (shows_existing, shown)
