"""A file, or a clip of it that did not come -> one verdict: usable, damaged in part, unreadable.

`prepare check` judges every file before a training; the loader judges a file when a clip of it does
not come. Both ask here, so that a check, the log of a training, the list in its report and a test
say the same of a file in the same words:

- unreadable (UnreadableVideo): nothing decodes, it cannot be opened, or its longest unbroken
  stretch of sound frames is shorter than a clip of MIN_FRAMES, though it was meant to be longer;
- damaged in part (`SoundPart.damage`): it breaks off late or has a hole. Its longest stretch of
  sound frames can be used; a check limits the manifest to that, and without a check a clip that
  reaches beyond is replaced;
- usable: everything else. Short files are: the loader repeats frames.

A frame is sound if it decodes, is not marked corrupt, and no packet since its key picture failed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mats_ds.core.clips import DAMAGED
from mats_ds.core.shards.members import stat_file
from mats_ds.data.video.containers import READ_ERRORS, UnreadableVideo, open_video
from mats_ds.data.video.faults import explain, in_words
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.recording import Recording, record

MIN_FRAMES = 16
# Decoding a file once tells what a failed clip leaves open. A clip is waited for (60 s by default),
# so the loader spends no more than this on a long file, and then says what it knows without it.
JUDGE_SECONDS = 10.0
JUDGED_FILES = 256  # whose verdict is remembered


@dataclass(frozen=True)
class SoundPart:
    """Frames [first, last) of the index can be used. damage: the verdict in one line where that is
    not all of the file, "" where it is."""

    first: int
    last: int
    damage: str = ""


def judge(index: VideoIndex, recorded: Recording) -> SoundPart:
    """The verdict on a file that was decoded once. Raises UnreadableVideo with the reason."""
    if not any(recorded.is_sound_F):
        raise UnreadableVideo(explain(index.path, recorded.first_error or "not one frame of it decodes"))
    first, last = _longest_run(sound_frames(index, recorded))
    if last - first < min(MIN_FRAMES, index.num_stored):
        because = f": {in_words(recorded.problem)}" if recorded.problem else ""
        raise UnreadableVideo(f"only {last - first} of {index.num_stored} frames in a row decode{because}")
    if recorded.problem:
        damage = f"decodes up to frame {recorded.problem_at} of {index.num_stored}, then: {in_words(recorded.problem)}"
    elif recorded.num_frames < index.num_frames:
        damage = f"{index.num_frames} frames are stored, {recorded.num_frames} decode"
    elif (first, last) != (0, index.num_frames):
        damage = f"its first frames do not decode: {in_words(recorded.first_error)}"
    else:
        return SoundPart(first, last)
    return SoundPart(first, last, f"{DAMAGED}{damage}; frames {first} to {last - 1} can be used")


def judge_failure(path: str, wanted: Iterable[int], reason: str) -> str:
    """The reason why the frames `wanted` of a file did not come, as a check of the file has it.

    reason: of the failed attempt, which counts where decoding the file once shows no fault in these
    frames, or takes more than JUDGE_SECONDS.
    """
    try:
        status = stat_file(path)
        part = _judge_once(path, status.num_bytes, status.modified_ns, status.place)
    except UnreadableVideo as unreadable:
        return unreadable.reason
    except READ_ERRORS:  # it has vanished meanwhile
        return reason
    if part is None:
        return f"{DAMAGED}{in_words(reason)}"
    if part.damage and not all(part.first <= number < part.last for number in wanted):
        return part.damage
    return f"a clip of it cannot be read, though these frames decode from its start: {in_words(reason)}"


def describe_empty_range(*, begins: float, ends: float | None, first: float, last: float, is_before: bool) -> str:
    """The reason why no frame lies between two moments, in seconds on the file's clock.

    ends None: the end of the file. first, last: when the first and the last frame are shown.
    is_before: the range ends before the first.
    """
    until = "its end" if ends is None else f"{ends:g} s"
    nearest = f"the first one is at {first:.3f} s" if is_before else f"the last one is at {last:.3f} s"
    return f"no frame between {begins:g} s and {until}; {nearest}"


def sound_frames(index: VideoIndex, recorded: Recording) -> np.ndarray:
    """True for the frames of the index that the loader gets, bool [F]."""
    if index.is_sound_F is not None:
        return index.is_sound_F
    # packets without a picture (MPEG-4) shift the numbers: the loader then counts from the start
    if not recorded.problem:
        return np.arange(index.num_frames) < recorded.num_frames
    if not index.trusts_pts:  # read from the start, up to the first error
        return np.arange(index.num_frames) < recorded.problem_at
    sound_pts = [pts for pts, is_sound in zip(recorded.pts_F, recorded.is_sound_F, strict=True) if is_sound and pts is not None]
    return np.isin(index.pts_F, sound_pts)


class _TooLong(Exception):
    pass


@functools.lru_cache(maxsize=JUDGED_FILES)
def _judge_once(path: str, num_bytes: int, modified_ns: int, place: tuple[int, int, int]) -> SoundPart | None:
    """The verdict of `judge`, None where decoding took too long. All but the path is what the cache
    knows a changed file, or a member of a changed shard, by. Raises what `judge` and PyAV raise."""
    index = index_video(path)
    began_seconds = time.monotonic()

    def stop_late() -> None:
        if time.monotonic() - began_seconds > JUDGE_SECONDS:
            raise _TooLong

    container, stream = open_video(path, stream_index=index.stream_index)
    with container:
        try:
            recorded = record(container, stream, on_beat=stop_late)
        except _TooLong:
            return None
    return judge(index, recorded)


def _longest_run(sound_F: np.ndarray) -> tuple[int, int]:
    """Beginning and end of the longest stretch of true values; (0, 0) if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], sound_F, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest])
