"""A video file -> VideoIndex: what it really holds, from its packets and its first picture; headers are not believed.

Frame counts in headers are wrong or absent in many files, so frames are counted by their packets: packets that show nothing
(VP8/VP9 reference-only frames, frames that an edit list cuts, torn packets) are not counted. One picture is decoded, which
proves that the stream decodes at all and tells its true size, pixel format and orientation.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.format import Flags

from mats_ds.data.clock import clock_start, clock_start_of_counted, guessed_delay, slot_times
from mats_ds.data.containers import NotAVideoFormat, limit_pictures, open_container
from mats_ds.data.orientation import Orientation, orientation_of
from mats_ds.data.packets import PacketLog, PacketTable
from mats_ds.data.palette import PaletteLog
from mats_ds.data.pictures import PictureCounter

# What PyAV raises for a file that is not a sound video: FFmpeg's errors, metadata that is not text, absurd sizes.
READ_ERRORS = (FFmpegError, OSError, ValueError, IndexError, MemoryError)
MAX_CACHE_BYTES = 64 << 20


class UnreadableVideo(Exception):
    """A video, or the wanted part of it, cannot be read; `reason` says why in one line."""

    def __init__(self, reason: str) -> None:
        self.reason = " ".join(str(reason).split())[:300] or "unknown"
        super().__init__(self.reason)


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """What a file holds. F frames in presentation order, K keyframes in file order.

    pts_F: int64 time stamps in `time_base`, ascending; the frames' numbers where `trusts_pts` is false (frame numbers are
    then found by counting from the start: AVI stores no presentation times). keyframe_pts_K with keyframe_seek_K: where to
    seek to for each. width, height: of the coded picture. orientation: how the decoded picture is mirrored and turned to stand
    upright. clock_start: the time stamp in seconds at which the file's clock shows 0. slot_F: int64 time stamps of frames that
    are counted, where there are some. plain: every packet is one visible frame, so that any decoder numbers them alike.
    from_start: decoding must begin with the first packet, because later ones do not tell the colours. packets: where each
    frame's packet lies, for files that can be read without their container.
    """

    path: str
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    orientation: Orientation
    stream_index: int
    time_base: Fraction
    frame_rate: float
    pts_F: np.ndarray
    keyframe_pts_K: np.ndarray
    keyframe_seek_K: np.ndarray
    trusts_pts: bool
    plain: bool
    clock_start: Fraction
    slot_F: np.ndarray | None = None
    from_start: bool = False
    packets: PacketTable | None = None

    @property
    def num_frames(self) -> int:
        return len(self.pts_F)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the frames as they are delivered, upright."""
        return (self.width, self.height) if self.orientation.swaps_sides else (self.height, self.width)

    def seconds(self) -> np.ndarray:
        """Time of each frame on the file's clock, as players show it, float64 [F]."""
        times_F = self.pts_F if self.trusts_pts else self.slot_F
        if times_F is None:
            return np.arange(self.num_frames) / self.frame_rate - float(self.clock_start)
        start = self.clock_start / self.time_base
        if start.denominator == 1:  # in whole numbers as long as can be: time stamps may be large
            return (times_F - int(start)) * float(self.time_base)
        return times_F * float(self.time_base) - float(self.clock_start)

    def frame_seconds(self) -> float:
        """How long a frame usually lasts: the median of the times between frames."""
        steps = np.diff(self.seconds())
        return float(np.median(steps)) if len(steps) else 1.0 / self.frame_rate


