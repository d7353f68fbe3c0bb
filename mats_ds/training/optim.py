"""Parameter groups, the learning-rate schedule, and the guard that leaves out a step whose
gradients are not finite. Which AdamW runs on them is the DeepSpeed JSON's choice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
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


class StepGuard:
    """Leaves out the steps of a torch optimizer whose gradients have a norm that is not finite.

    norm_of(): asked before the optimizer works, the norm over the gradients of all ranks, a scalar
    on their device; None where it works on a part of a step that it has been asked about. torch's
    fused AdamW takes the verdict as its `found_inf`, as a gradient scaler gives it: weights,
    moments and step count stay as they are, and the host waits for nothing. Any other optimizer
    finds no gradients then, and the host waits for the norm.
    norm, left_out: of the newest step, on the device; infinite and 1 where it was left out. None
    before the first.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, norm_of: Callable[[], torch.Tensor | None]) -> None:
        self.norm: torch.Tensor | None = None
        self.left_out: torch.Tensor | None = None
        self._norm_of = norm_of
        self._is_fused = type(optimizer) is torch.optim.AdamW and bool(optimizer.defaults["fused"])
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        norm = self._norm_of()
        if norm is None:
            return
        self.norm = norm.nan_to_num(nan=math.inf, posinf=math.inf)
        self.left_out = self.norm.isinf().float()
        if self._is_fused:
            optimizer.found_inf = self.left_out
        elif self.left_out:
            for parameter in _with_gradients(optimizer):
                parameter.grad = None


def guard_steps(engine: Any) -> None:
    """Guard the steps of a DeepSpeed engine that does not look at its gradients itself: those of
    stage 0, where the optimizer is torch's, and of ZeRO-1 and -2 without compute_grad_norm."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        engine.step_guard = StepGuard(optimizer, lambda: _norm_of_gradients(optimizer))
    elif not engine.zero_compute_grad_norm():
        engine.step_guard = StepGuard(engine.basic_optimizer, lambda: _norm_of_partitions(optimizer))


def left_out_by(engine: Any) -> torch.Tensor | None:
    """1 where the guard left out the engine's newest step, else 0, on the device; None where
    DeepSpeed looks at its gradients itself."""
    guard = getattr(engine, "step_guard", None)
    return None if guard is None else guard.left_out


def grad_norm_of(engine: Any) -> Any:
    """The norm of the newest step's gradients before clipping, DeepSpeed's or the guard's; None at
    stage 0 with clipping, where nobody keeps it."""
    norm = engine.get_global_grad_norm()
    guard = getattr(engine, "step_guard", None)
    if norm is None and guard is not None and not engine.gradient_clipping():
        return guard.norm
    return norm


def _norm_of_gradients(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in _with_gradients(optimizer)])


def _norm_of_partitions(zero: Any) -> torch.Tensor | None:
    """The norm of all ranks' partitions of the averaged gradients, in float32, before ZeRO-1 or -2
    updates the first of its parameter groups; None before the others.

    That group's gradients lie in one tensor by then, the other groups' still parameter by
    parameter.
    """
    first = zero.single_partition_of_fp32_groups[0].grad
    if first is None:
        return None
    others = range(1, len(zero.single_partition_of_fp32_groups))
    rest = [gradient for group in others for gradient in zero.averaged_gradients[group] if gradient is not None]
    norms = [torch.linalg.vector_norm(first), *(torch._foreach_norm(rest, 2, dtype=torch.float32) if rest else [])]
    square = torch.stack(norms).square().sum()
    dist.all_reduce(square, group=zero.dp_process_group)
    return square.sqrt()


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter for parameter in parameters if parameter.grad is not None]
