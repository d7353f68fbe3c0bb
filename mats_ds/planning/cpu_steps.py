"""The observer that says, before the first step of a run on CPUs, how long a step and the run will
take: FLOPs of the plan over FLOP/s that were just measured here.

What is measured is one layer of the model's width, forward and backward, in the type that the run
computes in, by all ranks at once as they will train: ranks that share cores slow each other down,
and a CPU without instructions for bfloat16 emulates it. Reading the clips, the optimizer and the
exchange of gradients are not in it, and larger products than the timed ones are quicker: within a
factor of two or so where a step takes seconds; of small clips reading may take most of a step. From
the fourth step on the console has measured times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mats_ds.core.events import RunInfo, StepEvent
from mats_ds.core.format import HOUR, format_count, format_duration, format_figure, format_flops
from mats_ds.core.storage.package_files import own_command
from mats_ds.distributed.collectives import gather_on_all
from mats_ds.models.sizes import MLP_RATIO, MODEL_SIZES
from mats_ds.planning.flops import FLOPS_PER_MAC
from mats_ds.planning.workload import Workload

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Nobody waits for these unwarned: then a smaller recipe is offered.
SLOW_STEP_SECONDS = 60.0
LONG_RUN_SECONDS = 24.0 * HOUR
TIMED_SECONDS = 0.3  # a measurement that takes less is repeated with more rows ...
SLOW_SECONDS = 2.0
FIRST_ROWS, MAX_ROWS = 32, 2048  # ... from these on, up to these: as many tokens as a large micro-batch has
TINY = {"pretrain": "tiny", "finetune": "finetune_tiny"}
TINY_JSON = "zero2_tiny"


@dataclass
class CpuSteps:
    """Tells on rank 0 how long a step will take on these CPUs; silent on a GPU.

    data: overrides that name the run's videos, for the smaller command that it offers.
    """

    workload: Workload
    data: Sequence[str] = ()

    def on_start(self, run: RunInfo) -> None:
        """Measure on all ranks at once, tell on rank 0."""
        if run.device != "cpu":
            return
        gather_on_all(None, run)  # begin together
        rates = gather_on_all(measure_rate(MODEL_SIZES[self.workload.model_name].width, precision=run.precision), run)
        if run.rank != 0:
            return
        line, warning = describe_steps(run, flops_per_second=min(rates), data=self.data)
        logger.info("%s", line)
        if warning:
            logger.warning("%s", warning)

    def on_step(self, event: StepEvent) -> None:
        """Measured steps are the console's."""

    def on_end(self, outcome: str) -> None:
        """Nothing is open."""


def describe_steps(run: RunInfo, *, flops_per_second: float, data: Sequence[str] = ()) -> tuple[str, str]:
    """A line on the time of a step and of the run, and a warning where one of them is beyond its
    bound ("" where not).

    flops_per_second: of the slowest rank.
    """
    clips = run.micro_batch * run.accumulation
    flops = run.hardware_flops_per_clip * clips
    step_seconds = flops / flops_per_second
    num_steps = run.total_steps - run.first_step
    run_seconds = num_steps * step_seconds
    a_step = format_duration(step_seconds) if step_seconds >= 10 else f"{format_figure(step_seconds, 2)} s"
    line = (
        f"time: about {a_step} a step and {format_duration(run_seconds)} for "
        f"{format_count(num_steps, 'step')} to compute on this CPU, reading not counted ({format_flops(flops)} a rank and step; "
        f"{format_flops(flops_per_second)}/s just measured in {run.precision}, {format_count(run.world_size, 'rank')} at work)"
    )
    if step_seconds <= SLOW_STEP_SECONDS and run_seconds <= LONG_RUN_SECONDS:
        return line, ""
    tiny = TINY.get(run.task, "tiny")
    bounds = f"more than {format_duration(SLOW_STEP_SECONDS)} a step or {format_duration(LONG_RUN_SECONDS)} a run"
    if run.recipe_name == tiny:
        affordable = min(num_steps, max(1, int(LONG_RUN_SECONDS / step_seconds)))
        return line, f"this is {bounds}: end it early with run.max_steps={affordable}, or use a machine with a GPU"
    command = own_command(run.task, "--recipe", tiny, "--ds_config", TINY_JSON, *data)
    return line, (
        f"this is {bounds}: the recipe {run.recipe_name} is made for GPUs. To see everything work on a CPU in minutes, stop this "
        f"(Ctrl-C) and type: {command}"
    )


def measure_rate(width: int, *, precision: str) -> float:
    """FLOP/s of this process in the two products of an MLP of this width, forward and backward, in
    "bf16", "fp16" or "fp32".

    Draws no random number, so that a run computes what it computes without it.
    """
    import torch
    from torch.nn import functional as F

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    hidden = MLP_RATIO * width
    expand = torch.full((hidden, width), 0.01, dtype=dtype, requires_grad=True)
    shrink = torch.full((width, hidden), 0.01, dtype=dtype, requires_grad=True)
    rows = FIRST_ROWS
    seconds = _time(rows, expand, shrink, F)  # kernels are chosen and made at the first call ...
    if seconds < SLOW_SECONDS:  # ... which counts only where another would be a long wait
        seconds = _time(rows, expand, shrink, F)
    while seconds < TIMED_SECONDS and rows < MAX_ROWS:
        rows = min(MAX_ROWS, 4 * rows)
        seconds = _time(rows, expand, shrink, F)
    # backward is two products of the same size for each
    return 3 * FLOPS_PER_MAC * 2 * rows * width * hidden / seconds


def _time(rows: int, expand: torch.Tensor, shrink: torch.Tensor, functional) -> float:
    tokens = expand.detach().new_full((rows, expand.shape[1]), 0.5).requires_grad_()
    began_seconds = time.perf_counter()
    functional.linear(functional.gelu(functional.linear(tokens, expand)), shrink).sum().backward()
    return max(1e-9, time.perf_counter() - began_seconds)
