"""Packets of a stream -> what their headers prove: which frame each shows, and where decoding can
begin. Nothing is decoded.

Containers are not believed: a file without a list of sync samples marks every packet as a key
picture, a stream that was cut begins with pictures that never come, fields come as packets of their
own. A stream whose every header agrees with that one packet is one frame, that it begins with a key
picture, and that the decoder waits long enough to put the frames in order, is counted and sought by
its headers. Of any other one `doubt` says why not, and it is decoded once from its start
(mats_ds.data.video.recording).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import av
import numpy as np

from mats_ds.data.bitstream.bits import BrokenHeader
from mats_ds.data.bitstream.coded_picture import CodedPicture
from mats_ds.data.bitstream.h264 import H264Reader
from mats_ds.data.bitstream.hevc import HevcReader
from mats_ds.data.bitstream.mpeg2 import Mpeg2Reader
from mats_ds.data.bitstream.mpeg4 import INTRA, VOP_START
from mats_ds.data.bitstream.open_codecs import Av1Reader, IntraReader, Vp8Reader, Vp9Reader
from mats_ds.data.bitstream.pictures import PictureCounter, Piece


class Reader(Protocol):
    """Reads the headers of one codec; num_reorder: how many pictures the stream says that wait at
    most. device_doubt: as StreamProof has it."""

    num_reorder: int | None
    device_doubt: str

    def read(self, data: bytes) -> CodedPicture: ...


READERS = {
    "h264": H264Reader,
    "hevc": HevcReader,
    "mpeg1video": Mpeg2Reader,
    "mpeg2video": Mpeg2Reader,
    "vp8": Vp8Reader,
    "vp9": Vp9Reader,
    "av1": Av1Reader,
}


class StreamProof:
    """Takes the packets of a stream as they come (`add`), then gives their order (`order`).

    doubt: why the headers do not prove how many frames come and where decoding can begin; "" as
    long as they do.
    is_packed: whether a packet held several pictures (MPEG-4 of the DivX family).
    """

    def __init__(self, codec: str, stream: av.VideoStream) -> None:
        context = stream.codec_context
        extradata = bytes(context.extradata or b"")
        self.doubt = ""
        self._codec = codec
        self._known_delay = getattr(context, "reorder_depth", int(bool(context.has_b_frames)))
        self._counter = PictureCounter(codec, extradata)
        self._reader: Reader | None = None
        # None: of a packet without one, or one that is not understood
        self._pictures: list[CodedPicture | None] = []
        self._num_pictures = 0
        if codec != "mpeg4":
            self._reader = self._choose_reader(codec, extradata, context)

    def _choose_reader(self, codec: str, extradata: bytes, context: av.CodecContext) -> Reader | None:
        try:
            if codec in READERS:
                return READERS[codec](extradata)
            if context.codec.intra_only:
                return IntraReader(extradata)
            self.doubt = f"headers of {codec} are not read"
        except (BrokenHeader, IndexError):
            self.doubt = "the parameters of the stream are not understood"
        return None

    @property
    def is_packed(self) -> bool:
        return self._counter.is_packed

    @property
    def device_doubt(self) -> str:
        """Why another decoder than FFmpeg's may show other pictures, though each packet is one; ""
        where nothing speaks for it."""
        if self._reader is not None:
            return self._reader.device_doubt
        return "global motion" if self._counter.has_sprites else ""

    def add(self, data: bytes, *, is_hidden: bool, is_corrupt: bool) -> list[tuple[Piece, bool]]:
        """The pieces of the next packet, and whether decoding can begin with each; `is_hidden`: its
        container shows none."""
        if is_corrupt:
            self.refuse("a packet is torn")
        is_hidden = is_hidden or is_corrupt
        if self._codec == "mpeg4":
            return self._judge_mpeg4(data, self._counter.split(data, is_hidden=is_hidden))
        picture = None
        if self._reader is not None:
            try:
                picture = self._reader.read(data)
            except BrokenHeader as broken:
                self.refuse(str(broken))
            except IndexError:
                self.refuse("a header ends too early")
        if picture is not None and not self._num_pictures and not picture.is_key:
            self.refuse("it does not begin with a key picture")
        self._num_pictures += picture is not None
        self._pictures.append(picture)
        if picture is None:
            return [(self._counter.split(data, is_hidden=is_hidden)[0], False)]
        return [(Piece(0, len(data), not is_hidden and picture.is_shown), picture.is_key)]

    def _judge_mpeg4(self, data: bytes, pieces: list[Piece]) -> list[tuple[Piece, bool]]:
        if VOP_START not in data and len(data) > 1:
            self.refuse("a packet is not one picture")
        kinds = self._counter.kinds
        if kinds and not self._num_pictures and kinds[0] != INTRA:
            self.refuse("it does not begin with a key picture")
        self._num_pictures += len(kinds)
        kinds = [*kinds, *[None] * (len(pieces) - len(kinds))]
        return [(piece, kind == INTRA) for piece, kind in zip(pieces, kinds, strict=True)]

    def refuse(self, doubt: str) -> None:
        """Note a doubt; the first one stays."""
        self.doubt = self.doubt or doubt

    def order(self, is_shown_P: Sequence[bool]) -> np.ndarray | None:
        """The frame that each piece shows by its headers, int64 [P], -1 for none; None where they
        do not show it."""
        if self._codec == "mpeg4":
            if not self._counter.is_certain:
                self.refuse("the parameters of the stream are not understood")
            return self._counter.order()
        if self.doubt or None in self._pictures:
            self.refuse("no picture in its headers")
            return None
        order_P = sorted(range(len(self._pictures)), key=lambda index: self._pictures[index][:2])
        self._check_order(np.asarray(order_P, np.int64))
        shown_P = np.asarray(is_shown_P, bool)
        number_P = np.full(len(order_P), -1, np.int64)
        shown_in_order = np.asarray(order_P, np.int64)[shown_P[order_P]]
        number_P[shown_in_order] = np.arange(len(shown_in_order))
        return number_P

    def _check_order(self, packet_F: np.ndarray) -> None:
        """packet_F: the packets in the order in which they are shown."""
        if not len(packet_F):
            return
        if packet_F[0] != 0:
            self.refuse("pictures are shown before its first key picture")
        in_order = [self._pictures[index] for index in packet_F.tolist()]
        if any(earlier[:2] == later[:2] for earlier, later in zip(in_order, in_order[1:], strict=False)):
            self.refuse("two pictures are shown at once")
        if self._codec == "hevc" and _has_gaps(in_order):
            self.refuse("pictures are missing")
        needed = int((np.maximum.accumulate(packet_F) - np.arange(len(packet_F))).max())
        if self._codec in ("h264", "hevc") and needed > max(self._known_delay, self._reader.num_reorder or 0):
            self.refuse(f"pictures wait for {needed} others, its header says fewer")


def _has_gaps(pictures: Sequence[CodedPicture]) -> bool:
    """Whether the counters of pictures shown one after the other do not rise evenly, as in a stream
    that has lost some."""
    pairs = zip(pictures, pictures[1:], strict=False)
    return len({later.order - earlier.order for earlier, later in pairs if later.epoch == earlier.epoch}) > 1
