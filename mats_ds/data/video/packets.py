"""Offsets of a video's packets in its file: with it, a clip is decoded without opening and
demuxing the container.

Only MP4/MOV and AVI keep packets in one piece, and only the headers of H.264 and MPEG-4 are read
here: which packets others refer to, so that the rest need not even be handed to the decoder. While
a file is indexed, every packet is compared with the bytes at its offset; one difference, and the
file is read through its container as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np

from mats_ds.core.shards.members import open_file
from mats_ds.data.bitstream.pictures import Piece

CONTAINERS = ("mov,mp4", "avi")
CODECS = ("h264", "mpeg4")
H264_SLICES = frozenset((1, 2, 5))
WINDOW_BYTES = 128 << 10  # read at once, to be compared with the packets that lie in it


@dataclass(frozen=True, eq=False)
class PacketTable:
    """P packets, or parts of them that hold one picture, in the order of decoding; F frames and K
    keyframes as they are shown.

    offset_P int64, size_P int32: bytes in the file. number_P int32: the frame that a packet shows,
    -1 for none. is_reference_P: whether other packets may need it. packet_F int32: the packet of
    each frame. keyframe_packet_K, keyframe_number_K int32.
    """

    codec: str
    extradata: bytes
    offset_P: np.ndarray
    size_P: np.ndarray
    number_P: np.ndarray
    is_reference_P: np.ndarray
    packet_F: np.ndarray
    keyframe_packet_K: np.ndarray
    keyframe_number_K: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Host memory of the table."""
        arrays = (self.offset_P, self.size_P, self.number_P, self.is_reference_P, self.packet_F)
        return sum(array.nbytes for array in arrays) + 2 * self.keyframe_packet_K.nbytes + len(self.extradata)


class PacketLog:
    """Notes the packets of a stream as they come; `suits` turns false with the first that is not
    read directly."""

    def __init__(self, path: str, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        context = stream.codec_context
        self._codec, self._extradata = context.name, bytes(context.extradata or b"")
        self.suits = container.format.name.startswith(CONTAINERS) and self._codec in CODECS
        # lengths before its units, parameters at the front: H.264 as MP4 has it
        if self._codec == "h264":
            self.suits = self.suits and self._extradata[:1] == b"\x01"
            self._length_size = (self._extradata[4] & 3) + 1 if len(self._extradata) > 4 else 0
        self._is_h264 = self._codec == "h264"
        self._file = open_file(path) if self.suits else None
        self._window, self._window_begins = b"", 0
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._references: list[bool] = []
        self._keyframes: list[bool] = []

    def __enter__(self) -> PacketLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(
        self, packet: av.Packet, data: bytes, pieces: Sequence[tuple[Piece, bool]], *, has_new_parameters: bool = False
    ) -> None:
        """Note the pieces of a packet, whose bytes are `data`, and whether decoding can begin with
        each; of H.264, whether one is disposable is read from them. has_new_parameters: those of
        the stream change with it.
        """
        if not self.suits:
            return
        position = packet.pos
        if position is None or position < 0 or packet.is_corrupt or has_new_parameters or not self._holds(data, position):
            self.suits = False
            return
        for number, (piece, is_key) in enumerate(pieces):
            self._offsets.append(position + piece.offset)
            self._sizes.append(piece.size)
            self._keyframes.append(is_key and number == 0)
            self._references.append(is_h264_reference(data, self._length_size) if self._is_h264 else not piece.is_disposable)

    def _holds(self, data: bytes, offset: int) -> bool:
        """Whether these bytes lie in the file from `offset` on."""
        begin = offset - self._window_begins
        if begin < 0 or begin + len(data) > len(self._window):
            self._window, self._window_begins, begin = self._file.pread(max(len(data), WINDOW_BYTES), offset), offset, 0
        return self._window.startswith(data, begin)

    def table(self, number_P: Sequence[int] | np.ndarray | None) -> PacketTable | None:
        """The table, given what each packet shows; None where the packets cannot be read
        directly."""
        if not self.suits or number_P is None:
            return None
        numbers = np.asarray(number_P, np.int32)
        shown = np.flatnonzero(numbers >= 0)
        packet_F = np.empty(len(shown), np.int32)
        packet_F[numbers[shown]] = shown
        keyframes = packet_F[np.asarray(self._keyframes)[packet_F]]
        if not len(keyframes):
            return None
        return PacketTable(
            codec=self._codec,
            extradata=self._extradata,
            offset_P=np.asarray(self._offsets, np.int64),
            size_P=np.asarray(self._sizes, np.int32),
            number_P=numbers,
            is_reference_P=np.asarray(self._references, bool),
            packet_F=packet_F,
            keyframe_packet_K=keyframes,
            keyframe_number_K=numbers[keyframes],
        )


def is_h264_reference(data: bytes, length_size: int) -> bool:
    """Whether another picture may refer to this one: nal_ref_idc of any of its slices. Source:
    ITU-T H.264, section 7.4.1."""
    offset, seen = 0, False
    while offset + length_size < len(data):
        size = int.from_bytes(data[offset : offset + length_size], "big")
        header = data[offset + length_size]
        if header & 31 in H264_SLICES:
            seen = True
            if header >> 5 & 3:
                return True
        offset += length_size + size
    return not seen  # what is not understood is kept
