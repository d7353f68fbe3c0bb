"""The micro-batch that a DeepSpeed JSON leaves out: the largest that the plan says fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mats_ds.config.batch_plan import MICRO_BATCH_KEY, BatchPlan, Room, plan_batch
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.format import GIB
from mats_ds.core.gpus import Gpu
from mats_ds.core.run_dir import read_run
from mats_ds.planning.forecast import LoaderMemory, Overheads, forecast
from mats_ds.planning.memory import ZeroSettings
from mats_ds.planning.sweep import loader_on
from mats_ds.planning.workload import DEFAULT_CLASSES, Workload

if TYPE_CHECKING:
    from mats_ds.distributed.ranks import RankInfo

# Measured with the tiny model on clips of 16 x 224 x 224 and one core: 8 to 14 clips/s at 1, 2, 4,
# 8, 16 and 32, in no order.
CPU_MICRO_BATCH = 8


def room_on(gpu: Gpu, workload: Workload, ds_config: Mapping[str, Any], *, world_size: int, loader: LoaderMemory) -> Room:
    """The micro-batches that fit on `gpu`, one of `world_size`, as `mats plan` says; under ZeRO-3
    with room for all weights, which the plan does not count as gathered."""
    zero = ZeroSettings.of(ds_config)
    gathered = workload.parameters().total * zero.element_bytes if zero.stage == 3 else 0
    usable = replace(gpu, memory_bytes=max(0, gpu.memory_bytes - gathered))

    def fits(micro_batch: int, accumulation: int) -> bool:
        how = dict(world_size=world_size, micro_batch=micro_batch, accumulation=accumulation, loader=loader)
        return forecast(workload, ds_config, gpu=usable, **how).fits

    return Room(fits, f"fit on {gpu.device_name} ({gpu.memory_bytes / GIB:.1f} GiB) by the plan")


def room_of_run(workload: Workload, ds_config: Mapping[str, Any], ranks: RankInfo, *, prefetch: int) -> Room:
    """The micro-batches that fit on the device of every rank; called by all of them. On a CPU,
    where more clips at once are no faster and memory is everybody's, CPU_MICRO_BATCH at most.

    A GPU counts with what is free of it and the context that this process has there.
    """
    if ranks.device.type != "cuda":
        return Room(lambda micro_batch, _: micro_batch <= CPU_MICRO_BATCH, f"are within the {CPU_MICRO_BATCH} that suit a CPU")
    import torch

    from mats_ds.distributed.collectives import gather_on_all

    free, total = torch.cuda.mem_get_info(ranks.device)
    name = torch.cuda.get_device_name(ranks.device)
    usable = min(total, free + Overheads().context)
    smallest, name = min(gather_on_all((usable, name), ranks))
    gpu = Gpu(name, name, smallest)
    loader = loader_on(gpu, LoaderMemory(prefetch=prefetch))
    return room_on(gpu, workload, ds_config, world_size=ranks.world_size, loader=loader)


def plan_batch_of_run(recipe: Recipe, ds_config: Mapping[str, Any], ranks: RankInfo, *, went_on: Path | None) -> BatchPlan:
    """The batch of a run; called by all ranks. Where the JSON leaves the micro-batch out, it is
    that of the run in the folder `went_on`, if that had as many ranks, or else the largest that
    fits.

    Raises ValueError for a JSON that does not fit the recipe.
    """
    from mats_ds.distributed.collectives import ask_first

    how = dict(recipe_batch=recipe.optim.global_batch, world_size=ranks.world_size, repeats=recipe.data.repeats)
    if ds_config.get(MICRO_BATCH_KEY) is not None:
        return plan_batch(ds_config, **how)
    micro = None if went_on is None else ask_first(partial(_recorded, went_on, ranks.world_size), ranks)
    if micro is not None:
        kept = plan_batch({**ds_config, MICRO_BATCH_KEY: micro}, **how)
        return replace(kept, note=f'{kept.note}; the JSON leaves "{MICRO_BATCH_KEY}" out: {micro}, as the run began')
    if isinstance(recipe, FinetuneRecipe):
        workload = Workload.from_finetuning(recipe, num_classes=recipe.finetune.num_classes or DEFAULT_CLASSES)
    else:
        workload = Workload.from_recipe(recipe)
    return plan_batch(ds_config, **how, room=room_of_run(workload, ds_config, ranks, prefetch=recipe.data.prefetch))


def _recorded(folder: Path, world_size: int) -> int | None:
    """The micro-batch of the run in the folder; None where it had another number of ranks, or
    nothing is recorded."""
    try:
        info = read_run(folder).info
    except (ValueError, OSError):
        return None
    return info.micro_batch if info.world_size == world_size else None
