"""The loss of a masked autoencoder: the model gives it itself, and what the model draws is made a function of the clips."""

from __future__ import annotations

from typing import Any

import torch

from mats_ds.clips import ClipBatch


def reconstruction_loss_of(engine: Any, batch: ClipBatch) -> torch.Tensor:
    """The `loss_of` that `fit` asks for.

    Drop path is drawn anew from the first key of each micro-batch: torch's own random state is in no checkpoint, and a resumed
    run shall be equal to the bit. (Masks derive from the clips' keys anyway.)
    """
    torch.manual_seed(batch.keys[0])
    return engine(batch.frames_BTHWC, batch.key_B)
