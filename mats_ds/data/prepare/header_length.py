"""The length that a file's header promises, against what it holds: a file that is much shorter was
torn off.

A torn MP4 cannot be opened at all; a torn Matroska, AVI or transport stream reads like a whole one,
up to where it ends.
"""

from __future__ import annotations

import contextlib

import av

# A file whose header promises this much more than it holds is taken for torn; headers are often off
# by a frame or two.
TORN_SHARE, TORN_SECONDS = 0.1, 1.0
TELL_THE_END = ("matroska,webm", "asf")


def describe_torn_end(container: av.container.InputContainer, stream: av.VideoStream, *, last_seconds: float) -> str:
    """Sentence on the seconds that the header promises and the stream lacks, empty if they are few.

    last_seconds: the stream's last frame on the clock.
    """
    promised, held = promised_seconds(container, stream), last_seconds + _clock_start(container) - _begin(stream)
    if promised - held > max(TORN_SECONDS, TORN_SHARE * promised):
        return f"ends after {held:.2f} s of the {promised:.2f} s in its header"
    return ""


def promised_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The length of the video stream by the header, from its first packet on; 0 where it has
    nothing on this stream.

    Matroska has, in its segment and in the tag that FFmpeg writes for each track, when the last
    frame ends and not how long all of them last: pictures from 2 s to 5 s have a DURATION of 5 s.
    So does ASF.
    """
    # sound may go on for longer than the picture
    alone = all(other is stream for other in container.streams)
    promised = _tagged_seconds(stream)
    if stream.duration:
        promised = float(stream.duration * stream.time_base)
    elif promised is None and container.duration and alone:
        promised = container.duration / av.time_base
    if promised is None:
        return 0.0
    return max(0.0, promised - _begin(stream)) if container.format.name in TELL_THE_END else promised


def _tagged_seconds(stream: av.VideoStream) -> float | None:
    """The content of Matroska's tag DURATION, as FFmpeg and MKVToolNix write it:
    00:00:05.023000000."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    with contextlib.suppress(ValueError):
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return None


def _begin(stream: av.VideoStream) -> float:
    """The first time stamp of the stream in seconds."""
    return 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)


def _clock_start(container: av.container.InputContainer) -> float:
    """The time stamp in seconds at which the clock shows 0; a microsecond off, which does not
    matter here."""
    return (container.start_time or 0) / av.time_base
