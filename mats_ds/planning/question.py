"""What is asked: options of plan.py -> the workload, the batch, the card, the feed and the time of a run.

Raises ValueError, in words for a person, for what does not go together.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.config.batch_plan import ACCUMULATION_KEY, MICRO_BATCH_KEY, BatchPlan, plan_batch
from mats_ds.config.ds_config import notes_on, precision_of, read_ds_config
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.gpus import Gpu, find_gpu
from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO
from mats_ds.planning.forecast import ASSUMED_MFU, KNOWN_CLIPS, LoaderMemory, TimePlan, measured_mfu, plan_time
from mats_ds.planning.sweep import feed_of
from mats_ds.planning.workload import DEFAULT_CLASSES, Workload

STAND_IN = "k400"


@dataclass(frozen=True)
class Question:
    """Everything that a plan needs. `notes`: what was assumed on the way."""

    recipe: Recipe
    workload: Workload
    ds_config: Mapping[str, Any]
    precision: str
    card: Gpu
    world_size: int
    batch: BatchPlan
    feed: LoaderMemory
    time: TimePlan
    notes: tuple[str, ...]


def resolve_question(options: argparse.Namespace) -> Question:
    """Read the recipe and the JSON, and fill in what was not said."""
    if options.gpus < 1:
        raise ValueError(f"--gpus is at least 1, got {options.gpus}")
    recipe, workload = _settle_workload(options)
    ds_config = read_ds_config(options.ds_config)
    precision = precision_of(ds_config)
    if options.micro_batch is not None:
        if options.micro_batch < 1:
            raise ValueError(f"--micro_batch is at least 1, got {options.micro_batch}")
        ds_config = {key: value for key, value in ds_config.items() if key != ACCUMULATION_KEY}
        ds_config[MICRO_BATCH_KEY] = options.micro_batch
    card = find_gpu(options.gpu)
    repeats = recipe.data.repeats
    batch = plan_batch(ds_config, recipe_batch=recipe.optim.global_batch, world_size=options.gpus, repeats=repeats)
    notes = notes_on(ds_config)
    num_clips, note = _count_clips(recipe, options.clips)
    notes += [note] if note else []
    mfu, note = _settle_mfu(options)
    notes.append(note)
    time = plan_time(
        workload.flops(),
        device_name=card.device_name,
        world_size=options.gpus,
        clips_per_step=batch.global_batch,
        num_clips=num_clips,
        epochs=recipe.optim.epochs,
        steps=recipe.optim.steps,
        max_steps=recipe.run.max_steps,
        mfu=mfu,
        precision=precision,
    )
    if time.step_seconds is None:
        notes.append(f"no hours: the peak of {card.name} in {precision} is not in the table of peaks")
    height, width = _video_size(options.video)
    feed = feed_of(card, LoaderMemory(prefetch=recipe.data.prefetch, height=height, width=width))
    return Question(recipe, workload, ds_config, precision, card, options.gpus, batch, feed, time, tuple(notes))


def _settle_workload(options: argparse.Namespace) -> tuple[Recipe, Workload]:
    try:
        recipe = load_recipe(options.recipe, options.overrides)
    except ValueError as error:
        if "is a recipe for fine-tuning" not in str(error):
            raise
        recipe = load_recipe(options.recipe, options.overrides, schema=FinetuneRecipe)
        if options.keep_ratio is not None:
            raise ValueError("--keep_ratio goes with --finetune; this recipe has selection.keep_ratio=...") from None
        return recipe, Workload.from_finetuning(recipe, num_classes=recipe.finetune.num_classes or DEFAULT_CLASSES)
    workload = Workload.from_recipe(recipe)
    if options.finetune:
        workload = workload.for_finetuning(keep_ratio=options.keep_ratio or FINETUNE_KEEP_RATIO)
    elif options.keep_ratio is not None:
        raise ValueError("--keep_ratio goes with --finetune; in pre-training it is selection.keep_ratio=...")
    return recipe, workload


def _count_clips(recipe: Recipe, asked: int | None) -> tuple[int, str]:
    if asked is not None:
        if asked < 1:
            raise ValueError(f"--clips is at least 1, got {asked}")
        return asked, ""
    if recipe.data.manifest is not None and Path(recipe.data.manifest).exists():
        from mats_ds.data.manifest import read_manifest

        return len(read_manifest(recipe.data.manifest, root=recipe.data.root)) * recipe.data.repeats, ""
    known = next((name for name in KNOWN_CLIPS if name in recipe.name), None)
    if known:
        return KNOWN_CLIPS[known] * recipe.data.repeats, f"an epoch of {KNOWN_CLIPS[known]} videos, as {known} is published"
    note = f"an epoch of {KNOWN_CLIPS[STAND_IN]} videos, the size of {STAND_IN}: say --clips"
    return KNOWN_CLIPS[STAND_IN] * recipe.data.repeats, note


def _settle_mfu(options: argparse.Namespace) -> tuple[float, str]:
    if options.mfu is not None and options.measured is not None:
        raise ValueError("--mfu states what --measured would look up: give one of the two")
    if options.measured is not None:
        mfu = measured_mfu(options.measured)
        return mfu, f"MFU {100 * mfu:.1f}% as {options.measured} recorded it"
    if options.mfu is None:
        return (
            ASSUMED_MFU,
            f"MFU {100 * ASSUMED_MFU:.0f}% is assumed, no run was timed on a card: say --mfu or --measured RUN_DIR",
        )
    if not 0 < options.mfu <= 1:
        raise ValueError(f"--mfu is above 0 and at most 1, got {options.mfu}")
    return options.mfu, f"MFU {100 * options.mfu:.1f}% as stated"


def _video_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise ValueError(f"--video is WIDTHxHEIGHT of the video files, as in 340x256, got {text!r}")
    return int(match[2]), int(match[1])
