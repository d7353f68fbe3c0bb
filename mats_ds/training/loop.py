"""The training loop: `fit` turns micro-batches into optimizer steps and calls observers. It knows
nothing of motion, labels or profiling.

All ranks agree after every step on five numbers, in one small all-reduce: the loss, whether any
rank's loss is not finite, how many unreadable videos were newly found, whether a rank was asked to
stop, and whether one has lost its run folder. On a GPU they are read one step later, together with
the gradients' norm and whether the step was left out: it is the one time in a step that the host
waits, for work that is mostly done by then.

(Over 300 lines: the loop and what its ranks agree on after each step change together.)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.core.events import Observer, PhaseClock, RunInfo, StepEvent, StepNumber, StepNumbers
from mats_ds.core.format import format_count
from mats_ds.core.run_dir import describe_standing, resume_options
from mats_ds.core.text import Lines
from mats_ds.distributed.collectives import Ranks, gather_on_all
from mats_ds.distributed.exits import FolderLost, RanksLost, TrainingInterrupted, TrainingStopped
from mats_ds.distributed.watchdog import Watchdog
from mats_ds.training.optim import grad_norm_of, left_out_by

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAMED_CLIPS = 8  # how many paths an error message lists
STEPS_BETWEEN_SKIPS = 100  # a second step that is not finite within so many stops the run


class _Agreed(NamedTuple):
    """What all ranks agree on after a step, in the order in which it travels. `left_out`: 1 where
    the optimizer step was, `grad_norm` 0 where the engine has none."""

    ranks_not_finite: float
    num_new_bad: float
    ranks_asked: float
    ranks_lost: float
    loss: float
    grad_norm: float
    left_out: float


LOSS, GRAD_NORM, LEFT_OUT = (_Agreed._fields.index(name) for name in ("loss", "grad_norm", "left_out"))


@dataclass
class _Agreement:
    """The agreement of all ranks on one step, possibly still on its way from the device. `counted`:
    the engine knows itself that it left the step out."""

    step: int
    numbers: StepNumbers
    micro_losses: list[torch.Tensor]
    paths: list[tuple[str, ...]]
    new_bad: tuple[BadClip, ...]
    counted: bool
    lost: str | None


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
    hang_seconds: float = 1800.0,
    what_is_lost: Callable[[], str | None] = lambda: None,
    finish_saves: Callable[[], None] = lambda: None,
    mending: str = "mend or remove them",
) -> None:
    """Train from `run.first_step` to `run.total_steps`.

    engine: a DeepSpeed engine. loss_of(engine, batch): the scalar loss of a micro-batch, from one
    call of the engine. batches: endless, already at the first step. learning_rate: of a step
    counted from 0; parameter groups multiply it by their "lr_scale". Observers' `on_end` is called
    on every rank however it ends. A step whose gradients are not finite is skipped; a second one
    within STEPS_BETWEEN_SKIPS, or one that the engine could not skip, stops the run.
    what_is_lost(): asked after every step, why what this rank writes is lost, or None.
    finish_saves(): called on all ranks, waits for the checkpoint that is being written. mending:
    advice to whom too many videos are unreadable.
    Raises TrainingStopped on all ranks for these, and when more than `max_bad_fraction` of the
    `num_videos` videos are unreadable; TrainingInterrupted on all ranks when a signal asked to
    stop; RanksLost where other ranks do not answer. A rank whose clips do not come within
    `hang_seconds` ends its process (see distributed/watchdog.py).
    """
    outcome = "interrupted"
    started: list[Observer] = []
    watchdog = None
    try:
        try:
            for observer in observers:
                observer.on_start(run)
                started.append(observer)
            with Watchdog(run, hang_seconds=hang_seconds) as watchdog:
                watched = (num_videos, max_bad_fraction, watchdog, what_is_lost, finish_saves, mending)
                _Loop(engine, batches, run, learning_rate, loss_of, observers, *watched).train()
        except (TrainingStopped, TrainingInterrupted):
            raise
        except RuntimeError as error:
            if not is_lost_contact(error):
                raise
            raise RanksLost(f"{_name_lost(watchdog, error)}; {describe_standing(run.run_dir)}") from error
        outcome = "finished"
    except KeyboardInterrupt:
        outcome = "interrupted by the user"
        raise
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
        raise
    finally:
        end_observers(started, outcome)


def end_observers(observers: Sequence[Observer], outcome: str) -> None:
    """Call `on_end` of all, also where one fails: they may wait for the other ranks' in the same
    order. Raises the first fault of a run that has finished; those of a run that ends with a fault
    are logged, so that they do not hide it.
    """
    first: Exception | None = None
    for observer in observers:
        try:
            observer.on_end(outcome)
        except (OSError, RuntimeError, ValueError) as error:
            first = first or error
            if outcome != "finished":
                logger.warning("while ending: %s", str(error).partition("\n")[0][:400])
    if first is not None and outcome == "finished":
        raise first


@dataclass
class _Loop:
    """One rank's way through the steps."""

    engine: Any
    batches: Iterator[ClipBatch]
    run: RunInfo
    learning_rate: Callable[[int], float]
    loss_of: Callable[[Any, ClipBatch], torch.Tensor]
    observers: Sequence[Observer]
    num_videos: int
    max_bad_fraction: float
    watchdog: Watchdog
    what_is_lost: Callable[[], str | None]
    finish_saves: Callable[[], None]
    mending: str
    known_bad: dict[int, BadClip] = field(default_factory=dict)
    last_skip: int | None = None

    def train(self) -> None:
        """All steps, or until all ranks agree to stop."""
        is_cuda = torch.device(self.run.device).type == "cuda"
        waiting: list[_Agreement] = []
        self.engine.train()
        for step in range(self.run.first_step, self.run.total_steps):
            event, agreement = self.take_step(step)
            waiting.append(agreement)
            asked = [self.check(waiting.pop(0)) for _ in range(len(waiting) - (1 if is_cuda else 0))]
            self.watchdog.enter("between")
            for observer in self.observers:
                observer.on_step(replace(event, is_last=any(asked) or step + 1 == self.run.total_steps))
            if any(asked):
                for agreement in waiting:  # of a step whose loss is not finite nothing was saved
                    self.check(agreement)
                self.interrupt(step + 1)
        for agreement in waiting:
            self.check(agreement)

    def take_step(self, step: int) -> tuple[StepEvent, _Agreement]:
        """Forward, backward and optimizer for the micro-batches of a step (counted from 0)."""
        engine, run, watchdog = self.engine, self.run, self.watchdog
        clock = PhaseClock(torch.device(run.device))
        rate = self.learning_rate(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        micro_losses: list[torch.Tensor] = []
        paths: list[tuple[str, ...]] = []
        new_bad: list[BadClip] = []
        num_clips = num_substitutes = clip_bytes = 0
        skips_before = engine.skipped_steps
        clock.start()
        for _ in range(run.accumulation):
            watchdog.enter("data")
            batch = next(self.batches)
            clock.mark("data")
            watchdog.enter("forward")
            loss = self.loss_of(engine, batch)
            clock.mark("forward")
            watchdog.enter("backward")
            engine.backward(loss)
            clock.mark("backward")
            watchdog.enter("optimizer")
            engine.step()
            clock.mark("optimizer")
            micro_losses.append(loss.detach())
            paths.append(batch.paths)
            new_bad.extend(batch.bad)
            num_clips += len(batch.paths)
            num_substitutes += batch.num_substitutes
            clip_bytes = max(clip_bytes, batch.frames_BTHWC.nbytes)
        local_loss = torch.stack(micro_losses).float().mean()
        # full_like fills on the device; a tensor made from a host number would wait for all the
        # work before it
        num_new_bad = torch.full_like(local_loss, len(new_bad))
        is_asked = torch.full_like(local_loss, watchdog.request is not None)
        lost = self.what_is_lost()
        is_lost = torch.full_like(local_loss, lost is not None)
        summed = torch.stack([local_loss, (~local_loss.isfinite()).float(), num_new_bad, is_asked, is_lost])
        dist.all_reduce(summed)
        counted = engine.skipped_steps > skips_before
        left_out = left_out_by(engine)
        norm = grad_norm_of(engine)
        same = [
            summed[0] / run.world_size,
            _on_device_of(local_loss, 0.0 if norm is None else norm),
            _on_device_of(local_loss, counted if left_out is None else left_out),
        ]
        numbers = StepNumbers(torch.cat([summed[1:], torch.stack(same)]))
        event = StepEvent(
            step=step + 1,
            epoch=step // run.steps_per_epoch,
            loss=StepNumber(numbers, LOSS),
            learning_rate=rate,
            grad_norm=None if norm is None else StepNumber(numbers, GRAD_NORM),
            num_clips=num_clips,
            times=clock.stop(),
            bad_clips=tuple(new_bad),
            num_substitutes=num_substitutes,
            clip_bytes=clip_bytes,
            skipped=StepNumber(numbers, LEFT_OUT),
        )
        return event, _Agreement(step, numbers, micro_losses, paths, tuple(new_bad), counted, lost)

    def check(self, agreement: _Agreement) -> bool:
        """Stop all ranks alike when the step went wrong; True when a rank was asked to stop."""
        agreed = _Agreed(*agreement.numbers.read())
        if agreed.left_out and not agreement.counted:
            self.engine.skipped_steps += 1
        if agreed.ranks_lost:
            why = next(lost for lost in gather_on_all(agreement.lost, self.run) if lost)
            raise FolderLost(why, step=agreement.step + 1)
        if agreed.num_new_bad:
            self.count_bad(agreement)
        if agreed.ranks_not_finite or agreed.left_out:
            self.skip_or_stop(agreement, int(agreed.ranks_not_finite), left_out=agreed.left_out > 0)
        return agreed.ranks_asked > 0

    def count_bad(self, agreement: _Agreement) -> None:
        """Name the videos that were newly found to be unreadable. Raises TrainingStopped when they
        are too many."""
        for bad in _gather(agreement.new_bad, self.run):
            # every epoch finds it again; once is enough for a reader
            if bad.sample not in self.known_bad:
                self.known_bad[bad.sample] = bad
                logger.warning("%s (another video is its substitute)", bad.verdict)
        if len(self.known_bad) > self.max_bad_fraction * self.num_videos:
            are = "is" if len(self.known_bad) == 1 else "are"
            raise TrainingStopped(
                Lines(
                    f"{len(self.known_bad):,} of {format_count(self.num_videos, 'video')} {are} unreadable or damaged, "
                    f"more than data.max_bad_fraction={self.max_bad_fraction} allows: {self.mending}, "
                    "or raise data.max_bad_fraction",
                    *(f"  {bad.verdict}" for bad in self.known_bad.values()),
                )
            )

    def skip_or_stop(self, agreement: _Agreement, ranks_not_finite: int, *, left_out: bool) -> None:
        """A loss or gradient that is not finite: go on once if the engine left the optimizer step
        out, else TrainingStopped."""
        step, before = agreement.step, self.last_skip
        what = f"the loss of step {step + 1:,} is not finite on {format_count(ranks_not_finite, 'rank')}"
        if not ranks_not_finite:
            what = f"the gradients of step {step + 1:,} are not finite"
        guilty = [
            path
            for loss, paths in zip(agreement.micro_losses, agreement.paths, strict=True)
            if not ranks_not_finite or not bool(loss.isfinite())
            for path in paths
        ]
        names = _gather(guilty, self.run)
        listed = [f"  {name or '(blank clip)'}" for name in names[:NAMED_CLIPS]]
        if len(names) > NAMED_CLIPS:
            listed.append(f"  and {len(names) - NAMED_CLIPS:,} more")
        if left_out and (before is None or step - before >= STEPS_BETWEEN_SKIPS):
            self.last_skip = step
            logger.warning(Lines(f"{what}; the step is left out, and the weights stay as they were; its clips:", *listed))
            return
        again = f", and so was step {before + 1:,}" if before is not None and left_out else ""
        rate = f"its peak is {self.run.learning_rate:.2g} at this batch"
        advice = f"lower optim.base_lr ({rate}), or set gradient_clipping in the DeepSpeed JSON"
        with contextlib.suppress(TrainingStopped):  # what is saved is what --resume auto will find
            self.finish_saves()
        raise TrainingStopped(Lines(f"{what}{again}; its clips:", *listed, f"{advice}; {describe_standing(self.run.run_dir)}"))

    def interrupt(self, step: int) -> None:
        """Raises TrainingInterrupted on all ranks, after `step` steps have been saved."""
        who = next((request for request in gather_on_all(self.watchdog.request, self.run) if request), "a rank was asked to stop")
        raise TrainingInterrupted(
            f"{who}: step {step:,} of {self.run.total_steps:,} is saved, go on with {resume_options(self.run.run_dir)}"
        )


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether an error came out of a collective that the other ranks did not take part in."""
    if isinstance(error, (dist.DistError, RanksLost)):
        return True
    text = str(error).lower()
    return any(part in text for part in ("gloo", "nccl", "connection closed by peer", "connection reset by peer"))


def _name_lost(watchdog: Watchdog | None, error: RuntimeError) -> str:
    reason = str(error).strip().splitlines()[0].rpartition("] ")[2].partition(". ")[0]
    who = (watchdog and watchdog.who_died()) or "another rank has died, hangs or is cut off from the network"
    return f"{who} ({reason[:160]}); see its message"


def _on_device_of(like: torch.Tensor, number: Any) -> torch.Tensor:
    """A number as a scalar of the same device and type, without waiting for the device."""
    if isinstance(number, torch.Tensor) and number.device == like.device:
        return number.detach().reshape(()).to(like.dtype)
    return torch.full_like(like, float(number))


def _gather(items: Iterable[T], ranks: Ranks) -> list[T]:
    """The items of all ranks, in the order of ranks."""
    return list(chain.from_iterable(gather_on_all(list(items), ranks)))
