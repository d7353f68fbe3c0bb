"""A video file, decoded once from its start -> what comes: each frame with its packet, time, kind
and checksum.

For files whose headers do not prove their frames (mats_ds.data.bitstream.stream_proof). Then, for
each key picture that came, decoding is begun at it and every frame up to the next one is compared
with the one of the pass from the start: only where all are equal, bit for bit, frames are later
read from there. Costs two decodings, once a file.

A frame is sound if it comes, is not marked corrupt, and no packet failed before it came since its
key picture. Packets that fail before the first frame comes belong to a picture that the file does
not hold: they are not counted and no fault.
"""

from __future__ import annotations

import bisect
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import av
import numpy as np

from mats_ds.data.video.containers import READ_ERRORS, describe_read_error
from mats_ds.data.video.packet_seek import KeyPacket, SeekTable, checksum_of, make_seek_table, read_by_key_packets

BEAT_SECONDS = 1.0
MIN_ASCENDING = 0.9  # of the time stamps, for them to be trusted
MIN_KEY_DISTANCE = 24  # frames: nearer key pictures save nothing
Opened = tuple[av.container.InputContainer, av.VideoStream]


@dataclass(eq=False)
class Recording:
    """F frames in the order in which they came, P packets that hold something.

    packet_F: the packet of each frame. pts_F: its time stamp in the file, None where it has none.
    problem: the first error, met when `problem_at` frames had come; first_error: one that may have
    come before all frames. num_silent: packets up to the one whose frame came first. torn_packets:
    those that their container marks as incomplete.
    """

    packet_F: list[int] = field(default_factory=list)
    pts_F: list[int | None] = field(default_factory=list)
    is_sound_F: list[bool] = field(default_factory=list)
    is_key_F: list[bool] = field(default_factory=list)
    checksum_F: list[int] = field(default_factory=list)
    num_packets: int = 0
    num_silent: int = 0
    num_interlaced: int = 0
    torn_packets: set[int] = field(default_factory=set)
    first: av.VideoFrame | None = None
    problem: str = ""
    problem_at: int = 0
    first_error: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.packet_F)

    def fail(self, problem: str) -> None:
        """Note the first error."""
        self.first_error = self.first_error or problem
        if not self.problem and self.num_frames:
            self.problem, self.problem_at = problem, self.num_frames


def record(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    *,
    checks_pictures: bool = False,
    on_beat: Callable[[], None] = lambda: None,
    on_packet: Callable[[int, av.Packet], None] = lambda number, packet: None,
) -> Recording:
    """Decode all of a freshly opened file. `checks_pictures`: take a checksum of each. `on_beat`:
    called once a second."""
    recorded = Recording()
    pts_P: list[int | None] = []
    failed_at: int | None = None  # the packet that failed; None again with the next key picture
    beat_seconds = time.monotonic()
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except READ_ERRORS as error:  # what lies behind cannot be read
            recorded.fail(describe_read_error(error))
            break
        if packet is None:
            break
        if packet.size:
            on_packet(recorded.num_packets, packet)
            if packet.is_corrupt:
                recorded.torn_packets.add(recorded.num_packets)
            pts_P.append(packet.pts)
            packet.pts = recorded.num_packets
            recorded.num_packets += 1
        try:
            frames = packet.decode()
        except READ_ERRORS as error:
            recorded.fail(describe_read_error(error))
            if recorded.num_frames:
                failed_at = recorded.num_packets - 1
            continue
        for frame in frames:
            source = -1 if frame.pts is None else frame.pts
            if recorded.first is None:
                recorded.first, recorded.num_silent = frame, max(source, 0)
            if failed_at is not None and frame.key_frame and source > failed_at:
                failed_at = None
            if frame.is_corrupt:
                recorded.fail("a frame is corrupt")
            recorded.is_sound_F.append(not frame.is_corrupt and failed_at is None)
            recorded.packet_F.append(source)
            recorded.pts_F.append(pts_P[source] if 0 <= source < len(pts_P) else None)
            recorded.is_key_F.append(bool(frame.key_frame))
            recorded.num_interlaced += bool(frame.interlaced_frame)
            if checks_pictures:
                recorded.checksum_F.append(checksum_of_picture(frame))
        if time.monotonic() - beat_seconds > BEAT_SECONDS:
            beat_seconds = time.monotonic()
            on_beat()
    return recorded


def drop_torn_end(recorded: Recording) -> None:
    """Take away the last frames if their packets are torn: a file that breaks off ends with its
    last complete one."""
    while recorded.packet_F and recorded.packet_F[-1] in recorded.torn_packets and not recorded.is_sound_F[-1]:
        for column in (recorded.packet_F, recorded.pts_F, recorded.is_sound_F, recorded.is_key_F, recorded.checksum_F):
            del column[-1:]


