"""Memory and time of a run before it is started: workload, DeepSpeed JSON and GPU -> Forecast and
TimePlan.

What torch's allocator will hold is in closed form (memory.py); what lies outside of it is assumed
(Overheads).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mats_ds.core.format import MIB
from mats_ds.core.gpus import Gpu
from mats_ds.core.run_dir import RUN_FILE, read_run
from mats_ds.core.storage.file_kind import not_a
from mats_ds.core.storage.files import refuse_wrong_kind
from mats_ds.metering.device_memory import ACTIVATIONS, CACHE, OUTSIDE
from mats_ds.metering.peak_flops import BF16, find_peak
from mats_ds.metering.record_reader import RankReader
from mats_ds.metering.step_record import RECORDS_FOLDER
from mats_ds.planning.flops import StepFlops
from mats_ds.planning.memory import MemoryPlan, ZeroSettings, plan_memory
from mats_ds.planning.workload import Workload

MAX_MICRO_BATCH = 4096
SECONDS_PER_HOUR = 3600
# no run of this trainer has been timed on a GPU: an assumption, not a measurement
ASSUMED_MFU = 0.35
# Training clips of the data sets that the recipes are for. Kinetics-400 and Something-Something V2:
# VideoMAE's DATASET.md lists about 240 k and 169 k; UCF101 split 1: 9 537; HMDB51 split 1: 3 570.
KNOWN_CLIPS = {"k400": 240_000, "ssv2": 169_000, "ucf101": 9_537, "hmdb51": 3_570}


@dataclass(frozen=True)
class LoaderMemory:
    """Loader settings that take GPU memory: prefetched micro-batches, DALI's pipelines, and the
    size of the videos.

    The default size is that of training copies with a shorter side of 256
    (docs/guides/prepare.md); a chunk of a pipeline is 8 clips.
    """

    prefetch: int = 2
    num_pipelines: int = 2
    height: int = 256
    width: int = 340
    clips_per_chunk: int = 8


@dataclass(frozen=True)
class Overheads:
    """Memory of a GPU beside the tensors, in bytes, and a margin. Assumptions with reasons: nothing
    was measured on a GPU by this project.

    - `context`: CUDA context and loaded kernels, 0.4 to 0.6 GB with PyTorch.
    - `nccl`: NCCL's channel buffers: up to 32 channels of 4 MiB (NCCL_BUFFSIZE) and three
      protocols; none with one GPU.
    - `cublas`: PyTorch's workspace for cuBLAS, 8 MiB before and 32 MiB on Hopper (torch.backends
      documentation), the larger.
    - `surfaces`: the pictures that NVDEC decodes into (20, the most that its references and
      reordering need) and the decoded clips of one chunk of a DALI pipeline in RGB, before they are
      scaled.
    - `fragments_fraction`: reserved and unusable, as a fraction of the tensors.
    - `margin_fraction`: of the GPU's memory, left free.
    """

    context: int = 512 * MIB
    nccl: int = 384 * MIB
    cublas: int = 32 * MIB
    surfaces: int = 20
    fragments_fraction: float = 0.05
    margin_fraction: float = 0.03

    def decoder_bytes(self, *, num_pipelines: int, chunk_frames: int, height: int, width: int) -> int:
        """Of DALI's pipelines on videos of `height` x `width`; a chunk holds `chunk_frames` frames
        (NV12: 1.5 bytes a pixel)."""
        pixels = height * width
        return num_pipelines * (self.surfaces * pixels * 3 // 2 + chunk_frames * pixels * 3)

    def outside(self, *, world_size: int) -> int:
        """Outside of torch's allocator, without the decoder."""
        return self.context + self.cublas + (self.nccl if world_size > 1 else 0)


@dataclass(frozen=True)
class Forecast:
    """The memory of one rank on one GPU. `bytes_by_kind`: all of it, in the order of a table;
    `limit_bytes`: the GPU's memory less the margin.
    """

    workload: Workload
    gpu: Gpu
    world_size: int
    micro_batch: int
    accumulation: int
    memory: MemoryPlan
    bytes_by_kind: dict[str, int]
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_kind.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.limit_bytes


