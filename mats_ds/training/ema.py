"""An observer that keeps a running average of the weights, in float32: timm's ModelEmaV3 beside a
DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from mats_ds.core.checkpoint_files import AVERAGE_KEY
from mats_ds.core.events import RunInfo, StepEvent


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after every step; `model` is the averaged
    one, in evaluation mode.

    Make it before the engine, of the model in float32: the start of the average is then exact also
    in a bf16 run. The engine trains that very model. Every rank keeps the same average.
    """

    def __init__(self, model: nn.Module, *, decay: float, device: torch.device) -> None:
        self._average = ModelEmaV3(model.to(device), decay=decay, dtype=torch.float32, device=device)
        self.model = self._average.module
        self._trained = model

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {AVERAGE_KEY: self.model.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's. Raises ValueError where it has none."""
        if AVERAGE_KEY not in state:
            raise ValueError("the checkpoint holds no average of the weights: leave out finetune.ema_decay, or use another --out")
        self.model.load_state_dict(state[AVERAGE_KEY])

    def on_start(self, run: RunInfo) -> None:
        if run.zero_stage == 3:
            raise ValueError("finetune.ema_decay needs all weights on every rank, and ZeRO stage 3 shards them: use stage 2")

    def on_step(self, event: StepEvent) -> None:
        self._average.update(self._trained)

    def on_end(self, outcome: str) -> None:
        """Nothing: the checkpoint has it."""
