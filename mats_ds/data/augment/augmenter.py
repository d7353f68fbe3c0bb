"""Training clips of a fine-tuning: ClipBatch -> frames [B, T, H, W, 3] uint8 and target
distributions [B, classes].

The loader has done RandAugment, which works on whole frames, and has cropped and mirrored; random
erasing and mixup or cutmix follow, in this order, on the batch's device. All that is random
of a clip derives from its seed, and of a micro-batch from its first clip's: so the same run, a
resumed one and one on another number of ranks (with the same micro-batch) train on the same pixels.

A clip that stands in for an unreadable one carries its own label and counts as any other. A blank
one (nothing could be read) would teach that black is its class: it counts for nothing, and no clip
is mixed with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mats_ds.config.finetune_recipe import AugmentSection
from mats_ds.core.clips import ClipBatch
from mats_ds.data.augment.mixing import choose_partners, erase_box, mix_clips, sample_mixture, send

_FOR_CLIP, _FOR_BATCH, _FOR_MODEL = range(3)  # what a stream of random numbers serves


@dataclass(frozen=True)
class TrainingClips:
    """frames_BTHWC: uint8. target_BC: float32, sums to 1. weight_B: float32, 0 for a blank clip,
    else 1. `seed` is for what the model samples itself (drop path, dropout) on this micro-batch.
    """

    frames_BTHWC: torch.Tensor
    target_BC: torch.Tensor
    weight_B: torch.Tensor
    seed: int


class Augmenter:
    """Calls itself on the micro-batches of a training run, in which `repeats` neighbouring clips
    are of one video.

    Raises ValueError for mixing in micro-batches of one video, which has no partner.
    """

    def __init__(self, section: AugmentSection, *, num_classes: int, micro_batch: int, repeats: int = 1) -> None:
        if section.mixes and micro_batch <= repeats:
            raise ValueError(
                "augment.mixup and augment.cutmix mix different videos of a micro-batch, and that of the DeepSpeed JSON, "
                f"{micro_batch}, holds one video at data.repeats={repeats}: take at least {2 * repeats}, lower data.repeats, "
                "or set both to 0"
            )
        self.section = section
        self.repeats = repeats
        self.num_classes = num_classes

    def __call__(self, batch: ClipBatch) -> TrainingClips:
        seeds = batch.clip_seeds
        frames_BTHWC = batch.frames_BTHWC
        if self.section.random_erasing:
            clips = [self.erase(frames, seed) for frames, seed in zip(frames_BTHWC, seeds, strict=True)]
            frames_BTHWC = torch.stack(clips)
        target_BC = F.one_hot(batch.label_B, self.num_classes).float()
        readable = [path != "" for path in batch.paths]
        if self.section.mixes:
            partner_B = choose_partners(len(readable), repeats=self.repeats)
            mixes_B = [own and readable[partner] for own, partner in zip(readable, partner_B, strict=True)]
            draws = make_draws(seeds[0], _FOR_BATCH)
            mixture = sample_mixture(self.section, *frames_BTHWC.shape[2:4], draws)
            frames_BTHWC = mix_clips(frames_BTHWC, mixture, partner_B=partner_B, mixes_B=mixes_B)
            fraction_B1 = self._floats([mixture.fraction if mixes else 1.0 for mixes in mixes_B], target_BC)[:, None]
            partner_BC = torch.stack([target_BC[partner] for partner in partner_B])
            target_BC = target_BC * fraction_B1 + partner_BC * (1 - fraction_B1)
        seed = int(make_draws(seeds[0], _FOR_MODEL).integers(2**63))
        return TrainingClips(frames_BTHWC, target_BC, self._floats(readable, target_BC), seed)

    def erase(self, frames_THWC: torch.Tensor, seed: int) -> torch.Tensor:
        """Random erasing of one clip, the same in all of its frames."""
        draws = make_draws(seed, _FOR_CLIP)
        return erase_box(frames_THWC, draws) if draws.random() < self.section.random_erasing else frames_THWC

    @staticmethod
    def _floats(values: list, like: torch.Tensor) -> torch.Tensor:
        return send(torch.tensor(values, dtype=torch.float32), like.device)


def make_draws(seed: int, purpose: int) -> np.random.Generator:
    """Random numbers that are a function of a clip's seed and what they are for."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, purpose))))
