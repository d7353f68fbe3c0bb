"""Peak memory of one rank in closed form: Workload, DeepSpeed JSON, ranks, micro-batch ->
MemoryPlan. Milliseconds, no GPU.

ZeRO's parts follow DeepSpeed's source (stage_1_and_2.py): weights and gradients in the model's
type, master weights and two moments in float32, each of the stage's partition padded to two
elements a rank; communication buckets of the JSON's size, two with overlap_comm, and one copy of a
bucket while it is reduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.planning.activations import FLOAT32, Activations, plan_activations
from mats_ds.planning.workload import Workload

# DeepSpeed's defaults of reduce_bucket_size and allgather_bucket_size
DEEPSPEED_BUCKET_ELEMENTS = 500_000_000
ALIGNMENT = 2  # elements a rank: nccl_start_alignment_factor


@dataclass(frozen=True)
class ZeroSettings:
    """The settings of a DeepSpeed JSON that decide on memory. `element_bytes`: of the model's
    type."""

    stage: int
    element_bytes: int
    bucket_elements: int
    overlaps: bool
    contiguous: bool
    offloads: bool

    @classmethod
    def of(cls, ds_config: Mapping[str, Any]) -> ZeroSettings:
        """From the JSON. Raises ValueError for an unknown stage, or fp16."""
        zero = ds_config.get("zero_optimization", {})
        stage = zero.get("stage", 0)
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_optimization.stage is 0, 1, 2 or 3, got {stage!r}")
        if ds_config.get("fp16", {}).get("enabled"):
            raise ValueError('the DeepSpeed JSON enables fp16: use "bf16": {"enabled": true}, or neither for fp32')
        offload = zero.get("offload_optimizer") or {}
        return cls(
            stage=stage,
            element_bytes=2 if ds_config.get("bf16", {}).get("enabled") else FLOAT32,
            bucket_elements=int(zero.get("reduce_bucket_size", DEEPSPEED_BUCKET_ELEMENTS)),
            overlaps=bool(zero.get("overlap_comm", stage == 3)),
            contiguous=bool(zero.get("contiguous_gradients", True)),
            offloads=offload.get("device", "none") != "none",
        )


@dataclass(frozen=True)
class MemoryPlan:
    """One rank's memory at its peak. `bytes_by_kind`, named as in metering/device_memory.py, add up
    to `peak_bytes`; kinds that begin with `host_` are in host memory and do not. `moments`: every
    candidate for the peak.
    """

    bytes_by_kind: dict[str, int]
    host_bytes: dict[str, int]
    moments: dict[str, int]
    activations: Activations

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes_by_kind.values())

    @property
    def peak_moment(self) -> str:
        return max(self.moments, key=self.moments.get)


def plan_static(workload: Workload, zero: ZeroSettings, *, world_size: int) -> dict[str, int]:
    """Bytes that a rank holds by kind, as training.engine.static_bytes measures them on a live
    engine."""
    counts = workload.parameters()
    owned = sum(partition_elements(part, world_size) for part in (counts.matrices, counts.vectors))
    if zero.stage == 0:
        owned = counts.total
    host = "host_" if zero.offloads else ""
    padded = sum(padded_elements(part, world_size) for part in (counts.matrices, counts.vectors)) if zero.stage else counts.total
    weights = owned if zero.stage == 3 else padded
    master = owned * FLOAT32 if zero.stage else (0 if zero.element_bytes == FLOAT32 else owned * FLOAT32)
    return {
        "weights": weights * zero.element_bytes,
        "gradients": (owned if zero.stage >= 2 else counts.total) * zero.element_bytes,
        f"{host}master_weights": master,
        f"{host}moments": 2 * owned * FLOAT32,
        "buckets": bucket_bytes(zero),
    }


def padded_elements(elements: int, world_size: int) -> int:
    """Elements of a group of parameters after padding to equal, aligned partitions."""
    unit = ALIGNMENT * world_size
    return -(-elements // unit) * unit


def partition_elements(elements: int, world_size: int) -> int:
    """Elements of a group that one rank owns."""
    return padded_elements(elements, world_size) // world_size


def bucket_bytes(zero: ZeroSettings) -> int:
    """Bytes of the buckets that gradients are copied into to be reduced, for the duration of
    backward."""
    if zero.stage not in (1, 2) or not zero.contiguous:
        return 0
    return zero.bucket_elements * zero.element_bytes * (2 if zero.overlaps else 1)


def plan_memory(
    workload: Workload, ds_config: Mapping[str, Any], *, world_size: int, micro_batch: int, accumulation: int = 1
) -> MemoryPlan:
    """Tensors of one rank at the peak of a step, without memory outside of torch's allocator.

    Raises ValueError for a JSON that cannot be planned.
    """
    zero = ZeroSettings.of(ds_config)
    element = zero.element_bytes
    acts = plan_activations(workload, micro_batch=micro_batch, element_bytes=element)
    static = plan_static(workload, zero, world_size=world_size)
    on_gpu = {kind: size for kind, size in static.items() if not kind.startswith("host_")}
    counts = workload.parameters()
    rest = sum(size for kind, size in on_gpu.items() if kind not in ("gradients", "buckets")) + _positions(workload, element)
    owned_bytes = sum(partition_elements(part, world_size) for part in (counts.matrices, counts.vectors)) * element
    # Between micro-batches gradients wait; without a partition of gradients (ZeRO-1) their buckets
    # stay too.
    held = static["gradients"] if accumulation > 1 else 0
    if zero.stage == 1 and accumulation > 1:
        held += on_gpu["buckets"]
    # Reduced gradients of this rank, a copy of them in one piece (not without ZeRO), and the same
    # in float32.
    if zero.stage == 0:
        owned_bytes = counts.total * element
    in_float = owned_bytes // element * FLOAT32 if element != FLOAT32 else 0
    in_step = 0 if zero.offloads else (2 if zero.stage else 1) * owned_bytes + in_float
    clips = micro_batch * workload.clip_bytes
    moments = {
        "choosing tokens": acts.choosing_bytes,
        "the loss": acts.loss_forward_bytes,
        "backward of the loss": acts.loss_backward_bytes,
        "backward": _walk_back(acts, zero, buckets=on_gpu["buckets"], owned_bytes=owned_bytes, largest=counts.largest),
        "the optimizer": clips + in_step,
    }
    moments = {name: rest + held + size for name, size in moments.items()}
    peak = max(moments.values())
    kinds = on_gpu | {"clips": clips}
    kinds["activations"] = peak - sum(kinds.values())
    host = {kind: size for kind, size in static.items() if kind.startswith("host_")}
    return MemoryPlan(kinds, host, moments, acts)


def _walk_back(acts: Activations, zero: ZeroSettings, *, buckets: int, owned_bytes: int, largest: int) -> int:
    """The peak of backward: gradients fill the bucket; a full bucket is reduced through a copy of
    it, and from then on this rank's partition of the gradients stays.
    """
    peak = waiting = staying = 0
    for turn in acts.turns:
        gradient = min(largest, turn.num_parameters) * zero.element_bytes
        waiting += turn.num_parameters
        copy = 0
        if zero.stage in (1, 2) and waiting >= zero.bucket_elements:
            copy, waiting = zero.bucket_elements * zero.element_bytes, waiting % zero.bucket_elements
        peak = max(peak, turn.alive_bytes + buckets + gradient + max(copy, staying))
        staying = staying + copy and owned_bytes
    return peak


def _positions(workload: Workload, element: int) -> int:
    """Bytes of the tables of positions."""
    size = MODEL_SIZES[workload.model_name]
    width = size.width + (size.decoder_width if workload.task == "pretrain" else 0)
    return workload.grid.num_tokens * width * element


@dataclass(frozen=True)
class ExactMemory:
    """Bytes of tensors of rank 0. `rest_bytes`: between two steps, without the batch.
    `saved_bytes`: kept by the forward pass for backward. The peaks of the four parts of a run
    include all of that.
    """

    rest_bytes: int
    saved_bytes: int
    start_peak_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    optimizer_peak_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The most while training."""
        return max(self.forward_peak_bytes, self.backward_peak_bytes, self.optimizer_peak_bytes)
