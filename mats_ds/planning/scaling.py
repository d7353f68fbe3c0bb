"""One model on a number of GPUs: bytes sent, clips decoded and bytes of a checkpoint. Planner's
figures -> Scale.

Everything is computed; links and disks are the assumptions of `Site`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mats_ds.config.batch_plan import MICRO_BATCH_KEY, BatchPlan, plan_batch
from mats_ds.config.ds_config import precision_of
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.gpus import Gpu
from mats_ds.planning.forecast import KNOWN_CLIPS, Forecast, LoaderMemory, TimePlan, forecast, plan_time
from mats_ds.planning.memory import ZeroSettings, padded_elements
from mats_ds.planning.room import room_on
from mats_ds.planning.sweep import loader_on
from mats_ds.planning.workload import Workload

GB = 1e9
RECIPE_GPUS = 8  # that the recipes' global batches are for
# of an element in the optimizer's part of a checkpoint: float32 master weight and two moments
STATE_BYTES = 12
KEYFRAME_DISTANCE = 16  # of training copies that `prepare transcode` writes (docs/guides/prepare.md)


@dataclass(frozen=True)
class Site:
    """Machines and links, assumed. Bytes a second in one direction, of one machine: NVLink of an
    A100 (NVIDIA: 600 GB/s both ways), one 100 Gb/s network adapter, eight of 200 Gb/s; and a shared
    disk that all machines write to.
    """

    gpus_per_machine: int = 8
    nvlink: float = 300 * GB
    one_adapter: float = 12.5 * GB
    eight_adapters: float = 200 * GB
    disk: float = 2 * GB


@dataclass(frozen=True)
class Scale:
    """One model on one number of GPUs."""

    workload: Workload
    planned: Forecast
    batch: BatchPlan
    time: TimePlan
    zero: ZeroSettings
    recipe: Recipe
    site: Site

    @property
    def world_size(self) -> int:
        return self.planned.world_size

    @property
    def num_parameters(self) -> int:
        return self.workload.parameters().total

    @property
    def num_buckets(self) -> int:
        """All-reduces of gradients of a micro-batch, at least: a tensor that no longer fits into a
        bucket begins the next."""
        return math.ceil(self.num_parameters / self.zero.bucket_elements)

    @property
    def reduced_bytes(self) -> float:
        """Bytes that a GPU sends in the all-reduce of one micro-batch's gradients, in a ring.

        ZeRO-2 of DeepSpeed 0.19 all-reduces full buckets (use_multi_rank_bucket_allreduce) and
        keeps its part: twice a reduce-scatter.
        """
        return 2 * self._ring_fraction * self.num_parameters * self.zero.element_bytes

    @property
    def gathered_bytes(self) -> float:
        """Bytes that a GPU sends in the all-gather of the new weights."""
        return self._ring_fraction * self.num_parameters * self.zero.element_bytes

    @property
    def sent_bytes(self) -> float:
        """Bytes that a GPU sends in a step."""
        return self.batch.accumulation * self.reduced_bytes + self.gathered_bytes

    @property
    def _ring_fraction(self) -> float:
        return (self.world_size - 1) / self.world_size

    def link_seconds(self, between_machines: float) -> float:
        """Seconds to send a step's bytes at the full speed of the ring's slowest link, without
        latency; on one machine all links are NVLink."""
        inside = self.world_size <= self.site.gpus_per_machine
        return self.sent_bytes / (self.site.nvlink if inside else min(self.site.nvlink, between_machines))

    @property
    def clips_per_second_per_gpu(self) -> float:
        """Clips that one GPU trains on in a second."""
        return self.time.clips_per_second / self.world_size

    @property
    def frames_per_clip(self) -> float:
        """Frames that a decoder reads for a clip: from its first to its last, and half a keyframe
        distance before."""
        clip = self.recipe.clip
        return (clip.num_frames - 1) * clip.stride + 1 + (KEYFRAME_DISTANCE - 1) / 2

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the part of a checkpoint that one rank writes."""
        counts = self.workload.parameters()
        padded = sum(padded_elements(part, self.world_size) for part in (counts.matrices, counts.vectors))
        return padded // self.world_size * STATE_BYTES

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint: every rank's part, and the weights in the model's type once."""
        return self.world_size * self.optimizer_bytes + self.num_parameters * self.zero.element_bytes


def plan_scale(model: str, world_size: int, *, gpu: Gpu, ds_config: Mapping[str, Any], mfu: float, site: Site) -> Scale:
    """Pre-training on Kinetics-400 with the JSON's micro-batch on every GPU (where it has none, the
    one that it gives 8 GPUs): the global batch grows.

    Raises ValueError for a JSON or a GPU that cannot be planned.
    """
    recipe = load_recipe("k400", [f"model.name={model}"])
    workload = Workload.from_recipe(recipe)
    loader = loader_on(gpu, LoaderMemory(prefetch=recipe.data.prefetch))
    micro = ds_config.get(MICRO_BATCH_KEY)
    if micro is None:  # what the recipe's own number of GPUs would take
        room = room_on(gpu, workload, ds_config, world_size=RECIPE_GPUS, loader=loader)
        of_recipe = plan_batch(ds_config, recipe_batch=recipe.optim.global_batch, world_size=RECIPE_GPUS, room=room)
        micro = of_recipe.micro_batch
    batch = plan_batch({**ds_config, MICRO_BATCH_KEY: micro}, recipe_batch=micro * world_size, world_size=world_size)
    planned = forecast(
        workload,
        ds_config,
        gpu=gpu,
        world_size=world_size,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        loader=loader,
    )
    time = plan_time(
        workload.flops(),
        device_name=gpu.device_name,
        world_size=world_size,
        clips_per_step=batch.global_batch,
        num_clips=KNOWN_CLIPS["k400"],
        epochs=recipe.optim.epochs,
        steps=None,
        mfu=mfu,
        precision=precision_of(ds_config),
    )
    if time.step_seconds is None:
        raise ValueError(f"the peak of {gpu.name} in {precision_of(ds_config)} is not in the table of peaks: choose another GPU")
    return Scale(workload, planned, batch, time, ZeroSettings.of(ds_config), recipe, site)
