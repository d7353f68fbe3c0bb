"""Pre-train a masked autoencoder with motion-aware token selection: recipe + DeepSpeed JSON -> a run folder.

    deepspeed --num_gpus 8 mats_ds/pretrain.py --ds_config ds_configs/zero2.json [--recipe FILE] [section.key=value ...]

Reads top to bottom: settle the recipe, join the other ranks, open the videos, build model and engine, train, draw.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from mats_ds.config.load import dump_recipe, load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.cli import ArgumentParser
from mats_ds.core.clips import ClipBatch
from mats_ds.core.drawing import try_to_draw
from mats_ds.core.terminal import run_program
from mats_ds.core.text import clean_line, quote_word
from mats_ds.core.token_grid import count_selection
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.data.loading.build import open_loader, open_videos
from mats_ds.distributed.consistency import check_consistent
from mats_ds.metering.profiler import add_deep_dive_options, make_deep_dives
from mats_ds.metering.recorder import Recorder
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.model_spec import describe_model, dump_spec
from mats_ds.planning.flops import describe_compute, recipe_flops
from mats_ds.planning.forecast import LoaderMemory
from mats_ds.planning.plan_observer import PlanRecorder
from mats_ds.planning.workload import Workload
from mats_ds.training.checkpoints.resume import resume
from mats_ds.training.engine import full_parameters, make_engine
from mats_ds.training.loop import fit
from mats_ds.training.losses import reconstruction_loss_of
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import make_schedule, parameter_groups
from mats_ds.training.run_folder import write_inputs
from mats_ds.training.run_info import announce, describe_run
from mats_ds.training.start import add_run_options, leave, make_saver, run_command, start_run
from mats_ds.visualization.render import draw_reconstruction

logger = logging.getLogger("mats_ds")

PICTURE = "reconstruction.png"
SHOWN_CLIPS = 4


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Pre-train a video model with motion-aware token selection.",
        epilog="Example: deepspeed --num_gpus 8 mats_ds/pretrain.py --ds_config ds_configs/zero2.json data.manifest=videos.csv",
    )
    add_run_options(parser, default_recipe="default")
    add_deep_dive_options(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status, as `run_command` has them."""
    options = parse_arguments(arguments)
    return run_command(lambda: pretrain(load_recipe(options.recipe, options.overrides), options))


def pretrain(recipe: Recipe, options: argparse.Namespace) -> None:
    """One run on this rank, from the first byte of video to the picture."""
    start = start_run(recipe, options, task="pretrain")
    place, plan, folder = start.place, start.plan, start.folder
    manifest = check_consistent(lambda: open_videos(recipe.data), recipe=recipe, ds_config=start.ds_config)
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
    model_spec = json.dumps(dump_spec(describe_model(model)))
    engine = make_engine(
        model,
        parameter_groups(model, recipe.optim),
        start.ds_config,
        plan,
        compile_model=recipe.model.compile,
        load_universal=start.load_universal,
    )
    resumed = resume(engine, start.point)
    saver = make_saver(engine, recipe, start)
    selection = recipe.selection
    run = describe_run(
        recipe,
        start,
        engine=engine,
        schedule=schedule,
        steps_per_epoch=sampler.steps_per_epoch,
        first_step=resumed.step,
        counts=count_selection(
            recipe.clip.grid(),
            strategy=selection.strategy,
            keep_ratio=selection.keep_ratio,
            visible_ratio=selection.visible_ratio,
        ),
        flops=recipe_flops(recipe),
        data_name=manifest.name,
    )
    with open_loader(
        sampler,
        recipe,
        rank=place.rank,
        world_size=place.world_size,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        device=place.device,
    ) as loader:
        if place.rank == 0:
            write_inputs(folder, recipe=dump_recipe(recipe), ds_config=start.ds_config)
            reading = f"{len(manifest)} videos of {manifest.name}; {loader.describe()}"
            announce(run, compute=describe_compute(recipe), data=reading, batch=plan.note)
        recorder = Recorder(folder, place.device)
        feed = LoaderMemory(prefetch=recipe.data.prefetch, num_pipelines=loader.num_graphs)
        planned = Workload.from_recipe(recipe)
        watch = PlanRecorder(planned, start.ds_config, engine.module, feed, measures=not recipe.model.compile)
        batches = loader.micro_batches(resumed.step)
        first_batch = next(batches)
        shown = few_clips(first_batch)
        batches = itertools.chain([first_batch], batches)
        del first_batch
        fit(
            engine,
            batches,
            run=run,
            learning_rate=schedule.learning_rate,
            loss_of=reconstruction_loss_of,
            observers=[
                recorder,
                watch,
                *make_deep_dives(options, folder, place.device),
                Console(log_steps=recipe.run.log_steps, memory_bytes=recorder.memory),
                Monitor(engine, every_steps=recipe.run.log_steps, memory_bytes=recorder.memory),
                Checkpointer(
                    saver,
                    every_steps=recipe.run.checkpoint_steps,
                    extra=lambda: {"model_spec": model_spec},
                    what_is_lost=recorder.what_is_lost,
                ),
            ],
            num_videos=len(manifest),
            max_bad_fraction=recipe.data.max_bad_fraction,
            hang_seconds=recipe.run.hang_seconds,
            what_is_lost=recorder.what_is_lost,
        )
        try_to_draw(partial(draw, engine, shown, recipe, folder, rank=place.rank), folder / PICTURE)
    logger.info("run folder: %s  (report: python profiling/report.py %s)", folder, quote_word(folder))


def few_clips(batch: ClipBatch) -> ClipBatch:
    """The first clips of a batch, in memory of their own, to be drawn at the end."""
    frames_BTHWC, seed_B = batch.frames_BTHWC[:SHOWN_CLIPS].clone(), batch.seed_B[:SHOWN_CLIPS].clone()
    return dataclasses.replace(batch, frames_BTHWC=frames_BTHWC, seed_B=seed_B, paths=batch.paths[:SHOWN_CLIPS])


def draw(engine, batch: ClipBatch, recipe: Recipe, folder: Path, *, rank: int) -> None:
    """What the trained model makes of the liveliest of a few clips; every rank takes part, rank 0 draws."""
    engine.eval()
    with full_parameters(engine):
        seen = engine.module.reconstruct(batch.frames_BTHWC, batch.seed_B)
    if rank == 0:
        liveliest = int(seen.motion_BN.mean(dim=1).argmax())
        title = clean_line(f"{Path(batch.paths[liveliest]).name}: {recipe.name}, {recipe.selection.strategy}")
        draw_reconstruction(seen, recipe.clip.grid(), folder / PICTURE, clip=liveliest, title=title)


if __name__ == "__main__":
    leave(run_program(main))
