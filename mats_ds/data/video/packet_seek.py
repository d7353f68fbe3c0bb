"""Frame numbers -> pictures where times cannot be sought: the demuxer is led to a known packet, and
packets are counted from it.

Program and transport streams find a time only roughly, and their packets have few times of their
own. So a key packet is known by its byte offset in the file, its size and a checksum. After a seek
everything before it is thrown away unread; if it does not come, the file is read (not decoded) from
its start up to it. From there on every packet is handed to the decoder with its number as its time,
and so the packet of each picture that comes out is known, hence its frame.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.error import FFmpegError

# Demuxers that find a byte of the file exactly, but a time only roughly or not at all.
SOUGHT_BY_BYTE = frozenset(("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "vc1", "cavsvideo"))
MAX_PASSED = 256  # packets from the one that a seek finds to the one that is wanted
FROM_START = -1
Opened = tuple[av.container.InputContainer, av.VideoStream]


@dataclass(frozen=True, eq=False)
class SeekTable:
    """P packets in the order of the file; K key packets that decoding begins at, by ascending first
    frame.

    number_P int32: the first frame that a packet shows, -1 for none. first_number_K int32: a key
    packet serves the frames from this one up to the next key packet's. packet_K int32, -1: these
    are decoded from the start of the file. offset_K, seek_K int64: its byte in the file, its time;
    size_K int32 and checksum_K int64: of its bytes. skips: whether packets that no other refers to
    may be left out.
    """

    number_P: np.ndarray
    first_number_K: np.ndarray
    packet_K: np.ndarray
    offset_K: np.ndarray
    seek_K: np.ndarray
    size_K: np.ndarray
    checksum_K: np.ndarray
    by_byte: bool
    skips: bool = False

    @property
    def num_bytes(self) -> int:
        """Host memory of the table."""
        arrays = (self.number_P, self.first_number_K, self.packet_K, self.offset_K, self.seek_K, self.size_K, self.checksum_K)
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class KeyPacket:
    """The marks that identify a packet. seek: a time stamp of it, None where it has none."""

    packet: int
    number: int
    offset: int | None
    seek: int | None
    size: int
    checksum: int


def checksum_of(data: bytes) -> int:
    """A checksum by which a packet is known again."""
    return zlib.crc32(data)


def make_seek_table(number_P: np.ndarray, keys: list[KeyPacket], *, container: str, skips: bool) -> SeekTable:
    """The table of these key packets; those that nothing tells from another, or that cannot be
    sought, are left out."""
    by_byte = container in SOUGHT_BY_BYTE
    known = [(key.offset, key.size, key.checksum) for key in keys]
    usable = [
        key
        for key, mark in zip(keys, known, strict=True)
        if known.count(mark) == 1 and (key.offset if by_byte else key.seek) is not None and key.packet > 0
    ]
    usable.sort(key=lambda key: key.number)

    def column(name: str, kind: type) -> np.ndarray:
        values = [getattr(key, name) for key in usable]
        return np.asarray([-1 if value is None else value for value in values], kind)

    return SeekTable(
        number_P=np.asarray(number_P, np.int32),
        first_number_K=np.asarray([0, *column("number", np.int32)], np.int32),
        packet_K=np.asarray([FROM_START, *column("packet", np.int32)], np.int32),
        offset_K=np.asarray([0, *column("offset", np.int64)], np.int64),
        seek_K=np.asarray([0, *column("seek", np.int64)], np.int64),
        size_K=np.asarray([0, *column("size", np.int32)], np.int32),
        checksum_K=np.asarray([0, *column("checksum", np.int64)], np.int64),
        by_byte=by_byte,
        skips=skips,
    )


def read_by_key_packets(
    open_it: Callable[[], Opened], table: SeekTable, wanted: np.ndarray, take: Callable[[int, av.VideoFrame], None]
) -> set[int]:
    """Hand the frames `wanted` (ascending) to `take` with their numbers; returns those that did not
    come.

    A packet that does not decode is passed over, as it was when the table was made.
    """
    key_of = np.searchsorted(table.first_number_K, wanted, side="right") - 1
    key_of[table.packet_K[key_of] == FROM_START] = 0
    missing: set[int] = set()
    container = None
    try:
        for key in np.unique(key_of).tolist():
            numbers = set(wanted[key_of == key].tolist())
            if container is None or table.packet_K[key] == FROM_START:
                if container is not None:
                    container.close()
                container, stream = open_it()
            packets = _packets_from(container, stream, table, key)
            if packets is None:  # the seek has missed it
                container.close()
                container, stream = open_it()
                packets = _packets_by_counting(container, stream, int(table.packet_K[key]))
            _decode(packets, stream, table, numbers, take)
            missing |= numbers
    finally:
        if container is not None:
            container.close()
    return missing


def _decode(packets: Iterator, stream: av.VideoStream, table: SeekTable, numbers: set[int], take: Callable) -> None:
    """Takes the frames that come out of `numbers`."""
    last = max(numbers)
    previous = None
    for ordinal, packet in packets:
        if packet.size:
            packet.pts = ordinal
            if table.skips:
                stream.codec_context.skip_frame = "DEFAULT" if table.number_P[ordinal] in numbers else "NONREF"
        try:
            frames = packet.decode()
        except FFmpegError:
            continue
        for frame in frames:
            number = number_of(frame, table.number_P, previous)
            previous = number
            if number in numbers:
                numbers.remove(number)
                take(number, frame)
        if not numbers or (previous is not None and previous > last):
            break
    stream.codec_context.skip_frame = "DEFAULT"


def number_of(frame: av.VideoFrame, number_P: np.ndarray, previous: int | None) -> int:
    """The number of a frame whose time is the number of its packet; of several from one packet, the
    later count on."""
    number = -1 if frame.pts is None or not 0 <= frame.pts < len(number_P) else int(number_P[frame.pts])
    return previous + 1 if previous is not None and number <= previous else number


def _packets_from(container, stream: av.VideoStream, table: SeekTable, key: int) -> Iterator | None:
    """(number, packet) from a key packet on, by seeking; None where it did not come."""
    if table.packet_K[key] == FROM_START:
        return _numbered(container.demux(stream), 0)
    try:
        if table.by_byte:
            container.seek(int(table.offset_K[key]), stream=stream, unsupported_byte_offset=True)
        else:
            container.seek(int(table.seek_K[key]), stream=stream, backward=True)
        demuxed = container.demux(stream)
        for _ in range(MAX_PASSED):
            packet = next(demuxed)
            is_there = packet.size == table.size_K[key] and packet.pos in (table.offset_K[key], None)
            if is_there and checksum_of(bytes(packet)) == table.checksum_K[key]:
                return _numbered(demuxed, int(table.packet_K[key]), first=packet)
    except (StopIteration, FFmpegError):
        pass
    return None


def _packets_by_counting(container, stream: av.VideoStream, packet_number: int) -> Iterator:
    """(number, packet) from a packet on, all before it read and thrown away."""
    return (pair for pair in _numbered(container.demux(stream), 0) if pair[0] >= packet_number)


def _numbered(demuxed: Iterator, number: int, first: av.Packet | None = None) -> Iterator:
    """Packets that hold something, counted from `number` on; the empty one at the end has the
    number behind the last."""
    if first is not None:
        yield number, first
        number += 1
    while True:
        try:
            packet = next(demuxed, None)
        except FFmpegError:  # the file breaks off here
            return
        if packet is None:
            return
        yield number, packet
        number += packet.size > 0
