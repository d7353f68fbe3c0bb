"""What every training script does before it opens a video: options, ranks, folder."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.config.batch_plan import BatchPlan, plan_batch
from mats_ds.config.ds_config import notes_on, read_ds_config, state_clipping, zero_stage_of
from mats_ds.config.load import dump_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.distributed.consistency import check_shared_folder
from mats_ds.distributed.ranks import RankInfo, start_distributed
from mats_ds.training.checkpoints.resume import ResumePoint, find_resume_point
from mats_ds.training.checkpoints.saver import CheckpointSaver
from mats_ds.training.ds_outputs import check_outputs, name_outputs
from mats_ds.training.own_folder import CHECKPOINTS
from mats_ds.training.run_folder import choose_run_folder

logger = logging.getLogger("mats_ds")

ADVICE = "make room or mend that disk, then go on with --resume auto"


@dataclass(frozen=True)
class RunStart:
    """Where a run takes place: its rank and device, its share of the batch, its folder, its DeepSpeed JSON.

    `task` is "pretrain" or "finetune", the name of the script; `point`: the checkpoint to go on from, None from the first step.
    """

    task: str
    place: RankInfo
    plan: BatchPlan
    folder: Path
    ds_config: Mapping[str, Any]
    point: ResumePoint | None

    @property
    def load_universal(self) -> bool:
        """Whether the engine is to be given a checkpoint that was converted for another number of ranks."""
        return self.point is not None and self.point.is_converted


def add_run_options(parser: argparse.ArgumentParser, *, default_recipe: str | None) -> None:
    """The options of a training run; without `default_recipe` a recipe must be named."""
    default = f" (default: {default_recipe})" if default_recipe else ""
    parser.add_argument(
        "--recipe",
        default=default_recipe,
        required=default_recipe is None,
        help=f"YAML file, or a name in mats_ds/recipes{default}",
    )
    parser.add_argument("--ds_config", required=True, help="DeepSpeed JSON, for example ds_configs/zero2.json")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-DATE-TIME)")
    parser.add_argument("--resume", choices=["auto"], help="go on from the newest whole checkpoint of the run folder")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")


def start_run(recipe: Recipe, options: argparse.Namespace, *, task: str) -> RunStart:
    """Read the JSON, join the other ranks, settle batch and folder. Raises ValueError for what does not fit together."""
    ds_config = read_ds_config(options.ds_config)
    check_outputs(ds_config)
    for note in (*notes_on(ds_config), *name_outputs(ds_config)):
        logger.info("%s", note)
    ds_config = state_clipping(ds_config)
    place = start_distributed(timeout_seconds=recipe.run.hang_seconds)
    plan = plan_batch(ds_config, recipe_batch=recipe.optim.global_batch, world_size=place.world_size, repeats=recipe.data.repeats)
    resume = options.resume is not None
    folder = choose_run_folder(options.out, recipe_name=recipe.name, task=task, resume=resume)
    check_shared_folder(folder)
    point = None
    if resume:
        stage = zero_stage_of(ds_config)
        sizes = dict(world_size=place.world_size, global_batch=plan.global_batch)
        point = find_resume_point(folder / CHECKPOINTS, **sizes, zero_stage=stage)
    return RunStart(task, place, plan, folder, ds_config, point)


def make_saver(engine: Any, recipe: Recipe, start: RunStart) -> CheckpointSaver:
    """What saves this run's engine, as often and as many as the recipe keeps."""
    return CheckpointSaver(
        engine,
        start.folder / CHECKPOINTS,
        recipe=dump_recipe(recipe),
        global_batch=start.plan.global_batch,
        keep=recipe.run.keep_checkpoints,
        keep_every_steps=recipe.run.keep_every_steps,
        resumed_from=None if start.point is None else start.point.found.tag,
    )
