"""The loss of a classifier on augmented clips: logits [B, classes] and target distributions [B,
classes] -> a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mats_ds.core.clips import ClipBatch


def classification_loss(
    logits_BC: torch.Tensor, target_BC: torch.Tensor, weight_B: torch.Tensor, *, label_smoothing: float
) -> torch.Tensor:
    """Cross-entropy in float32, averaged over the clips with weight; 0 where no clip has any.

    A clip without weight takes nothing from the others of its micro-batch; over micro-batches and
    ranks all count alike, so the clips of a micro-batch with a blank one count a little more.
    `label_smoothing` spreads that fraction over all classes.
    """
    loss_B = F.cross_entropy(logits_BC.float(), target_BC, label_smoothing=label_smoothing, reduction="none")
    return (loss_B * weight_B).sum() / weight_B.sum().clamp(min=1)


def make_loss(augment: Callable[[ClipBatch], Any], *, label_smoothing: float) -> Callable[[Any, ClipBatch], torch.Tensor]:
    """The `loss_of` that `fit` asks for. `augment(batch)` gives frames_BTHWC, target_BC, weight_B,
    seed (data's TrainingClips).

    Drop path and dropout are sampled from the seed of the micro-batch: torch's own random state is
    in no checkpoint, and a resumed run shall be equal to the bit.
    """

    def loss_of(engine: Any, batch: ClipBatch) -> torch.Tensor:
        clips = augment(batch)
        torch.manual_seed(clips.seed)
        logits_BC = engine(clips.frames_BTHWC, batch.seed_B)
        return classification_loss(logits_BC, clips.target_BC, clips.weight_B, label_smoothing=label_smoothing)

    return loss_of


def reconstruction_loss_of(engine: Any, batch: ClipBatch) -> torch.Tensor:
    """The `loss_of` that `fit` asks for.

    Drop path is sampled anew from the first seed of each micro-batch: torch's own random state is
    in no checkpoint, and a resumed run shall be equal to the bit. (Masks derive from the clips'
    seeds anyway.)
    """
    torch.manual_seed(batch.clip_seeds[0])
    return engine(batch.frames_BTHWC, batch.seed_B)
