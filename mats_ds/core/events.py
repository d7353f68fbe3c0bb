"""The events that the training loop hands to observers, the clock of a step's phases and the few
numbers of a step that the host reads, none of which stalls the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mats_ds.core.clips import BadClip

if TYPE_CHECKING:
    import torch

PHASES = ("data", "forward", "backward", "optimizer")


class PhaseTimes:
    """Seconds by phase of one step; on a GPU they are known only once the device has come that
    far."""

    def __init__(self, marks: list[tuple[str, float, Any]]) -> None:
        self._marks = marks

    def seconds(self) -> dict[str, float]:
        """Seconds by phase name, plus "total". On a GPU this waits for the step's last event: ask
        one step later."""
        if self._marks and self._marks[-1][2] is not None:
            self._marks[-1][2].synchronize()
        times = dict.fromkeys(PHASES, 0.0)
        for (_, before, event_before), (phase, after, event_after) in zip(self._marks[:-1], self._marks[1:], strict=True):
            # Waiting for data happens on the host while the device is idle or still busy with the
            # step before: only the host's clock measures how long the loop stood still.
            on_host = event_after is None or phase == "data"
            spent = after - before if on_host else event_before.elapsed_time(event_after) / 1e3
            times[phase] += spent
        times["total"] = self._marks[-1][1] - self._marks[0][1] if self._marks else 0.0
        return times


class PhaseClock:
    """Marks the end of each phase; costs two clock readings on a CPU and one CUDA event a mark on a
    GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float, Any]] = []

    def start(self) -> None:
        """Begin a step."""
        self._marks = []
        self.mark("start")

    def mark(self, phase: str) -> None:
        """All time since the last mark belonged to `phase` (one of PHASES)."""
        event = None
        if self._cuda:
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((phase, time.perf_counter(), event))

    def stop(self) -> PhaseTimes:
        """The finished step's times."""
        return PhaseTimes(self._marks)


class StepNumbers:
    """A few numbers of a step, on their way from the device to the host.

    On a GPU they are copied into pinned memory behind the work that computes them. Reading waits
    for that copy alone: one step later it is there, whatever was launched since. (A tensor's
    `float()` would be a copy behind all of that.)
    """

    def __init__(self, numbers_X: torch.Tensor) -> None:
        self._numbers_X = numbers_X
        self._arrived: Any = None
        if numbers_X.is_cuda:
            import torch

            self._numbers_X = torch.empty(numbers_X.shape, dtype=numbers_X.dtype, pin_memory=True)
            self._numbers_X.copy_(numbers_X, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """All of them, once the device has come that far."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers_X.tolist()


@dataclass(frozen=True)
class StepNumber:
    """One of a step's numbers: `float()` and `bool()` read it, and wait as `StepNumbers.read`
    does."""

    numbers: StepNumbers
    index: int

    def __float__(self) -> float:
        return self.numbers.read()[self.index]

    def __bool__(self) -> bool:
        return self.numbers.read()[self.index] != 0


@dataclass(frozen=True)
class RunInfo:
    """The facts of a run that never change, the same on all ranks but for `rank` and `device_name`.

    `first_step` steps were done before (0 unless resumed): the first StepEvent has step
    `first_step` + 1. `learning_rate` is the peak one; `kept`, `visible`, `targets` are tokens of
    one clip out of `num_tokens`; `*_flops_per_clip` are training FLOPs (forward + backward);
    `static_bytes` are of this rank, exact, from the engine's tensors. The recorder fills in what it
    learns of the GPU: `device_memory_bytes`, and `peak_flops` (a second, dense, in
    `peak_arithmetic`: "bf16", "tf32" or "fp32") with `peak_source` "table" or "measured"; None on a
    CPU and where it is not known. `task` is "pretrain" or "finetune". `precision`, `zero_stage`,
    batch and `gradient_clipping` (the largest norm, 0 for any; None in older files) are what the
    engine says it does; `optimizer` is the class that updates the weights. `decoding`: what decodes
    the videos, as the loader has it. `compiled`: what torch compiles, "" nothing, "blocks", or
    "graphs" (blocks, captured in CUDA graphs).
    """

    run_dir: str
    rank: int
    world_size: int
    device: str
    device_name: str
    recipe_name: str
    model_name: str
    num_parameters: int
    precision: str
    zero_stage: int
    micro_batch: int
    accumulation: int
    global_batch: int
    total_steps: int
    steps_per_epoch: int
    first_step: int
    learning_rate: float
    num_tokens: int
    kept: int
    visible: int
    targets: int
    forward_macs_per_clip: int
    model_flops_per_clip: int
    hardware_flops_per_clip: int
    static_bytes: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data_name: str = ""
    command: str = ""
    started: str = ""
    device_memory_bytes: int | None = None
    peak_flops: float | None = None
    peak_source: str = ""
    task: str = "pretrain"
    gradient_clipping: float | None = None
    optimizer: str = ""
    peak_arithmetic: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    compiled: str = ""


@dataclass(frozen=True)
class StepEvent:
    """One finished optimizer step on one rank.

    `step` counts from 1. `loss` is the mean over the step's global batch, the same on every rank.
    `grad_norm` is the global gradient norm where the engine has it, else None. `num_clips` are this
    rank's clips. `bad_clips` were found unreadable in this step on this rank. `num_substitutes`
    counts clips of the step that stand in for unreadable ones. `clip_bytes` are the frames of the
    largest micro-batch of the step. `skipped`: its gradients were not finite and the weights stayed
    as they were. `is_last`: the run ends after it, done or interrupted. Ask for `float(loss)`,
    `float(grad_norm)` and `bool(skipped)` one step later: on a GPU they wait for the step's end.
    """

    step: int
    epoch: int
    loss: Any
    learning_rate: float
    grad_norm: Any
    num_clips: int
    times: PhaseTimes
    bad_clips: tuple[BadClip, ...] = ()
    num_substitutes: int = 0
    clip_bytes: int | None = None
    skipped: Any = False
    is_last: bool = False


class OneStepLate:
    """Events for an observer that reads their numbers: on a GPU each comes with the step after it,
    so that reading does not wait; the last ones come at once."""

    def __init__(self, run: RunInfo) -> None:
        self._is_late = run.device.startswith("cuda")
        self._held: list[StepEvent] = []

    def take(self, event: StepEvent) -> Iterator[StepEvent]:
        """The events that are due, in their order."""
        self._held.append(event)
        while len(self._held) > (1 if self._is_late and not event.is_last else 0):
            yield self._held.pop(0)


class Observer(Protocol):
    """Something that watches a run. Every method is called on every rank, in the same order."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first step."""

    def on_step(self, event: StepEvent) -> None:
        """After each optimizer step. Only an observer may wait for the device."""

    def on_end(self, outcome: str) -> None:
        """Once, at the end: "finished", or the reason why the run stopped early."""
