"""Pre-train a masked autoencoder with motion-aware token selection: recipe + DeepSpeed JSON -> a
run folder.

    deepspeed --num_gpus 8 mats_ds/pretrain.py --ds_config ds_configs/zero2.json
        [--recipe FILE] [section.key=value ...]

Reads top to bottom: join the other ranks, open the videos, build model and engine, train, draw.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import argparse
import dataclasses
import itertools
import json
import logging
from functools import partial
from typing import TYPE_CHECKING

from mats_ds.config.load import list_keys
from mats_ds.config.recipe import Recipe
from mats_ds.core.checkpoint_files import SPEC_KEY
from mats_ds.core.cli import LAUNCHER_OPTIONS, ArgumentParser, importing, leave
from mats_ds.core.format import format_count
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.text import clean_line
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.planning.flops import describe_compute
from mats_ds.planning.workload import Workload
from mats_ds.training.options import RunOptions, add_run_options, check_start, run_training
from mats_ds.visualization.drawing import try_to_draw

if TYPE_CHECKING:  # what needs torch is imported where it is used, after the arguments are checked
    from mats_ds.core.clips import ClipBatch

logger = logging.getLogger("mats_ds")

PICTURE = "reconstruction.png"
SHOWN_CLIPS = 4


def main(arguments: list[str] | None = None) -> int:
    """The exit status of a pre-training."""
    return run_training(pretrain, parse_arguments(arguments), task="pretrain")


def check(arguments: list[str], *, reads_paths: bool) -> None:
    """As the ranks would, before any is started: see `check_start`. Exits with 2 for arguments that
    the program does not take."""
    check_start(parse_arguments(arguments), task="pretrain", schema=Recipe, reads_paths=reads_paths)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        recipe_keys=list_keys(Recipe),
        launcher=LAUNCHER_OPTIONS,
        description="Pre-train a video model with motion-aware token selection.",
        epilog=f"Example: {own_command('pretrain')} --recipe k400 --ds_config zero2 data.manifest=videos.csv",
    )
    add_run_options(parser, default_recipe="default")
    return parser.parse_intermixed_args(arguments)


def pretrain(recipe: Recipe, options: RunOptions) -> None:
    """One run on this rank, from the first byte of video to the picture."""
    with importing("torch", "deepspeed"):
        import torch

        from mats_ds.data.loading.build import open_videos
        from mats_ds.models.mae import MaskedAutoencoder
        from mats_ds.models.model_spec import describe_model, dump_spec
        from mats_ds.training.losses import reconstruction_loss_of
        from mats_ds.training.optim import parameter_groups
        from mats_ds.training.run import start_run

    run = start_run(recipe, options, task="pretrain")
    manifest = run.check_inputs(lambda: open_videos(recipe.data))
    sampler = ClipSampler(
        manifest,
        recipe_clip=recipe.clip,
        num_frames=recipe.candidate_grid().num_frames,
        global_batch=run.plan.global_batch,
        seed=recipe.run.seed,
        repeats=recipe.data.repeats,
    )
    torch.manual_seed(recipe.run.seed)
    model = MaskedAutoencoder.from_recipe(recipe)
    spec = json.dumps(dump_spec(describe_model(model)))
    engine = run.engine_for(model, parameter_groups(model, recipe.optim))
    workload = Workload.from_recipe(recipe)
    info = run.describe(workload, steps_per_epoch=sampler.steps_per_epoch, data_name=manifest.name)
    with run.loader_for(sampler) as loader:
        info = dataclasses.replace(info, decoding=loader.decoding())
        run.announce(
            info,
            compute=describe_compute(recipe),
            data=f"{format_count(len(manifest), 'video')} of {manifest.name}; {loader.describe()}",
        )
        observers = run.observers(workload, num_pipelines=loader.num_graphs, extra_state=lambda: {SPEC_KEY: spec})
        batches = loader.micro_batches(run.first_step)
        first_batch = next(batches)
        shown = few_clips(first_batch)
        batches = itertools.chain([first_batch], batches)
        del first_batch
        run.fit(info, reconstruction_loss_of, batches, observers=observers, num_videos=len(manifest))
        try_to_draw(partial(draw, engine, shown, recipe, run.folder, rank=run.ranks.rank), run.folder / PICTURE)
    logger.info("run folder: %s  (report: %s)", run.folder, own_command("report", run.folder))


def few_clips(batch: ClipBatch) -> ClipBatch:
    """The first clips of a batch, in memory of their own, to be drawn at the end."""
    frames_BTHWC, seed_B = batch.frames_BTHWC[:SHOWN_CLIPS].clone(), batch.seed_B[:SHOWN_CLIPS].clone()
    return dataclasses.replace(batch, frames_BTHWC=frames_BTHWC, seed_B=seed_B, paths=batch.paths[:SHOWN_CLIPS])


def draw(engine, batch: ClipBatch, recipe: Recipe, folder: Path, *, rank: int) -> None:
    """Draw the reconstruction of the clip with the most motion; every rank takes part, rank 0
    draws."""
    from mats_ds.training.engine import full_parameters
    from mats_ds.visualization.render import draw_reconstruction

    engine.eval()
    with full_parameters(engine):
        reconstruction = engine.module.reconstruct(batch.frames_BTHWC, batch.seed_B)
    if rank == 0:
        liveliest = int(reconstruction.motion_BN.mean(dim=1).argmax())
        title = clean_line(f"{Path(batch.paths[liveliest]).name}: {recipe.name}, {recipe.selection.strategy}")
        draw_reconstruction(reconstruction, recipe.clip.grid(), folder / PICTURE, clip=liveliest, title=title)


if __name__ == "__main__":
    leave(main())
