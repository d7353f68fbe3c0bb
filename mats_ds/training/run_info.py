"""What is known of a run before its first step, for records, report and reader: RunInfo, and the lines that announce it."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from typing import Any

import torch

from mats_ds.config.recipe import Recipe
from mats_ds.core.events import RunInfo
from mats_ds.core.run_dir import collect_versions
from mats_ds.core.token_grid import TokenCounts
from mats_ds.distributed.exits import AlreadyFinished
from mats_ds.training.engine import in_force, optimizer_name, static_bytes
from mats_ds.training.optim import Schedule
from mats_ds.training.start import RunStart

logger = logging.getLogger("mats_ds")


def describe_run(
    recipe: Recipe,
    start: RunStart,
    *,
    engine: Any,
    schedule: Schedule,
    steps_per_epoch: int,
    first_step: int,
    counts: TokenCounts,
    flops: Any,
    data_name: str,
) -> RunInfo:
    """flops: per clip, with forward_macs, training_flops and hardware_flops (metering's StepFlops).
    Raises AlreadyFinished when all steps have been done before.
    """
    total_steps = min(schedule.total_steps, recipe.run.max_steps or schedule.total_steps)
    if first_step >= total_steps:
        raise AlreadyFinished(
            f"{start.folder} has finished all {total_steps} steps: raise optim.epochs (or run.max_steps), or use another --out"
        )
    place, plan, forced = start.place, start.plan, in_force(engine)
    parameters = engine.module.parameters()
    return RunInfo(
        run_dir=str(start.folder),
        rank=place.rank,
        world_size=place.world_size,
        device=str(place.device),
        device_name=torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "CPU",
        recipe_name=recipe.name,
        model_name=recipe.model.name,
        num_parameters=sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters),
        precision=forced.precision,
        zero_stage=forced.zero_stage,
        micro_batch=forced.micro_batch,
        accumulation=forced.accumulation,
        global_batch=plan.global_batch,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        first_step=first_step,
        learning_rate=schedule.peak,
        num_tokens=recipe.clip.grid().num_tokens,
        kept=counts.kept,
        visible=counts.visible,
        targets=counts.targets,
        forward_macs_per_clip=flops.forward_macs,
        model_flops_per_clip=flops.training_flops,
        hardware_flops_per_clip=flops.hardware_flops,
        static_bytes=static_bytes(engine),
        versions=collect_versions(),
        data_name=data_name,
        command=shlex.join(
            [f"mats_ds/{start.task}.py", *(argument for argument in sys.argv[1:] if "--local_rank" not in argument)]
        ),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        task=start.task,
        gradient_clipping=forced.gradient_clipping,
        optimizer=optimizer_name(engine),
    )


def announce(run: RunInfo, *, compute: str, data: str, batch: str) -> None:
    """What is about to happen, in six lines."""
    logger.info(
        "model: %s, %.1f M parameters, %s, ZeRO-%d on %d x %s",
        run.model_name,
        run.num_parameters / 1e6,
        run.precision,
        run.zero_stage,
        run.world_size,
        run.device_name,
    )
    clipped = f"clipped at a norm of {run.gradient_clipping:g}" if run.gradient_clipping else "not clipped"
    logger.info("optimizer: %s, gradients are %s", run.optimizer, clipped)
    logger.info("%s", compute)
    logger.info("data: %s", data)
    logger.info("batch: %s", batch)
    end = f" (of {run.total_steps})" if run.first_step else ""
    logger.info(
        "steps: %d to %d%s, %d an epoch; peak learning rate %.3g; run folder %s",
        run.first_step + 1,
        run.total_steps,
        end,
        run.steps_per_epoch,
        run.learning_rate,
        run.run_dir,
    )
