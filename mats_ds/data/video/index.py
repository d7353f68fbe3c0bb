"""The index of a video file: frames with their times, key pictures, orientation; and a cache of
it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mats_ds.data.video.orientation import Orientation
from mats_ds.data.video.packet_seek import SeekTable
from mats_ds.data.video.packets import PacketTable


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The index of a file: F frames in presentation order, K keyframes in file order.

    pts_F: int64 time stamps in `time_base`, ascending; the frames' numbers where `trusts_pts` is
    false (frame numbers are then found by counting from the start: AVI stores no presentation
    times). keyframe_pts_K with keyframe_seek_K: where to seek to for each. width, height: of the
    coded picture. orientation: how the decoded picture is mirrored and turned to stand upright.
    clock_start: the time stamp in seconds at which the file's clock shows 0. slot_F: int64 time
    stamps of frames that are counted, where there are some. plain: every packet is one visible
    frame, so that any decoder numbers them alike.
    from_start: decoding must begin with the first packet, because later ones do not bring the
    colours. packets: where each frame's packet lies, for files that can be read without their
    container. seek_table: the key packets to seek to in a file whose times do not serve for it.
    doubt: why the headers do not prove the frames, so that the file was decoded once; "" where they
    do. is_sound_F: which frames came undamaged in that decoding. num_stored: packets that ought to
    show a frame, without those before the first that does.
    num_silent: packets before that one, silent_seconds: their time. is_interlaced: of the first
    picture, or of any where all were decoded; two fields come woven, as they are coded.
    num_bytes: of the file. coded_height, coded_width: of the picture before its edges are cut off.
    profile: FFmpeg's name. colour_space, colour_range: FFmpeg's numbers (ITU-T H.273: 2 of the
    first is not stated; range 2 is full). device_doubt: why another decoder than FFmpeg's may give
    other frames though `plain`; "" where nothing speaks for it.
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
    seek_table: SeekTable | None = None
    doubt: str = ""
    is_sound_F: np.ndarray | None = None
    num_stored: int = 0
    num_silent: int = 0
    silent_seconds: float = 0.0
    is_interlaced: bool = False
    num_bytes: int = 0
    num_video_streams: int = 1
    coded_height: int = 0
    coded_width: int = 0
    profile: str = ""
    colour_space: int = 2
    colour_range: int = 0
    device_doubt: str = ""

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
        """The usual duration of a frame: the median of the times between frames."""
        steps = np.diff(self.seconds())
        return float(np.median(steps)) if len(steps) else 1.0 / self.frame_rate


class IndexCache:
    """Indices by file identity, the least recently used dropped first; safe to share among
    threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[tuple[str, int, int, int], VideoIndex | str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, identity: tuple[str, int, int, int]) -> VideoIndex | str | None:
        with self._lock:
            if identity in self._entries:
                self._entries.move_to_end(identity)
            return self._entries.get(identity)

    def put(self, identity: tuple[str, int, int, int], entry: VideoIndex | str) -> None:
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
    tables = sum(table.num_bytes for table in (entry.packets, entry.seek_table) if table is not None)
    sound = 0 if entry.is_sound_F is None else entry.is_sound_F.nbytes
    return 1024 + (1 if entry.slot_F is None else 2) * entry.pts_F.nbytes + 2 * entry.keyframe_pts_K.nbytes + sound + tables
