"""Clips of a video to look at, with the time of every frame: video, start, number of clips ->
Excerpt. Decoded on the CPU.

The crop is the centre, as in evaluation; nothing is random.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipSpec, CropSpec
from mats_ds.data.video.clip_frames import ClipCropper
from mats_ds.data.video.decode import frame_numbers, visit_frames
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import index_video


@dataclass(frozen=True)
class Excerpt:
    """One clip: frames_THWC uint8 RGB and seconds_T, the time of each on the file's clock."""

    frames_THWC: np.ndarray
    seconds_T: np.ndarray


def plan_excerpts(
    index: VideoIndex, *, section: ClipSection, num_frames: int, num_clips: int, start_seconds: float | None
) -> list[ClipSpec]:
    """The clips: from `start_seconds` on one after the other, or, if None, spread evenly over the
    video (one: its middle).

    `num_frames` frames are spread evenly over the section's span. Where the video ends before
    `num_clips` clips, there are fewer. Raises ValueError when not one frame lies after
    `start_seconds`.
    """
    if num_clips < 1:
        raise ValueError(f"--clips is at least 1, got {num_clips}")
    seconds_F = index.seconds()
    frame_seconds = index.frame_seconds()
    end_seconds = float(seconds_F[-1]) + frame_seconds
    per_frame = section.stride * frame_seconds if section.stride_seconds is None else section.stride_seconds
    span = section.num_frames * section.stride
    shared = dict(path=index.path, sample=0, num_frames=num_frames, stride=section.stride, span=span, crop=CropSpec())
    if section.stride_seconds is not None:
        shared["span_seconds"] = section.num_frames * section.stride_seconds
    if start_seconds is None:
        starts = [number / (num_clips - 1) for number in range(num_clips)] if num_clips > 1 else [0.5]
        return [ClipSpec(start=start, **shared) for start in starts]
    if not 0 <= start_seconds < end_seconds:
        raise ValueError(
            f"the video lasts {end_seconds:.2f} s and nothing of it lies at {start_seconds:g} s: choose an earlier time"
        )
    start_seconds = max(start_seconds, float(seconds_F[0]))  # the sound may begin earlier
    begins = [start_seconds + number * section.num_frames * per_frame for number in range(num_clips)]
    return [ClipSpec(start=0.0, first_seconds=begin, **shared) for begin in begins if begin < end_seconds - frame_seconds / 2]


def read_excerpt(path: str | os.PathLike[str], spec: ClipSpec, *, height: int, width: int) -> Excerpt:
    """Decode one clip and scale its crop to `height` x `width`. Raises UnreadableVideo when a frame
    of it cannot be read."""
    path = os.fspath(path)
    index = index_video(path)
    numbers_T = frame_numbers(spec, index=index)
    cropper = ClipCropper(numbers_T, spec.crop, index=index, size=(height, width))
    visit_frames(path, numbers_T, index=index, take=cropper.take)
    return Excerpt(cropper.frames(), index.seconds()[numbers_T])
