"""Pre-train a masked autoencoder with motion-aware token selection: recipe + DeepSpeed JSON -> a run folder.

    deepspeed --num_gpus 8 mats_ds/pretrain.py --ds_config ds_configs/zero2.json [--recipe FILE] [section.key=value ...]

Reads top to bottom: settle the recipe, join the other ranks, open the videos, build model and engine, train, draw.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import os
import shlex
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.distributed as dist

from mats_ds.clips import ClipBatch, count_selection
from mats_ds.config import Recipe, dump_recipe, load_recipe
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.pipeline import ClipLoader
from mats_ds.data.sampler import ClipSampler
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.events import RunInfo
from mats_ds.metering.deep_dives import add_deep_dive_options, make_deep_dives
from mats_ds.metering.flops import StepFlops, describe_compute, recipe_flops
from mats_ds.metering.recorder import Recorder
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.picture import draw_reconstruction
from mats_ds.training.batch import BatchPlan, plan_batch
from mats_ds.training.checkpoint import find_checkpoint, load_checkpoint
from mats_ds.training.engine import (
    Place,
    full_parameters,
    make_engine,
    precision_of,
    read_ds_config,
    start_distributed,
    static_bytes,
)
from mats_ds.training.loop import TrainingStopped, fit
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import Schedule, make_schedule, parameter_groups
from mats_ds.training.run_folder import choose_run_folder, collect_versions, write_inputs

logger = logging.getLogger("mats_ds")

SYNTHETIC_FOLDER = Path("data/synthetic")
PICTURE = "reconstruction.png"
SHOWN_CLIPS = 4
USAGE_ERROR, RUN_ERROR = 2, 1


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Pre-train a video model with motion-aware token selection.",
        epilog="Example: deepspeed --num_gpus 8 mats_ds/pretrain.py --ds_config ds_configs/zero2.json data.manifest=videos.csv",
    )
    parser.add_argument("--recipe", default="default", help="YAML file, or a name in mats_ds/recipes (default: %(default)s)")
    parser.add_argument("--ds_config", required=True, help="DeepSpeed JSON, for example ds_configs/zero2.json")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-DATE-TIME)")
    parser.add_argument("--resume", choices=["auto"], help="go on from the newest whole checkpoint of the run folder")
    add_deep_dive_options(parser)
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    return parser.parse_args(arguments)


def open_videos(recipe: Recipe) -> Manifest:
    """The recipe's videos, or the synthetic set where it names none."""
    source = recipe.data.manifest
    if source is None:
        source = write_synthetic_set(SYNTHETIC_FOLDER)
        logger.info("data: no data.manifest given, training on the synthetic set in %s (a test, not a data set)", source.parent)
    return read_manifest(source, root=recipe.data.root)


def describe_run(
    recipe: Recipe,
    *,
    place: Place,
    plan: BatchPlan,
    schedule: Schedule,
    manifest: Manifest,
    folder: Path,
    engine,
    precision: str,
    steps_per_epoch: int,
    first_step: int,
    flops: StepFlops,
) -> RunInfo:
    grid, selection = recipe.clip.grid(), recipe.selection
    counts = count_selection(
        grid, strategy=selection.strategy, keep_ratio=selection.keep_ratio, visible_ratio=selection.visible_ratio
    )
    total_steps = min(schedule.total_steps, recipe.run.max_steps or schedule.total_steps)
    parameters = engine.module.parameters()
    return RunInfo(
        run_dir=str(folder),
        rank=place.rank,
        world_size=place.world_size,
        device=str(place.device),
        device_name=torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "CPU",
        recipe_name=recipe.name,
        model_name=recipe.model.name,
        num_parameters=sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters),
        precision=precision,
        zero_stage=engine.zero_optimization_stage(),
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        global_batch=plan.global_batch,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        first_step=first_step,
        learning_rate=schedule.peak,
        num_tokens=grid.num_tokens,
        kept=counts.kept,
        visible=counts.visible,
        targets=counts.targets,
        forward_macs_per_clip=flops.forward_macs,
        model_flops_per_clip=flops.training_flops,
        hardware_flops_per_clip=flops.hardware_flops,
        static_bytes=static_bytes(engine),
        versions=collect_versions(),
        data_name=manifest.name,
        command=shlex.join(["mats_ds/pretrain.py", *(argument for argument in sys.argv[1:] if "--local_rank" not in argument)]),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def few_clips(batch: ClipBatch) -> ClipBatch:
    """The first clips of a batch, in memory of their own, to be drawn at the end."""
    frames_BTHWC, key_B = batch.frames_BTHWC[:SHOWN_CLIPS].clone(), batch.key_B[:SHOWN_CLIPS].clone()
    return dataclasses.replace(batch, frames_BTHWC=frames_BTHWC, key_B=key_B, paths=batch.paths[:SHOWN_CLIPS])


