"""The events that the training loop hands to observers, and the clock of a step's phases, which
never stalls the device."""

from __future__ import annotations

import time
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
    engine says it does; `optimizer` is the class that updates the weights; `compiled` says what
    torch compiles: "" nothing, "blocks", or "graphs" (blocks, captured in CUDA graphs).
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
    compiled: str = ""


@dataclass(frozen=True)
class StepEvent:
    """One finished optimizer step on one rank.

    `step` counts from 1. `loss` is a detached scalar tensor on the device: the mean over the step's
    global batch, the same on every rank. `grad_norm` is the global gradient norm where the engine
    has it (tensor or float), else None. `num_clips` are this rank's clips. `bad_clips` were found
    unreadable in this step on this rank. `num_substitutes` counts clips of the step that stand in
    for unreadable ones. `clip_bytes` are the frames of the largest micro-batch of the step.
    `skipped`: its gradients were not finite and the weights stayed as they were. `is_last`: the run
    ends after it, done or interrupted.
    """

    step: int
    epoch: int
    loss: torch.Tensor
    learning_rate: float
    grad_norm: Any
    num_clips: int
    times: PhaseTimes
    bad_clips: tuple[BadClip, ...] = ()
    num_substitutes: int = 0
    clip_bytes: int | None = None
    skipped: bool = False
    is_last: bool = False


class Observer(Protocol):
    """Something that watches a run. Every method is called on every rank, in the same order."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first step."""

    def on_step(self, event: StepEvent) -> None:
        """After each optimizer step. Only an observer may wait for the device."""

    def on_end(self, outcome: str) -> None:
        """Once, at the end: "finished", or the reason why the run stopped early."""
