"""The observer that writes a run's plan beside its records, and the bytes that the first
micro-batch really kept for backward.

The plan is the closed form of `mats plan`; it takes milliseconds. On a CPU resident memory is not
planned: static bytes and what the forward pass keeps for backward can be compared there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mats_ds.core.events import RunInfo, StepEvent
from mats_ds.core.format import format_bytes
from mats_ds.core.gpus import Gpu
from mats_ds.planning.forecast import LoaderMemory, as_recorded, forecast
from mats_ds.planning.plan_file import Plan, write_measured, write_plan
from mats_ds.planning.tensor_bytes import SavedBytes
from mats_ds.planning.workload import Workload

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
ON_A_CPU = "resident memory of a CPU rank is not planned: compare static bytes, and what is kept for backward"
NOT_MEASURED = "CUDA context, NCCL, decoder and fragments are assumed: no plan was checked on this GPU"


@dataclass
class PlanRecorder:
    """Writes plan.json on rank 0; other ranks do nothing. `measures`: count what the first forward
    pass keeps for backward, which is not possible where a compiler runs the model.
    """

    workload: Workload
    ds_config: Mapping[str, Any]
    module: torch.nn.Module
    loader: LoaderMemory
    measures: bool = True

    def on_start(self, run: RunInfo) -> None:
        """Write the plan, log its peak, and watch the first forward pass."""
        self._saved: SavedBytes | None = None
        self._run_dir = Path(run.run_dir)
        if run.rank != 0:
            return
        plan = plan_run(self.workload, self.ds_config, run, self.loader)
        write_plan(self._run_dir, plan)
        what = "tensors of a rank" if run.device_name == "CPU" else "a GPU"
        logger.info(
            "planned: %s at the peak for %s, %s of it kept for backward",
            format_bytes(plan.peak_bytes),
            what,
            format_bytes(plan.saved_bytes),
        )
        if self.measures:
            self._saved = SavedBytes(self.module)

    def on_step(self, event: StepEvent) -> None:
        """After the first step, write what was kept for backward."""
        if self._saved is not None:
            if self._saved.num_bytes is not None:
                write_measured(self._run_dir, saved_bytes=self._saved.num_bytes)
            self._saved.detach()
            self._saved = None

    def on_end(self, outcome: str) -> None:
        """Remove the hooks."""
        if self._saved is not None:
            self._saved.detach()


def plan_run(workload: Workload, ds_config: Mapping[str, Any], run: RunInfo, loader: LoaderMemory) -> Plan:
    """The plan of a run that is about to start, on the GPU that it has."""
    on_cpu = run.device_name == "CPU"
    gpu = Gpu(run.device_name, run.device_name, run.device_memory_bytes or 1)
    batch = dict(world_size=run.world_size, micro_batch=run.micro_batch, accumulation=run.accumulation)
    planned = forecast(workload, ds_config, gpu=gpu, loader=loader, **batch)
    flops = workload.flops()
    return Plan(
        world_size=run.world_size,
        micro_batch=run.micro_batch,
        bytes_by_kind=planned.memory.bytes_by_kind if on_cpu else as_recorded(planned.bytes_by_kind),
        saved_bytes=planned.memory.activations.saved_bytes,
        model_flops_per_clip=flops.training_flops,
        hardware_flops_per_clip=flops.hardware_flops,
        device_name=run.device_name,
        assumptions=(ON_A_CPU if on_cpu else NOT_MEASURED,),
    )