def draw(engine, batch: ClipBatch, recipe: Recipe, folder: Path, *, rank: int) -> None:
    """What the trained model makes of the liveliest of a few clips; every rank takes part, rank 0 draws."""
    engine.eval()
    with full_parameters(engine):
        seen = engine.module.reconstruct(batch.frames_BTHWC, batch.key_B)
    if rank == 0:
        liveliest = int(seen.motion_BN.mean(dim=1).argmax())
        title = f"{Path(batch.paths[liveliest]).name}: {recipe.name}, {recipe.selection.strategy}"
        draw_reconstruction(seen, recipe.clip.grid(), folder / PICTURE, clip=liveliest, title=title)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 finished, 1 stopped by a fault of the run, 2 wrong arguments or configuration."""
    options = parse_arguments(arguments)
    is_first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING if is_first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    if is_first:
        logger.setLevel(logging.INFO)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        ds_config = read_ds_config(options.ds_config)
        precision = precision_of(ds_config)
        place = start_distributed()
        pretrain(recipe, ds_config, precision, place, options)
    except ValueError as error:
        if is_first:
            print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except TrainingStopped as error:
        if is_first:
            print(f"stopped: {error}", file=sys.stderr)
        return RUN_ERROR
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def pretrain(recipe: Recipe, ds_config: dict, precision: str, place: Place, options: argparse.Namespace) -> None:
    """One run on this rank, from the first byte of video to the picture."""
    plan = plan_batch(ds_config, recipe_batch=recipe.optim.global_batch, world_size=place.world_size)
    resume = options.resume is not None
    folder = choose_run_folder(options.out, recipe_name=recipe.name, resume=resume)
    manifest = open_videos(recipe)
    sampler = ClipSampler(
        manifest,
        recipe_clip=recipe.clip,
        num_frames=recipe.candidate_grid().num_frames,
        global_batch=plan.global_batch,
        seed=recipe.run.seed,
        repeats=recipe.data.repeats,
    )
    schedule = make_schedule(recipe.optim, steps_per_epoch=sampler.steps_per_epoch, learning_rate_scale=plan.learning_rate_scale)
    torch.manual_seed(recipe.run.seed)
    model = MaskedAutoencoder.from_recipe(recipe)
    groups = parameter_groups(model, recipe.optim)
    engine = make_engine(model, groups, ds_config, plan, compile_model=recipe.model.compile)
    found = find_checkpoint(folder / "checkpoints") if resume else None
    if resume and found is None:
        logger.warning("no checkpoint in %s yet: starting from the first step", folder / "checkpoints")
    first_step = load_checkpoint(engine, found) if found else 0
    flops = recipe_flops(recipe)
    run = describe_run(
        recipe,
        place=place,
        plan=plan,
        schedule=schedule,
        manifest=manifest,
        folder=folder,
        engine=engine,
        precision=precision,
        steps_per_epoch=sampler.steps_per_epoch,
        first_step=first_step,
        flops=flops,
    )
    if first_step >= run.total_steps:
        raise ValueError(
            f"{folder} has finished all {run.total_steps} steps: raise optim.epochs (or run.max_steps), or use another --out"
        )

    with ClipLoader(
        sampler,
        rank=place.rank,
        world_size=place.world_size,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        device=place.device,
        height=recipe.clip.height,
        width=recipe.clip.width,
        num_workers=recipe.data.num_workers,
        prefetch=recipe.data.prefetch,
        clip_timeout_seconds=recipe.data.clip_timeout_seconds,
    ) as loader:
        if place.rank == 0:
            write_inputs(folder, recipe=dump_recipe(recipe), ds_config=ds_config)
            announce(recipe, run, plan, manifest, loader.describe())
        recorder = Recorder(folder, place.device)
        batches = loader.micro_batches(first_step)
        first_batch = next(batches)
        shown = few_clips(first_batch)
        batches = itertools.chain([first_batch], batches)
        del first_batch
        fit(
            engine,
            batches,
            run=run,
            learning_rate=schedule.learning_rate,
            model_inputs=lambda batch: (batch.frames_BTHWC, batch.key_B),
            observers=[
                recorder,
                *make_deep_dives(options, folder, place.device),
                Console(log_steps=recipe.run.log_steps, memory_bytes=recorder.memory),
                Monitor(engine, every_steps=recipe.run.log_steps, memory_bytes=recorder.memory),
                Checkpointer(
                    engine,
                    folder / "checkpoints",
                    every_steps=recipe.run.checkpoint_steps,
                    keep=recipe.run.keep_checkpoints,
                    recipe=dump_recipe(recipe),
                ),
            ],
            num_videos=len(manifest),
            max_bad_fraction=recipe.data.max_bad_fraction,
        )
        draw(engine, shown, recipe, folder, rank=place.rank)
    logger.info("run folder: %s  (report: python profiling/report.py %s)", folder, shlex.quote(str(folder)))


def announce(recipe: Recipe, run: RunInfo, plan: BatchPlan, manifest: Manifest, reading: str) -> None:
    """What is about to happen, in five lines."""
    logger.info(
        "model: %s, %.1f M parameters, %s, ZeRO-%d on %d x %s",
        run.model_name,
        run.num_parameters / 1e6,
        run.precision,
        run.zero_stage,
        run.world_size,
        run.device_name,
    )
    logger.info("%s", describe_compute(recipe))
    logger.info("data: %d videos of %s; %s", len(manifest), manifest.name, reading)
    logger.info("batch: %s", plan.note)
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


if __name__ == "__main__":
    sys.exit(main())