def checksum_of_picture(frame: av.VideoFrame) -> int:
    """A checksum of the pixels; of what lies beside them in memory only in formats that are rarely
    met."""
    checksum = 0
    for plane in frame.planes:
        lines = np.frombuffer(plane, np.uint8)
        if plane.height and len(lines) >= plane.height * plane.line_size and frame.format.is_planar:
            lines = lines[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
            depth = (frame.format.components[0].bits + 7) // 8
            lines = np.ascontiguousarray(lines[:, : plane.width * depth])
        checksum = zlib.crc32(lines, checksum)
    return checksum


def times_of(recorded: Recording) -> np.ndarray | None:
    """int64 [F]: the time stamps of the frames, ascending; None where they are no times.

    The few frames without one, or with one that does not follow that of the frame before, lie
    evenly between the others.
    """
    stamped = [(number, pts) for number, pts in enumerate(recorded.pts_F) if pts is not None]
    kept = _longest_ascent([pts for _, pts in stamped])
    if len(kept) < max(1, MIN_ASCENDING * len(stamped)) or (len(kept) < 2 and recorded.num_frames > 1):
        return None
    known, stamps = np.asarray([stamped[index] for index in kept], np.int64).T
    numbers = np.arange(recorded.num_frames)
    # Small numbers, since interpolation is done in floating point.
    filled = np.interp(numbers, known, stamps - stamps[0])
    if len(known) > 1:
        before, behind = numbers < known[0], numbers > known[-1]
        steps = np.diff(stamps) / np.diff(known)
        filled[before] = (numbers[before] - known[0]) * steps[0]
        filled[behind] = stamps[-1] - stamps[0] + (numbers[behind] - known[-1]) * steps[-1]
    pts_F = stamps[0] + np.round(filled).astype(np.int64)
    return pts_F if (np.diff(pts_F) > 0).all() else None


def _longest_ascent(stamps: list[int]) -> list[int]:
    """Indices of a longest strictly ascending part."""
    ends: list[int] = []  # of each length, the smallest last stamp so far
    indices: list[int] = []
    before = [-1] * len(stamps)
    for index, stamp in enumerate(stamps):
        length = bisect.bisect_left(ends, stamp)
        before[index] = indices[length - 1] if length else -1
        ends[length : length + 1], indices[length : length + 1] = [stamp], [index]
    chain, index = [], indices[-1] if indices else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]


class KeyLog:
    """Notes the packets that decoding might begin at: those that their container, or their header,
    calls key pictures."""

    def __init__(self, by_header: set[int]) -> None:
        self._by_header = by_header
        self.found: dict[int, KeyPacket] = {}

    def add(self, number: int, packet: av.Packet) -> None:
        """Note a packet, if it is one."""
        if packet.is_keyframe or number in self._by_header:
            self.found[number] = key_packet(number, packet, bytes(packet))


def key_packet(number: int, packet: av.Packet, data: bytes) -> KeyPacket:
    """The marks that identify a packet; its frame is not known yet."""
    seek = packet.pts if packet.dts is None else packet.dts
    offset = packet.pos if packet.pos is not None and packet.pos >= 0 else None
    return KeyPacket(number, -1, offset, seek, len(data), checksum_of(data))


def find_seek_table(
    recorded: Recording,
    log: KeyLog,
    open_it: Callable[[], Opened],
    *,
    container: str,
) -> SeekTable | None:
    """The key packets that frames can be read from. None where the packets of frames are unknown:
    then only by counting."""
    if -1 in recorded.packet_F:
        return None
    number_P = np.full(recorded.num_packets, -1, np.int32)
    for number in range(recorded.num_frames - 1, -1, -1):
        number_P[recorded.packet_F[number]] = number
    candidates: list[KeyPacket] = []
    for number, packet in enumerate(recorded.packet_F):
        key = log.found.get(packet)
        near = number - (candidates[-1].number if candidates else 0) < MIN_KEY_DISTANCE
        if key is not None and recorded.is_key_F[number] and recorded.is_sound_F[number] and not near:
            candidates.append(KeyPacket(packet, number, key.offset, key.seek, key.size, key.checksum))
    table = make_seek_table(number_P, candidates, container=container, skips=False)
    ends = [*table.first_number_K[1:].tolist(), recorded.num_frames]
    packet_K = table.packet_K.copy()
    for key in range(1, len(packet_K)):
        numbers = np.arange(table.first_number_K[key], ends[key])
        if not _agrees(recorded, table, open_it, numbers):
            packet_K[key] = -1
    return SeekTable(**{**vars(table), "packet_K": packet_K})


def _agrees(recorded: Recording, table: SeekTable, open_it: Callable[[], Opened], numbers: np.ndarray) -> bool:
    """Whether the frames from a key packet on are those of the pass from the start."""
    differ: list[int] = []

    def compare(number: int, frame: av.VideoFrame) -> None:
        if checksum_of_picture(frame) != recorded.checksum_F[number]:
            differ.append(number)

    try:
        return not read_by_key_packets(open_it, table, numbers, compare) and not differ
    except READ_ERRORS:
        return False
