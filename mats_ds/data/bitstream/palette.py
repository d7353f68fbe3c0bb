"""Palette video (8-bit AVI and QuickTime): which packets bring colours, hence where decoding may
begin.

The pixels of such a video are numbers of colours. A demuxer hands the palette out once, beside the
first packet, and again only where the file changes it; a decoder that is positioned at a later
packet knows no colours and shows black.
"""

from __future__ import annotations

import av

PALETTE_FORMAT = "pal8"
# no packet refers to another
WHOLE_PICTURE_CODECS = frozenset(("rawvideo", "png", "bmp", "targa", "tiff"))


class PaletteLog:
    """Watches the packets of a stream as they come."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._changes = False

    def add(self, packet: av.Packet, *, is_first: bool) -> None:
        """The next packet that holds something and has side data; of others there is no need."""
        self._changes |= not is_first and packet.has_sidedata("palette")

    def needs_start(self, picture: av.VideoFrame) -> bool:
        """Whether a packet can be decoded only after all before it, for a video whose first picture
        is this one.

        Where pictures are whole and the palette stays, the first packet and then the wanted one are
        enough.
        """
        return is_palette(picture.format.name) and (self._changes or self._codec not in WHOLE_PICTURE_CODECS)


def is_palette(pixel_format: str) -> bool:
    """Whether decoded pictures of this format are numbers of colours."""
    return pixel_format == PALETTE_FORMAT
