"""What every training script does before it opens a video and when it ends: options, ranks, folder, exit status."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mats_ds.config.batch_plan import BatchPlan, plan_batch
from mats_ds.config.ds_config import notes_on, read_ds_config, state_clipping, zero_stage_of
from mats_ds.config.load import dump_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.storage.folder_lock import release_all_folders
from mats_ds.core.text import clean_line, describe_error, log_to_stderr
from mats_ds.distributed.consistency import check_shared_folder
from mats_ds.distributed.exits import (
    FINISHED,
    INTERRUPTED,
    KILLED_BY_USER,
    RUN_ERROR,
    USAGE_ERROR,
    AlreadyFinished,
    RanksLost,
    TrainingInterrupted,
    TrainingStopped,
)
from mats_ds.distributed.ranks import RankInfo, start_distributed
from mats_ds.distributed.scheduler_env import set_rank_environment
from mats_ds.training.checkpoints.resume import ResumePoint, find_resume_point
from mats_ds.training.checkpoints.saver import CheckpointSaver
from mats_ds.training.ds_outputs import check_outputs, name_outputs
from mats_ds.training.own_folder import CHECKPOINTS
from mats_ds.training.run_folder import choose_run_folder

logger = logging.getLogger("mats_ds")

EXIT_SECONDS = 10.0


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


def run_command(work: Callable[[], None], *, advice: str | None = None) -> int:
    """Run a training script's work; returns the exit status: 0 finished, 1 stopped by a fault of the run, 2 wrong arguments or
    configuration, 75 asked to stop and saved, 130 interrupted twice. Rank 0 speaks; what ends a run is also told by the first
    rank of every other host, which may be the only one to know, and by a rank that fails alone.

    advice: what to do after a fault or an interruption, where the work is no training that has checkpoints.
    """
    try:
        set_rank_environment()
    except ValueError as error:
        return _end(USAGE_ERROR, f"error: {describe_error(error)}")
    rank = clean_line(os.environ.get("RANK", "0"))
    is_first = rank == "0"
    speaks = os.environ.get("LOCAL_RANK", rank) == "0"
    here = "" if is_first else f"{clean_line(socket.gethostname())}: "
    log_to_stderr(logging.WARNING if is_first else logging.ERROR)
    if is_first:
        logger.setLevel(logging.INFO)
    try:
        work()
    except ValueError as error:
        return _end(USAGE_ERROR, f"{here}error: {describe_error(error)}" if speaks else None)
    except AlreadyFinished as error:  # a job that is queued again after its end shall end well
        return _end(FINISHED, f"nothing to do: {describe_error(error)}" if is_first else None)
    except TrainingInterrupted as error:
        return _end(INTERRUPTED, f"{here}interrupted: {describe_error(error)}" if speaks else None)
    except TrainingStopped as error:
        return _end(RUN_ERROR, f"{here}stopped: {describe_error(error)}" if speaks else None)
    except RanksLost as error:
        return _end(RUN_ERROR, f"{here}stopped: rank {rank}: {describe_error(error)}", in_order=False)
    except KeyboardInterrupt:
        return _end(KILLED_BY_USER, f"stopped: rank {rank} at once; {advice or 'the newest checkpoint stands'}", in_order=False)
    except OSError as error:
        advice = advice or "make room or mend that disk, then go on with --resume auto"
        return _end(RUN_ERROR, f"{here}stopped: rank {rank}: {describe_error(error)}; {advice}", in_order=False)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The recorder has said what to lower.
        first = clean_line(str(error).partition("\n")[0] or type(error).__name__)
        return _end(RUN_ERROR, f"{here}stopped: rank {rank} is out of memory: {first}", in_order=False)
    finally:
        release_all_folders()
    return _end(FINISHED, None)


def leave(status: int) -> None:
    """End the process with this status, within EXIT_SECONDS: threads of a broken process group may not want to end."""
    if status not in (FINISHED, USAGE_ERROR):
        timer = threading.Timer(EXIT_SECONDS, os._exit, [status])
        timer.daemon = True
        timer.start()
    sys.exit(status)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left for a tensor."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _end(status: int, line: str | None, *, in_order: bool = True) -> int:
    """Say the line, and leave the process group where the other ranks do too."""
    if line is not None:
        print(line, file=sys.stderr, flush=True)
    if in_order and dist.is_initialized():
        dist.destroy_process_group()
    return status
