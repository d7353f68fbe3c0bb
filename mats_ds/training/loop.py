"""The training loop: `fit` takes micro-batches to optimizer steps and tells observers. It knows nothing of motion,
labels or profiling.

All ranks agree after every step on three numbers, in one small all-reduce: the loss, whether any rank's loss is not
finite, and how many unreadable videos were newly found. On a GPU the agreement of a step is read one step later, so
that the host never waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mats_ds.clips import BadClip, ClipBatch
from mats_ds.events import Observer, PhaseClock, RunInfo, StepEvent

logger = logging.getLogger(__name__)

NAMED_CLIPS = 8  # how many paths an error message lists


class TrainingStopped(RuntimeError):
    """The run cannot go on, on any rank; the message says why and what to do."""


@dataclass
class _Agreement:
    """What the ranks told each other about one step, possibly still on its way from the device."""

    step: int
    numbers: torch.Tensor  # [sum of losses, ranks with a loss that is not finite, newly found bad videos]
    arrived: Any
    micro_losses: list[torch.Tensor]
    paths: list[tuple[str, ...]]
    new_bad: tuple[BadClip, ...]


def fit(
    engine: Any,
    batches: Iterator[ClipBatch],
    *,
    run: RunInfo,
    learning_rate: Callable[[int], float],
    loss_of: Callable[[Any, ClipBatch], torch.Tensor],
    observers: Sequence[Observer],
    num_videos: int,
    max_bad_fraction: float,
) -> None:
    """Train from `run.first_step` to `run.total_steps`.

    engine: a DeepSpeed engine. loss_of(engine, batch): the scalar loss of a micro-batch, from one call of the engine. batches:
    endless, already at the first step. learning_rate: of a step counted from 0; parameter groups multiply it by their
    "lr_scale". Observers' `on_end` is called on every rank however it ends.
    Raises TrainingStopped on all ranks when a loss is not finite, or when more than `max_bad_fraction` of the
    `num_videos` videos are unreadable.
    """
    outcome = "interrupted"
    for observer in observers:
        observer.on_start(run)
    try:
        _train(engine, batches, run, learning_rate, loss_of, observers, num_videos, max_bad_fraction)
        outcome = "finished"
    except KeyboardInterrupt:
        outcome = "interrupted by the user"
        raise
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        for observer in observers:
            observer.on_end(outcome)


def _train(engine, batches, run, learning_rate, loss_of, observers, num_videos, max_bad_fraction) -> None:
    device = torch.device(run.device)
    clock = PhaseClock(device)
    known_bad: dict[int, BadClip] = {}
    waiting: list[_Agreement] = []
    engine.train()
    for step in range(run.first_step, run.total_steps):
        rate = learning_rate(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        micro_losses: list[torch.Tensor] = []
        paths: list[tuple[str, ...]] = []
        new_bad: list[BadClip] = []
        num_clips = num_substitutes = clip_bytes = 0
        clock.start()
        for _ in range(run.accumulation):
            batch = next(batches)
            clock.mark("data")
            loss = loss_of(engine, batch)
            clock.mark("forward")
            engine.backward(loss)
            clock.mark("backward")
            engine.step()
            clock.mark("optimizer")
            micro_losses.append(loss.detach())
            paths.append(batch.paths)
            new_bad.extend(batch.bad)
            num_clips += len(batch.paths)
            num_substitutes += batch.num_substitutes
            clip_bytes = max(clip_bytes, batch.frames_BTHWC.nbytes)
        local_loss = torch.stack(micro_losses).float().mean()
        # full_like fills on the device; a tensor made from a host number would wait for all the work before it
        num_new_bad = torch.full_like(local_loss, len(new_bad))
        numbers = torch.stack([local_loss, (~local_loss.isfinite()).float(), num_new_bad])
        dist.all_reduce(numbers)
        times = clock.stop()
        waiting.append(_send(step, numbers, micro_losses, paths, tuple(new_bad)))
        while len(waiting) > (1 if device.type == "cuda" else 0):
            _check(waiting.pop(0), known_bad, num_videos, max_bad_fraction)
        event = StepEvent(
            step=step + 1,
            epoch=step // run.steps_per_epoch,
            loss=numbers[0] / run.world_size,
            learning_rate=rate,
            grad_norm=engine.get_global_grad_norm(),
            num_clips=num_clips,
            times=times,
            bad_clips=tuple(new_bad),
            num_substitutes=num_substitutes,
            clip_bytes=clip_bytes,
        )
        for observer in observers:
            observer.on_step(event)
    for agreement in waiting:
        _check(agreement, known_bad, num_videos, max_bad_fraction)


def _send(step, numbers, micro_losses, paths, new_bad) -> _Agreement:
    """Start the copy of the agreed numbers to the host; on a CPU they are there already."""
    arrived = None
    if numbers.is_cuda:
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return _Agreement(step, on_host, arrived, micro_losses, paths, new_bad)
    return _Agreement(step, numbers, arrived, micro_losses, paths, new_bad)


def _check(agreement: _Agreement, known_bad: dict[int, BadClip], num_videos: int, max_bad_fraction: float) -> None:
    """Stop all ranks alike when the step went wrong."""
    if agreement.arrived is not None:
        agreement.arrived.synchronize()
    _, ranks_not_finite, num_new_bad = agreement.numbers.tolist()
    if num_new_bad:
        for bad in _gather(agreement.new_bad):
            if bad.sample not in known_bad:  # every epoch finds it again; once is enough for a reader
                known_bad[bad.sample] = bad
                logger.warning("unreadable: %s: %s (another video takes its place)", bad.path, bad.reason)
        if len(known_bad) > max_bad_fraction * num_videos:
            listed = "\n".join(f"  {bad.path}: {bad.reason}" for bad in list(known_bad.values())[:50])
            raise TrainingStopped(
                f"{len(known_bad)} of {num_videos} videos are unreadable, more than data.max_bad_fraction={max_bad_fraction} "
                f"allows:\n{listed}\nmend or remove them, or raise data.max_bad_fraction"
            )
    if ranks_not_finite:
        guilty = [
            path
            for loss, paths in zip(agreement.micro_losses, agreement.paths, strict=True)
            if not bool(loss.isfinite())
            for path in paths
        ]
        names = _gather(guilty)
        listed = "\n".join(f"  {name or '(blank clip)'}" for name in names[:NAMED_CLIPS])
        more = f"\n  and {len(names) - NAMED_CLIPS} more" if len(names) > NAMED_CLIPS else ""
        raise TrainingStopped(
            f"the loss of step {agreement.step + 1} is not finite on {int(ranks_not_finite)} rank(s); its clips:\n"
            f"{listed}{more}\n"
            "resume from the last checkpoint with a lower optim.base_lr or with gradient_clipping in the DeepSpeed JSON"
        )


def _gather(items: Sequence[Any]) -> list[Any]:
    """The items of all ranks, in the order of ranks."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, list(items))
    return [item for part in gathered for item in part]
