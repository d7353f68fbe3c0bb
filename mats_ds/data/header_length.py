"""The length that a file's header promises, against what it holds: a file that is much shorter was torn off.

A torn MP4 cannot be opened at all; a torn Matroska, AVI or transport stream reads like a whole one, up to where it ends.
"""

from __future__ import annotations

import contextlib

import av

# A file whose header promises this much more than it holds is taken for torn; headers are often off by a frame or two.
TORN_SHARE, TORN_SECONDS = 0.1, 1.0


def describe_torn_end(container: av.container.InputContainer, stream: av.VideoStream, *, held_seconds: float) -> str:
    """What the header promises and the stream, whose frames end after `held_seconds`, lacks; empty if that is little."""
    promised = promised_seconds(container, stream)
    if promised - held_seconds > max(TORN_SECONDS, TORN_SHARE * promised):
        return f"ends after {held_seconds:.2f} s of the {promised:.2f} s in its header"
    return ""


def promised_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The length of the video stream by the header, 0 where it says nothing of this stream."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska, as FFmpeg writes it
    minutes, _, seconds = rest.partition(":")
    with contextlib.suppress(ValueError):
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    alone = all(other is stream for other in container.streams)  # sound may go on for longer than the picture
    return container.duration / av.time_base if container.duration and alone else 0.0
