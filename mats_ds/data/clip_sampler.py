"""(seed, position) -> ClipSpec: which video, which frames, which crop. Stateless, so that a run
resumes anywhere, on any split.

A position counts clips since the start of training: step * global_batch + index in the global
batch. Every choice is a pure function of (seed, epoch, index in the epoch, attempt), taken from the
raw 64-bit words of numpy's Philox generator, whose stream numpy promises not to change (its
shuffles and uniform numbers carry no such promise).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from mats_ds.config.finetune_recipe import RandAugmentPlan
from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipSpec, CropSpec, RandomResizedCropSpec
from mats_ds.core.format import format_count
from mats_ds.data.augment.rand_augment import NUMBERS_PER_OPERATION, sample_operations
from mats_ds.data.manifest import Manifest

# The fixed positions of a multi-scale crop (top, left; in quarters of the free room): corners,
# centre, edge middles and quarter points. Source: temporal segment networks, arXiv 1608.00859,
# section on multi-scale cropping; VideoMAE's recipe uses it too.
CROP_ANCHORS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 0), (2, 4)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)
SEED_BITS = 62
# what a stream of random words serves
_FOR_ORDER, _FOR_SEED, _FOR_CLIP, _FOR_CROP, _FOR_SEGMENTS, _FOR_OPERATIONS = range(6)
# torchvision's RandomResizedCropSpec, as VideoMAE fine-tunes with it (arXiv 2203.12602): width to
# height, and how often it tries.
CROP_RATIOS = (3 / 4, 4 / 3)
CROP_TRIES = 10


@dataclass(frozen=True)
class BatchSplit:
    """The division of a step's global batch among ranks and micro-steps, and this rank's part."""

    rank: int
    world_size: int
    micro_batch: int
    accumulation: int = 1

    def positions(self, step: int, micro: int, *, global_batch: int) -> range:
        """The sampler's positions of one micro-batch. Those of all ranks and micro-steps of a step
        together are its global batch.

        Raises ValueError when micro_batch * accumulation * world_size is not the global batch.
        """
        num_clips = self.micro_batch * self.accumulation * self.world_size
        if num_clips != global_batch:
            ranks = format_count(self.world_size, "rank")
            raise ValueError(
                f"micro-batch {self.micro_batch} x accumulation {self.accumulation} x {ranks} = {num_clips}, "
                f"but the global batch is {global_batch}: make them agree"
            )
        if not (0 <= self.rank < self.world_size and 0 <= micro < self.accumulation):
            raise ValueError(f"rank {self.rank} of {self.world_size} or micro-step {micro} of {self.accumulation} does not exist")
        begin = step * global_batch + (micro * self.world_size + self.rank) * self.micro_batch
        return range(begin, begin + self.micro_batch)


class ClipSampler:
    """Samples the clips of a training run.

    `num_frames` frames are read of each clip; with uniform sampling each comes from a point of its
    own in its segment, so a video of 48 frames gives 3**16 different clips of 16. Where that is
    more than `recipe_clip.num_frames` (candidates of the adaptive frame selection), they are spread
    evenly over the same span of recipe_clip.num_frames * recipe_clip.stride video frames (or
    recipe_clip.num_frames * recipe_clip.stride_seconds seconds). `repeats` neighbouring positions
    are clips of the same video, which differ in everything else. `crop_areas`, where given, are the
    smallest and largest part of the picture that a random resized crop shows;
    recipe_clip.crop_scales is not used then. `rand_augment`, where given, says how each clip's
    operations are sampled. An epoch has max(1, len(manifest) * repeats // global_batch) steps; it
    takes no video more than `repeats` times unless all of them together are fewer than a global
    batch, in which case it goes round. Raises ValueError for an empty manifest or sizes below one.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        recipe_clip: ClipSection,
        num_frames: int,
        global_batch: int,
        seed: int,
        repeats: int = 1,
        crop_areas: tuple[float, float] | None = None,
        rand_augment: RandAugmentPlan | None = None,
    ) -> None:
        if len(manifest) == 0:
            raise ValueError(f"the manifest {manifest.name!r} is empty: there is nothing to sample from")
        for name, value in (("num_frames", num_frames), ("global_batch", global_batch), ("repeats", repeats)):
            if value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if seed < 0:
            raise ValueError(f"a seed is 0 or more, got {seed}")
        self.manifest = manifest
        self.recipe_clip = recipe_clip
        self.num_frames = num_frames
        self.global_batch = global_batch
        self.seed = seed
        self.repeats = repeats
        self.crop_areas = crop_areas
        self.rand_augment = rand_augment
        self.steps_per_epoch = max(1, len(manifest) * repeats // global_batch)
        # Epochs overlap by no more than the clips that are read ahead: two orders in memory are
        # enough.
        self._order_of = functools.lru_cache(maxsize=2)(self._sample_order)
        scales = recipe_clip.crop_scales
        self._scale_pairs = [(high, wide) for i, high in enumerate(scales) for j, wide in enumerate(scales) if abs(i - j) <= 1]

    def with_global_batch(self, global_batch: int) -> ClipSampler:
        """The same choices in steps of another size: epochs end elsewhere."""
        return ClipSampler(
            self.manifest,
            recipe_clip=self.recipe_clip,
            num_frames=self.num_frames,
            global_batch=global_batch,
            seed=self.seed,
            repeats=self.repeats,
            crop_areas=self.crop_areas,
            rand_augment=self.rand_augment,
        )

    @property
    def augments(self) -> bool:
        """Whether clips have operations."""
        return self.rand_augment is not None

    def epoch(self, position: int) -> int:
        """The epoch that a position belongs to, from 0."""
        return position // (self.steps_per_epoch * self.global_batch)

    def spec(self, position: int, attempt: int = 0) -> ClipSpec:
        """The clip at a position; `attempt` 1, 2, ... takes other videos as substitutes for one
        that cannot be read.

        The seed belongs to the position: all attempts share it.
        """
        epoch, index = divmod(position, self.steps_per_epoch * self.global_batch)
        order_S = self._order_of(epoch)
        seed, shift = self._words(2, _FOR_SEED, epoch, index)
        others = len(order_S) - 1
        # Substitutes are the videos that follow a random index of the epoch's order, never the
        # clip's own video.
        hop = 1 + (shift + attempt - 1) % others if attempt and others else 0
        sample = int(order_S[(index // self.repeats + hop) % len(order_S)])
        start, scale, anchor, flip = self._words(4, _FOR_CLIP, epoch, index, attempt)
        mirrors = bool(self.recipe_clip.flip and flip >> 63)
        if self.crop_areas is None:
            crop = self._multi_scale_crop(scale, anchor, flip=mirrors)
        else:
            crop = self._resized_crop(self._words(2 * CROP_TRIES + 2, _FOR_CROP, epoch, index, attempt), flip=mirrors)
        operations = ()
        if self.rand_augment is not None:
            count = NUMBERS_PER_OPERATION * self.rand_augment.num_operations
            words = self._words(count, _FOR_OPERATIONS, epoch, index, attempt)
            operations = sample_operations(self.rand_augment, [_to_fraction(word) for word in words])
        seconds = self.recipe_clip.stride_seconds
        return ClipSpec(
            path=self.manifest.paths[sample],
            sample=sample,
            num_frames=self.num_frames,
            stride=self.recipe_clip.stride,
            start=_to_fraction(start),
            sampling=self.recipe_clip.sampling,
            label=int(self.manifest.label_S[sample]),
            first_seconds=present_seconds(self.manifest.first_seconds_S[sample]),
            last_seconds=present_seconds(self.manifest.last_seconds_S[sample]),
            crop=crop,
            clip_seed=seed >> (64 - SEED_BITS),
            attempt=attempt,
            position=position,
            span=self.recipe_clip.num_frames * self.recipe_clip.stride,
            span_seconds=None if seconds is None else self.recipe_clip.num_frames * seconds,
            segment_starts=self._segment_starts(epoch, index, attempt) if self.recipe_clip.sampling == "uniform" else (),
            operations=operations,
        )

    def _segment_starts(self, *purpose: int) -> tuple[float, ...]:
        """A fraction for each segment of a uniform clip, sampled independently (temporal segment
        networks, arXiv 1608.00859)."""
        return tuple(map(_to_fraction, self._words(self.num_frames, _FOR_SEGMENTS, *purpose)))

    def _multi_scale_crop(self, scale: int, anchor: int, *, flip: bool) -> CropSpec:
        height_scale, width_scale = self._scale_pairs[scale % len(self._scale_pairs)]
        top, left = CROP_ANCHORS[anchor % len(CROP_ANCHORS)]
        return CropSpec(height_scale, width_scale, top / 4, left / 4, flip)

    def _resized_crop(self, words: list[int], *, flip: bool) -> RandomResizedCropSpec:
        """Areas are sampled evenly, ratios evenly in their logarithm."""
        (least, most), (narrowest, widest) = self.crop_areas, CROP_RATIOS
        top, left, *fractions = map(_to_fraction, words)
        tries = tuple(
            (least + (most - least) * area, narrowest * (widest / narrowest) ** ratio)
            for area, ratio in zip(fractions[::2], fractions[1::2], strict=True)
        )
        return RandomResizedCropSpec(tries, top, left, CROP_RATIOS, flip)

    def _sample_order(self, epoch: int) -> np.ndarray:
        """The epoch's order of all videos, int64 [S]."""
        words_S = self._generator(_FOR_ORDER, epoch).random_raw(len(self.manifest))
        return np.argsort(words_S, kind="stable")

    def _words(self, count: int, *purpose: int) -> list[int]:
        return self._generator(*purpose).random_raw(count).tolist()

    def _generator(self, *purpose: int) -> np.random.Philox:
        return np.random.Philox(np.random.SeedSequence((self.seed, *purpose)))


def _to_fraction(word: int) -> float:
    """A word of 64 random bits as a number from 0 to 1, without 1."""
    return (word >> 11) / 2**53


def present_seconds(seconds: float) -> float | None:
    """A time of a manifest, None for its nan."""
    return None if math.isnan(seconds) else float(seconds)