def forecast(
    workload: Workload,
    ds_config: Mapping[str, Any],
    *,
    gpu: Gpu,
    world_size: int,
    micro_batch: int,
    accumulation: int = 1,
    loader: LoaderMemory | None = None,
    overheads: Overheads | None = None,
) -> Forecast:
    """The memory that a rank needs on `gpu`. Raises ValueError for a JSON that cannot be
    planned."""
    loader, overheads = loader or LoaderMemory(), overheads or Overheads()
    memory = plan_memory(workload, ds_config, world_size=world_size, micro_batch=micro_batch, accumulation=accumulation)
    kinds = dict(memory.bytes_by_kind)
    if workload.captured:  # graphs have a batch and the gradients of all parameters of their own
        kinds[ACTIVATIONS] += micro_batch * workload.clip_bytes
        kinds[ACTIVATIONS] += workload.parameters().total * ZeroSettings.of(ds_config).element_bytes
    # Prefetched micro-batches, and the one that is being assembled.
    kinds["waiting_clips"] = (loader.prefetch + 1) * micro_batch * workload.clip_bytes
    kinds[CACHE] = int(overheads.fragments_fraction * sum(kinds.values()))
    kinds["decoder"] = overheads.decoder_bytes(
        num_pipelines=loader.num_pipelines,
        chunk_frames=min(loader.clips_per_chunk, micro_batch) * workload.candidate_grid.num_frames,
        height=loader.height,
        width=loader.width,
    )
    kinds[OUTSIDE] = overheads.outside(world_size=world_size)
    limit = int((1 - overheads.margin_fraction) * gpu.memory_bytes)
    return Forecast(workload, gpu, world_size, micro_batch, accumulation, memory, kinds, limit)


def largest_micro_batch(workload: Workload, ds_config: Mapping[str, Any], **how: Any) -> int:
    """The largest micro-batch that fits, 0 if not even one clip; `how`: as for `forecast`, without
    `micro_batch`."""
    if not forecast(workload, ds_config, micro_batch=1, **how).fits:
        return 0
    fits, too_many = 1, MAX_MICRO_BATCH + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if forecast(workload, ds_config, micro_batch=middle, **how).fits:
            fits = middle
        else:
            too_many = middle
    return fits


def as_recorded(kinds: Mapping[str, int]) -> dict[str, int]:
    """The kinds as a report measures them: prefetched clips count as activations, the decoder as
    outside of torch."""
    recorded = dict(kinds)
    recorded[ACTIVATIONS] += recorded.pop("waiting_clips", 0)
    recorded[OUTSIDE] = recorded.get(OUTSIDE, 0) + recorded.pop("decoder", 0)
    return recorded


@dataclass(frozen=True)
class TimePlan:
    """Steps and their time. `step_seconds` None: the peak of the GPU in this precision is not
    known."""

    num_clips: int
    clips_per_step: int
    total_steps: int
    steps_per_epoch: int
    mfu: float
    step_seconds: float | None = None

    @property
    def hours(self) -> float | None:
        return None if self.step_seconds is None else self.total_steps * self.step_seconds / SECONDS_PER_HOUR

    @property
    def clips_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.clips_per_step / self.step_seconds


def plan_time(
    flops: StepFlops,
    *,
    device_name: str,
    world_size: int,
    clips_per_step: int,
    num_clips: int,
    epochs: float,
    steps: int | None,
    max_steps: int | None = None,
    mfu: float = ASSUMED_MFU,
    precision: str = BF16,
) -> TimePlan:
    """The time of `epochs` over `num_clips`, or of `steps`, in "bf16" or "fp32", ended early after
    `max_steps`.

    `step_seconds` is None for a GPU without a listed peak in that precision.
    """
    steps_per_epoch = max(1, num_clips // clips_per_step)
    total = steps if steps is not None else max(1, math.ceil(epochs * steps_per_epoch))
    total = min(total, max_steps or total)
    peak = find_peak(device_name, precision)
    seconds = None
    if peak is not None:
        seconds = flops.training_flops * clips_per_step / (peak.flops_per_second * world_size * mfu)
    return TimePlan(num_clips, clips_per_step, total, steps_per_epoch, mfu, seconds)


def measured_mfu(run_dir: str | Path) -> float:
    """The median MFU of a run's first rank, without its first fifth of steps. Raises ValueError
    where none was recorded."""
    path = Path(run_dir) / RECORDS_FOLDER / "rank-00000.jsonl"
    refuse_wrong_kind(path, below=Path(run_dir))
    if not path.is_file():
        raise ValueError(f"{not_a('run folder', run_dir)}: it has no {RECORDS_FOLDER}/rank-00000.jsonl")
    info = read_run(run_dir).info if os.path.lexists(Path(run_dir) / RUN_FILE) else None
    if info is not None and info.precision != BF16 and not info.peak_arithmetic:
        raise ValueError(
            f"{run_dir} ran in {info.precision} and recorded its MFU of the bf16 peak, as it did then: state one with --mfu"
        )
    figures = [record.mfu for record in RankReader(path)]
    known = [mfu for mfu in figures[len(figures) // 5 :] if mfu]
    if not known:
        raise ValueError(f"{run_dir} recorded no MFU (a CPU, or a GPU whose peak is not known): state one with --mfu")
    mfu = median(known)
    if mfu > 1:
        raise ValueError(f"{run_dir} recorded an MFU of {mfu:.3g}, which is above 1: state one with --mfu")
    return mfu
