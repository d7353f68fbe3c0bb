"""Parameter groups and the learning-rate schedule. Which AdamW runs on them is the DeepSpeed JSON's
choice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mats_ds.config.recipe import OptimSection


def parameter_groups(
    model: nn.Module, optim: OptimSection, *, lr_scale_of: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay; biases, norms and every other vector do not (as in VideoMAE and
    MAE).

    A vector is a parameter with at most one dimension longer than 1, so the mask token [1, 1, D]
    counts as one. `lr_scale_of` gives the factor on the learning rate of the parameter of a name;
    every factor makes a group of its own, as "lr_scale".
    """
    shared = {"lr": optim.base_lr, "betas": tuple(optim.betas), "eps": optim.eps}
    groups: dict[tuple[float, str], dict[str, Any]] = {}
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        kind = "no_decay" if sum(size > 1 for size in parameter.shape) <= 1 else "decay"
        scale = lr_scale_of(name)
        if (scale, kind) not in groups:
            decay = optim.weight_decay if kind == "decay" else 0.0
            label = kind if scale == 1 else f"{kind}, learning rate x {scale:.3g}"
            groups[scale, kind] = {"name": label, "params": [], "weight_decay": decay, "lr_scale": scale, **shared}
        groups[scale, kind]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_scale(name: str, *, depth: int, layer_decay: float) -> float:
    """The factor on the learning rate of a classifier's parameter: 1 for the head and its norm,
    times `layer_decay` for every block below, smallest for the patch embedding (BEiT, arXiv
    2106.08254, as VideoMAE uses it).
    """
    if name.startswith("patch_embed."):
        layer = 0
    elif match := re.match(r"encoder\.blocks\.(\d+)\.", name):
        layer = int(match[1]) + 1
    else:
        layer = depth + 1
    return layer_decay ** (depth + 1 - layer)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from `start` to `peak`, then a cosine down to `end`; learning rates are those
    of the actual batch."""

    peak: float
    start: float
    end: float
    warmup_steps: int
    total_steps: int

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0; after the last step it stays at
        `end`."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * step / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.end + 0.5 * (self.peak - self.end) * (1 + math.cos(math.pi * progress))


def make_schedule(optim: OptimSection, *, steps_per_epoch: int, learning_rate_scale: float) -> Schedule:
    """The recipe's schedule for a data set of `steps_per_epoch` steps; all three rates follow the
    linear rule alike."""
    if optim.steps is not None:
        total, warmup = optim.steps, optim.warmup_steps
    else:
        total = max(1, math.ceil(optim.epochs * steps_per_epoch))
        warmup = round(optim.warmup_epochs * steps_per_epoch)
    return Schedule(
        peak=optim.base_lr * learning_rate_scale,
        start=optim.warmup_lr * learning_rate_scale,
        end=min(optim.min_lr, optim.base_lr) * learning_rate_scale,
        warmup_steps=min(warmup, total - 1),
        total_steps=total,
    )
