"""What every training script does before it opens a video and when it ends: options, ranks, folder, exit status."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mats_ds.config import Recipe
from mats_ds.training.batch import BatchPlan, plan_batch
from mats_ds.training.engine import Place, precision_of, read_ds_config, start_distributed
from mats_ds.training.launchers import adopt_launcher
from mats_ds.training.loop import TrainingStopped
from mats_ds.training.run_folder import choose_run_folder
from mats_ds.training.shared_folder import check_shared_folder

logger = logging.getLogger("mats_ds")

USAGE_ERROR, RUN_ERROR = 2, 1
RUN_FILE = "run.json"  # written by the recorder


@dataclass(frozen=True)
class RunStart:
    """Where a run takes place: its rank and device, its share of the batch, its folder, its DeepSpeed JSON.

    `task` is "pretrain" or "finetune", the name of the script.
    """

    task: str
    place: Place
    plan: BatchPlan
    folder: Path
    ds_config: Mapping[str, Any]
    precision: str
    resume: bool


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
    precision = precision_of(ds_config)
    place = start_distributed(timeout_seconds=recipe.run.hang_seconds)
    plan = plan_batch(ds_config, recipe_batch=recipe.optim.global_batch, world_size=place.world_size)
    resume = options.resume is not None
    folder = choose_run_folder(options.out, recipe_name=recipe.name, resume=resume)
    check_shared_folder(folder)
    if resume:
        check_task(folder, task)
    return RunStart(task, place, plan, folder, ds_config, precision, resume)


def check_task(folder: Path, task: str) -> None:
    """Raises ValueError where the folder to go on in holds a run of another script."""
    file = folder / RUN_FILE
    found = json.loads(file.read_text(encoding="utf-8")).get("task", "pretrain") if file.is_file() else task
    if found != task:
        hint = f", and begin with its weights: finetune.weights={folder}" if task == "finetune" else ""
        raise ValueError(f"{folder} holds a run of mats_ds/{found}.py, and this is mats_ds/{task}.py: name another --out{hint}")


def run_command(work: Callable[[], None]) -> int:
    """Run a training script's work; returns the exit status: 0 finished, 1 stopped by a fault of the run, 2 wrong arguments or
    configuration. Rank 0 alone speaks; what ends a run is also told by the first rank of every other host, which may be the
    only one to know.
    """
    try:
        adopt_launcher()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    is_first = os.environ.get("RANK", "0") == "0"
    is_first_here = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    here = "" if is_first else f"{socket.gethostname()}: "
    logging.basicConfig(level=logging.WARNING if is_first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    if is_first:
        logger.setLevel(logging.INFO)
    try:
        work()
    except ValueError as error:
        if is_first_here:
            print(f"{here}error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except TrainingStopped as error:
        if is_first_here:
            print(f"{here}stopped: {error}", file=sys.stderr)
        return RUN_ERROR
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
