"""CopyTask -> CopyOutcome: make one training copy, or cut one file into segments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.segment import Segment, segment_file
from mats_ds.data.prepare.copying.transcode import CopyFailed, transcode_file
from mats_ds.data.prepare.publishing import Publisher
from mats_ds.data.video.indexing import UnreadableVideo


@dataclass(frozen=True)
class CopyTask:
    """One file to copy: transcoded into `target`, or cut into segments named after it where
    `segment_seconds` is given.

    `needed_seconds`: beyond it nobody wants a frame, so a file that breaks off there is copied as
    far as it goes.
    `publisher`: which files that are there already may be replaced.
    """

    source: str
    target: str
    settings: CopySettings
    segment_seconds: float | None = None
    reencode: bool = False
    keep_partial: bool = False
    needed_seconds: float = math.inf
    publisher: Publisher = field(default_factory=Publisher)


@dataclass(frozen=True)
class CopyOutcome:
    """The pieces that a file became (one, the whole, unless it was cut), or none and the `problem`.

    With pieces, `problem`: where the original breaks off.
    """

    source: str
    pieces: tuple[Segment, ...] = ()
    problem: str = ""


def copy_one(task: CopyTask, *, on_heartbeat: Callable[[], None] = lambda: None) -> CopyOutcome:
    """Do one task. Faults of the file are part of the outcome. `on_heartbeat` is called for every
    frame."""
    try:
        if task.segment_seconds is not None:
            target = Path(task.target)
            pieces = segment_file(
                task.source,
                target.parent,
                seconds=task.segment_seconds,
                reencode=task.settings if task.reencode else None,
                name=target.stem,
                publisher=task.publisher,
                on_heartbeat=on_heartbeat,
            )
            return CopyOutcome(task.source, tuple(pieces))
        done = transcode_file(
            task.source,
            task.target,
            settings=task.settings,
            keep_partial=task.keep_partial,
            needed_seconds=task.needed_seconds,
            publisher=task.publisher,
            on_heartbeat=on_heartbeat,
        )
    except (UnreadableVideo, CopyFailed) as failure:
        return CopyOutcome(task.source, problem=failure.reason)
    except OSError as error:  # no room, no permission
        return CopyOutcome(task.source, problem=f"cannot be written: {error}")
    last_seconds = done.first_seconds + done.duration_seconds
    piece = Segment(done.target, 0, done.num_frames, done.first_seconds, last_seconds, done.num_bytes)
    return CopyOutcome(task.source, (piece,), done.problem)
