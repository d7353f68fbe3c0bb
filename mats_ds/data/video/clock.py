"""The clock of a video file: where, on the time stamps of its streams, players show 0 s.

Players count from the earliest picture or sound: FFmpeg's `start_time` of the container, to which
its `-ss` and `-t` refer too. A transport stream may begin at 26 hours, pictures may begin seconds
after the sound. MP4's edit lists are applied by FFmpeg before.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

TICK = Fraction(1, av.time_base)  # FFmpeg gives the container's start in microseconds, rounded


def clock_start(
    container: av.container.InputContainer, first_seconds: Fraction, *, late_seconds: Fraction = Fraction(0)
) -> Fraction:
    """The time stamp, in seconds, at which the clock shows 0; `first_seconds` is that of the first
    frame of the video.

    late_seconds: by how much all time stamps of the video are late (`guessed_delay`).

    Exact where a stream begins there. Never after the first frame: the leading pictures of an open
    group are shown before the key picture by whose packet FFmpeg takes the start. Where FFmpeg
    knows no start, the first frame is it.
    """
    if container.start_time is None:
        return first_seconds
    start = container.start_time * TICK
    begins = [begin for stream in container.streams if (begin := _begin(stream)) is not None]
    exact = min([first_seconds, *begins], key=lambda seconds: abs(seconds - start))
    return min((exact if abs(exact - start) <= TICK else start) + late_seconds, first_seconds)


def guessed_delay(container: av.container.InputContainer, first: av.Packet) -> Fraction:
    """Of the first packet of an AVI file, which stores no presentation times: FFmpeg adds the delay
    that the decoder may have."""
    if container.format.name != "avi" or first.pts is None or first.dts is None:
        return Fraction(0)
    return (first.pts - first.dts) * first.time_base


def clock_start_of_counted(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction:
    """The same for a stream whose frames are counted instead, the first one being at 0: not
    positive."""
    begin = _begin(stream)
    return Fraction(0) if begin is None else clock_start(container, begin) - begin


def slot_times(container: av.container.InputContainer, slots: list[int | None], num_frames: int) -> np.ndarray | None:
    """int64 [F]: when the frames of an AVI file are shown whose order differs from that of their
    packets; None where unknown.

    `slots`: the decoding times of the packets that show something. An AVI file knows no others, but
    every frame is shown in the slot of some packet, and a slot may be left empty: the frame before
    it lasts longer.
    """
    if container.format.name != "avi" or None in slots or len(slots) < num_frames or sorted(set(slots)) != slots:
        return None
    return np.asarray(slots[:num_frames], np.int64)


def _begin(stream: av.stream.Stream) -> Fraction | None:
    """The first time stamp of a stream in seconds, where FFmpeg knows it."""
    return None if stream.start_time is None else stream.start_time * stream.time_base