def index_video(path: str) -> VideoIndex:
    """The index of a file; remembered until the file changes, within a fixed number of bytes.

    Raises UnreadableVideo for everything that is wrong with the file; that too is remembered.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise UnreadableVideo(describe_error(error)) from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise UnreadableVideo("a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    identity = (path, status.st_size, status.st_mtime_ns)
    known = _CACHE.get(identity)
    if known is None:
        try:
            known = _read_index(path, status.st_size)
        except UnreadableVideo as unreadable:
            known = unreadable.reason
        _CACHE.put(identity, known)
    if isinstance(known, str):
        raise UnreadableVideo(known)
    return known


def open_video(path: str, *, stream_index: int | None = None) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Container and video stream, on one decoding thread. Raises what PyAV raises; UnreadableVideo without a video stream."""
    container = open_container(path)
    try:
        stream = _choose_stream(container) if stream_index is None else container.streams[stream_index]
        if stream.codec_context is None:
            raise UnreadableVideo("no decoder for its video codec")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        limit_pictures(stream)
    except BaseException:
        container.close()
        raise
    return container, stream


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    streams = [stream for stream in container.streams.video if not _is_cover_art(stream)]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise UnreadableVideo(f"no video stream in it, only {', '.join(kinds) or 'nothing'}")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def _is_cover_art(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _read_index(path: str, num_bytes: int) -> VideoIndex:
    if num_bytes == 0:
        raise UnreadableVideo("the file is empty")
    try:
        container, stream = open_video(path)
    except READ_ERRORS as error:
        raise UnreadableVideo(describe_error(error)) from None
    with container, PacketLog(path, container, stream) as log:
        return _scan(path, container, stream, log)


def _scan(path: str, container: av.container.InputContainer, stream: av.VideoStream, log: PacketLog) -> VideoIndex:
    codec = stream.codec_context.name.removeprefix("lib").removeprefix("dav1d") or "av1"
    palettes = PaletteLog(codec)
    pictures = PictureCounter(codec, bytes(stream.codec_context.extradata or b""))
    pts: list[int | None] = []
    pts_P: list[int | None] = []  # None: not shown
    keys: list[tuple[int, int]] = []
    slots: list[int | None] = []
    num_packets = 0
    picture, problem = None, ""
    packets = container.demux(stream)
    # Asked for a keyframe's decoding time, a demuxer that goes by presentation times lands one keyframe too early.
    seek_by_pts = container.format.name.startswith("matroska") or container.format.flags & Flags.seek_to_pts.value > 0
    while True:
        try:
            packet = next(packets, None)
        except READ_ERRORS as error:  # the file breaks off: what lies before can be used
            problem = problem or describe_error(error)
            break
        if packet is None:
            break
        if picture is None:
            try:
                picture = next(iter(packet.decode()), None)
            except READ_ERRORS as error:
                problem = problem or describe_error(error)
        if not packet.size:
            continue
        if not num_packets:
            late_seconds = guessed_delay(container, packet)
        num_packets += 1
        palettes.add(packet)
        data = bytes(packet)
        pieces = pictures.split(data, is_hidden=packet.is_corrupt or packet.is_discard)
        log.add(packet, data, pieces)
        if not pieces or any(piece.is_shown for piece in pieces):
            slots.append(packet.dts)
        pts_P += [packet.pts if piece.is_shown else None for piece in pieces]
        shown = [packet.pts] * sum(piece.is_shown for piece in pieces)
        if shown and packet.is_keyframe and packet.pts is not None:
            keys.append((packet.pts, packet.pts if seek_by_pts or packet.dts is None else packet.dts))
        pts += shown
    if not pts:
        raise UnreadableVideo(problem or "no picture in its video stream")
    if picture is None:
        raise UnreadableVideo(problem or "not one picture of it decodes")
    reordered_avi = container.format.name == "avi" and stream.codec_context.has_b_frames
    trusts_pts = not reordered_avi and not pictures.is_packed and None not in pts and len(set(pts)) == len(pts)
    rate = stream.average_rate or stream.guessed_rate
    if trusts_pts:
        pts_F = np.sort(np.asarray(pts, np.int64))
        number_P = [-1 if time is None else place for time, place in zip(pts_P, _ranks(pts_F, pts_P), strict=True)]
    else:
        number_P = pictures.order()
        pts_F = np.arange(len(pts) if number_P is None else int((number_P >= 0).sum()))
    keys.sort()
    if trusts_pts:
        start = clock_start(container, pts_F[0].item() * stream.time_base, late_seconds=late_seconds)
    else:
        start = clock_start_of_counted(container, stream)
    slot_F = None if trusts_pts else slot_times(container, slots, len(pts_F))
    return VideoIndex(
        path=path,
        container=container.format.name,
        codec=codec,
        pixel_format=picture.format.name,
        width=picture.width,
        height=picture.height,
        orientation=orientation_of(picture),
        stream_index=stream.index,
        time_base=stream.time_base,
        frame_rate=float(rate) if rate else 25.0,
        pts_F=pts_F,
        keyframe_pts_K=np.asarray([key for key, _ in keys], np.int64),
        keyframe_seek_K=np.asarray([seek for _, seek in keys], np.int64),
        trusts_pts=trusts_pts,
        plain=trusts_pts and pictures.is_certain and num_packets == len(pts) and len(container.streams.video) == 1,
        clock_start=start,
        slot_F=slot_F,
        from_start=palettes.needs_start(picture),
        packets=log.table(number_P),
    )


def _ranks(pts_F: np.ndarray, pts_P: list[int | None]) -> list[int]:
    """The frame number of each packet by its time; 0 where it has none."""
    return np.searchsorted(pts_F, np.asarray([pts_F[0] if time is None else time for time in pts_P], np.int64)).tolist()


def describe_error(error: BaseException) -> str:
    """An error of PyAV or the system in words, without the path, which is told beside it."""
    if isinstance(error, UnreadableVideo):
        return error.reason
    if isinstance(error, NotAVideoFormat):
        return str(error)
    text = getattr(error, "strerror", None) or str(error)
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


class _Cache:
    """Indices by file identity, the least recently used dropped first; safe to share among threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[tuple[str, int, int], VideoIndex | str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, identity: tuple[str, int, int]) -> VideoIndex | str | None:
        with self._lock:
            if identity in self._entries:
                self._entries.move_to_end(identity)
            return self._entries.get(identity)

    def put(self, identity: tuple[str, int, int], entry: VideoIndex | str) -> None:
        with self._lock:
            if identity in self._entries:
                return
            self._entries[identity] = entry
            self._num_bytes += _size(entry)
            while self._num_bytes > self._max_bytes and len(self._entries) > 1:
                self._num_bytes -= _size(self._entries.popitem(last=False)[1])


def _size(entry: VideoIndex | str) -> int:
    if isinstance(entry, str):
        return 1024
    table = entry.packets.num_bytes if entry.packets else 0
    return 1024 + (1 if entry.slot_F is None else 2) * entry.pts_F.nbytes + 2 * entry.keyframe_pts_K.nbytes + table


_CACHE = _Cache(MAX_CACHE_BYTES)
