"""The sliding windows of videos, in order, as batches of clips; every frame is decoded once and
held while a window still needs it.

Window t lasts from `origin + t * hop` to `origin + t * hop + window` seconds on the video's clock;
`origin` is 0, or the `start` of the manifest's row. Its T frames are those that a player shows at T
moments spread evenly over it, so that frame rates may differ or vary. Windows lie wholly in the
video: what is left behind the last one is shorter than a hop. A video that is shorter than a window
has one, whose last frames repeat the video's last frame.

Legend: W windows, T frames of a window, B windows of a batch.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np

from mats_ds.core.clips import ClipSpec, CropSpec
from mats_ds.data.video.clip_frames import ClipCropper
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import allowed_range, shown_at, visit_frames
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import index_video
from mats_ds.evaluation.features.extract_options import WindowTimes

WAITING_BATCHES = 2  # of each video that is read
PUT_SECONDS = 0.2
SAME_SECONDS = 1e-6


@dataclass(frozen=True, eq=False)
class VideoWindows:
    """The windows of one video. numbers_WT: int64, the frame numbers of each; duration_seconds:
    from the origin to the end of the last frame."""

    index: VideoIndex
    numbers_WT: np.ndarray
    origin_seconds: float
    duration_seconds: float

    @property
    def fps(self) -> float:
        """Frames a second, the mean from the first frame to the last one."""
        seconds_F = self.index.seconds()
        lasts = float(seconds_F[-1] - seconds_F[0])
        return (len(seconds_F) - 1) / lasts if lasts > 0 else self.index.frame_rate


def plan_windows(
    path: str, times: WindowTimes, *, num_frames: int, first_seconds: float | None = None, last_seconds: float | None = None
) -> VideoWindows:
    """The windows of a file, or of the part of it from `first_seconds` to `last_seconds`. Raises
    UnreadableVideo."""
    index = index_video(path)
    part = ClipSpec(path, 0, num_frames, 1, 0.0, first_seconds=first_seconds, last_seconds=last_seconds)
    first, end = allowed_range(part, index)
    seconds_F = index.seconds()
    origin = 0.0 if first_seconds is None else first_seconds
    duration = float(seconds_F[end - 1]) + index.frame_seconds() - origin
    num_windows = max(1, math.floor((duration - times.window_seconds) / times.hop_seconds + SAME_SECONDS) + 1)
    moments_T = np.arange(num_frames) * times.window_seconds / num_frames
    moments_WT = origin + np.arange(num_windows)[:, None] * times.hop_seconds + moments_T
    return VideoWindows(index, first + shown_at(seconds_F[first:end], moments_WT), origin, duration)


def read_windows(windows: VideoWindows, *, size: tuple[int, int], give: Callable[[np.ndarray], None]) -> None:
    """Hand every window in order to `give`, uint8 [T, height, width, 3]: the centre crop that fills
    the shorter side, scaled to `size`.

    Holds the frames of one window's time, not more. Raises UnreadableVideo where a frame does not
    come; the windows before it were given.
    """
    index = windows.index
    cropper = ClipCropper(np.zeros(1, np.int64), CropSpec(), index=index, size=size)

    def convert(frame: av.VideoFrame) -> np.ndarray:
        cropper.take(0, frame)
        return cropper.frames()[0].copy()

    collector = _Collector(windows.numbers_WT, convert, give)
    visit_frames(index.path, windows.numbers_WT.reshape(-1), index=index, take=collector.take)
    if not collector.is_done:
        raise UnreadableVideo("frames of it did not come")


class _Collector:
    """Frames as they come -> windows. A decoding that fails and begins anew, by another way, gives
    the same frames: those of finished windows are passed over."""

    def __init__(
        self, numbers_WT: np.ndarray, convert: Callable[[av.VideoFrame], np.ndarray], give: Callable[[np.ndarray], None]
    ) -> None:
        self._numbers, self._convert, self._give = numbers_WT.tolist(), convert, give
        self._frames: dict[int, np.ndarray] = {}
        self._next = 0
        self._missing = set(self._numbers[0])

    @property
    def is_done(self) -> bool:
        return self._next == len(self._numbers)

    def take(self, number: int, frame: av.VideoFrame) -> None:
        """Keep a frame; give the windows that are now whole."""
        if self.is_done or number < self._numbers[self._next][0]:
            return
        self._frames[number] = self._convert(frame)
        self._missing.discard(number)
        while not self._missing:
            self._give(np.stack([self._frames[number] for number in self._numbers[self._next]]))
            self._next += 1
            if self.is_done:
                self._frames.clear()
                return
            first, *_ = wanted = self._numbers[self._next]
            for passed in [number for number in self._frames if number < first]:
                del self._frames[passed]
            self._missing = {number for number in wanted if number not in self._frames}


@dataclass(frozen=True)
class VideoPart:
    """A row of a manifest."""

    row: int
    path: str
    first_seconds: float | None
    last_seconds: float | None


class VideoStream:
    """One video that a thread reads: `windows`, then its batches; any of them may raise
    UnreadableVideo."""

    def __init__(self, part: VideoPart) -> None:
        self.part = part
        self.items: queue.Queue = queue.Queue(WAITING_BATCHES)
        self._windows: VideoWindows | None = None

    def windows(self) -> VideoWindows:
        """What the video's windows are, known before the first is decoded."""
        if self._windows is None:
            self._windows = self._get()
        return self._windows

    def batches(self) -> Iterator[np.ndarray]:
        """uint8 [B, T, height, width, 3], in order."""
        self.windows()
        while (batch := self._get()) is not None:
            yield batch

    def _get(self):
        item = self.items.get()
        if isinstance(item, BaseException):
            raise item
        return item


def stream_windows(
    parts: Sequence[VideoPart],
    times: WindowTimes,
    *,
    num_frames: int,
    size: tuple[int, int],
    micro_batch: int,
    num_threads: int,
) -> Iterator[VideoStream]:
    """The videos in their order, each read by a thread of its own, `num_threads` at a time. What
    the caller leaves of one is dropped when it asks for the next."""
    stop = threading.Event()
    waiting = deque(VideoStream(part) for part in parts)
    running: deque[tuple[VideoStream, threading.Event]] = deque()

    def read(stream: VideoStream, dropped: threading.Event) -> None:
        def put(item: object) -> None:
            while not (stop.is_set() or dropped.is_set()):
                with contextlib.suppress(queue.Full):
                    return stream.items.put(item, timeout=PUT_SECONDS)
            raise _Dropped

        batch: list[np.ndarray] = []

        def give(frames_THWC: np.ndarray) -> None:
            batch.append(frames_THWC)
            if len(batch) == micro_batch:
                put(np.stack(batch))
                batch.clear()

        part = stream.part
        try:
            try:
                limits = dict(first_seconds=part.first_seconds, last_seconds=part.last_seconds)
                windows = plan_windows(part.path, times, num_frames=num_frames, **limits)
                put(windows)
                read_windows(windows, size=size, give=give)
                if batch:
                    put(np.stack(batch))
                put(None)
            except Exception as error:  # raised again where the batches are used
                put(error)
        except _Dropped:
            pass

    def start() -> None:
        stream, dropped = waiting.popleft(), threading.Event()
        running.append((stream, dropped))
        threading.Thread(target=read, args=(stream, dropped), daemon=True).start()

    try:
        while waiting or running:
            while waiting and len(running) < max(1, num_threads):
                start()
            stream, dropped = running[0]
            yield stream
            dropped.set()
            running.popleft()
    finally:
        stop.set()


class _Dropped(BaseException):
    """Nobody wants the rest of this video; no `except Exception` of a decoder stops it."""
