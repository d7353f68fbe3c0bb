"""Manifest -> the views of a test: of every video the same `num_clips` temporal clips x `num_crops`
spatial crops, each once.

Nothing is random. Dense clips lie evenly over the video, of the possible beginnings the first and
the last too; uniform ones all reach over it and differ in the frame that they take from each
segment. The crops lie evenly along the longer side of the picture, whose shorter side they fill (as
SlowFast is tested, arXiv 1812.03982, with 10 x 3); no mirroring. One is the centre. MATS is tested
with 5 x 3 on K400 and UCF101, 10 x 3 on HMDB51, 2 x 3 on SSv2 (METHOD of arXiv 2211.10636).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipSpec, CropSpec
from mats_ds.data.clip_sampler import SEED_BITS, present_seconds
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.containers import UnreadableVideo

PADDING = -1  # sample (and label) of a position at which there is no view


@dataclass(frozen=True)
class View:
    """One view: video, clip and crop, numbered from 0; `sample` is the video's row in the
    manifest."""

    sample: int
    clip: int
    crop: int


class ViewSampler:
    """Used in a ClipLoader instead of ClipSampler, to read for a test.

    Position p of the first pass is view p % num_views of video p // num_views, crop by crop and
    clip by clip. A pass has `steps_per_epoch` steps of `global_batch` = micro_batch * world_size
    positions, the same on every rank; what lies beyond the last view fills up the last step. A
    second pass follows the first.

    To merge results exactly, count a clip of a batch where `valid_B & (sample_B >= 0)`:
    - padding has sample and label -1 (it shows the last view once more);
    - a view that cannot be read is blank, keeps its own sample and label, and has valid false. No
      other video stands in for it.
    The clips that count then hold every readable view once over all ranks. `view(position)`, with
    the loader's `positions(step, 0)`, says which view each clip is.

    Neighbouring views of a video are decoded in one pass: all of them if the micro-batch is a
    multiple of num_views, else `repeats` of them, the largest number that divides both.
    `num_frames` frames are read of each clip, spread evenly over the span that recipe_clip says
    (None: as many as it says). `seed` gives the views their seeds, the same in every pass, and
    nothing else.
    Raises ValueError for an empty manifest or sizes below one.
    """

    augments = False

    def __init__(
        self,
        manifest: Manifest,
        *,
        recipe_clip: ClipSection,
        num_clips: int,
        num_crops: int,
        micro_batch: int,
        world_size: int = 1,
        num_frames: int | None = None,
        seed: int = 0,
    ) -> None:
        if len(manifest) == 0:
            raise ValueError(f"the manifest {manifest.name!r} is empty: there is nothing to test on")
        num_frames = recipe_clip.num_frames if num_frames is None else num_frames
        sizes = dict(
            num_clips=num_clips, num_crops=num_crops, micro_batch=micro_batch, world_size=world_size, num_frames=num_frames
        )
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        self.manifest = manifest
        self.recipe_clip = recipe_clip
        self.num_clips, self.num_crops = num_clips, num_crops
        self.num_views = num_clips * num_crops
        self.num_frames = num_frames
        self.global_batch = micro_batch * world_size
        self.repeats = math.gcd(self.num_views, micro_batch)
        self.num_positions = len(manifest) * self.num_views
        self.steps_per_epoch = -(-self.num_positions // self.global_batch)
        self._seed = seed

    def epoch(self, position: int) -> int:
        """The pass that a position belongs to, from 0."""
        return position // (self.steps_per_epoch * self.global_batch)

    def view(self, position: int) -> View | None:
        """The view at a position; None where it only fills up the last step of a pass."""
        index = position % (self.steps_per_epoch * self.global_batch)
        if index >= self.num_positions:
            return None
        sample, number = divmod(index, self.num_views)
        return View(sample, *divmod(number, self.num_crops))

    def spec(self, position: int, attempt: int = 0) -> ClipSpec:
        """The clip at a position. Raises UnreadableVideo for attempts above 0: a test takes no
        substitutes."""
        if attempt:
            raise UnreadableVideo("a test takes no substitutes")
        shown = self.view(position)
        is_padding = shown is None
        if is_padding:
            shown = View(len(self.manifest) - 1, self.num_clips - 1, self.num_crops - 1)
        sample, section = shown.sample, self.recipe_clip
        anchor = _spread(shown.crop, self.num_crops)
        is_uniform, seconds = section.sampling == "uniform", section.stride_seconds
        return ClipSpec(
            path=self.manifest.paths[sample],
            sample=PADDING if is_padding else sample,
            num_frames=self.num_frames,
            stride=section.stride,
            start=_phase(shown.clip, self.num_clips) if is_uniform else _spread(shown.clip, self.num_clips),
            sampling=section.sampling,
            label=PADDING if is_padding else int(self.manifest.label_S[sample]),
            first_seconds=present_seconds(self.manifest.first_seconds_S[sample]),
            last_seconds=present_seconds(self.manifest.last_seconds_S[sample]),
            # The crop fills the shorter side, so only one of the two has room to move in.
            crop=CropSpec(top=anchor, left=anchor),
            clip_seed=self._clip_seed(position),
            position=position,
            span=section.num_frames * section.stride,
            span_seconds=None if seconds is None else section.num_frames * seconds,
        )

    def _clip_seed(self, position: int) -> int:
        index = position % (self.steps_per_epoch * self.global_batch)
        return int(np.random.Philox(np.random.SeedSequence((self._seed, index))).random_raw()) >> (64 - SEED_BITS)


def fit_micro_batch(num_views: int, *, at_most: int) -> int:
    """The micro-batch of at most so many views that has most of a video's views decoded in one
    pass: 15 of 16 for 5 x 3 views."""
    return max(range(1, at_most + 1), key=lambda size: (math.gcd(num_views, size), size))


def _phase(number: int, count: int) -> float:
    """The part of each segment at which the `number`-th of `count` uniform clips takes its frame:
    at the beginning of the `number`-th of `count` equal parts, so that two clips take the first and
    the middle frames, as VideoMAE tests SSv2 (arXiv 2203.12602 and its code). One clip takes the
    middle ones.
    """
    return number / count if count > 1 else 0.5


def _spread(number: int, count: int) -> float:
    """The `number`-th of `count` points spread evenly from 0 to 1, both included; the middle if
    there is but one."""
    return number / (count - 1) if count > 1 else 0.5
