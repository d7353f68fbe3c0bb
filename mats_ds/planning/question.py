"""From what a person asks of a plan to everything that a plan needs: PlanOptions -> Question.

Raises ValueError for options that do not go together, with the option's name and what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mats_ds.config.batch_plan import ACCUMULATION_KEY, MICRO_BATCH_KEY, MOST_CLIPS, BatchPlan, plan_batch
from mats_ds.config.ds_config import notes_on, precision_of, read_ds_config, read_judged
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.cli import importing
from mats_ds.core.format import format_count
from mats_ds.core.gpus import Gpu, find_gpu
from mats_ds.core.limits import MAX_RANKS, MAX_STEP, show
from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO
from mats_ds.planning.forecast import ASSUMED_MFU, KNOWN_CLIPS, LoaderMemory, TimePlan, measured_mfu, plan_time
from mats_ds.planning.room import room_on
from mats_ds.planning.sweep import loader_on
from mats_ds.planning.workload import DEFAULT_CLASSES, Workload

FALLBACK_DATA = "k400"  # its number of clips, where no other is known


@dataclass(frozen=True)
class PlanOptions:
    """A run to plan, as a person describes it. None: not stated. `video`: WIDTHxHEIGHT of the
    files."""

    ds_config: str | Path
    recipe: str = "default"
    overrides: Sequence[str] = ()
    gpus: int = 8
    gpu: str = "a100-80g"
    finetune: bool = False
    keep_ratio: float | None = None
    micro_batch: int | None = None
    clips: int | None = None
    mfu: float | None = None
    measured: Path | None = None
    video: str = f"{LoaderMemory.width}x{LoaderMemory.height}"


@dataclass(frozen=True)
class Question:
    """Everything that a plan needs. `notes`: what was assumed on the way."""

    recipe: Recipe
    workload: Workload
    ds_config: Mapping[str, Any]
    precision: str
    gpu: Gpu
    world_size: int
    batch: BatchPlan
    loader: LoaderMemory
    time: TimePlan
    notes: tuple[str, ...]


def resolve_question(options: PlanOptions) -> Question:
    """Read the recipe and the JSON, and fill in what was not stated."""
    for name, most in (("gpus", MAX_RANKS), ("micro_batch", MOST_CLIPS), ("clips", MAX_STEP)):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"--{name} is from 1 to {most:,}, got {show(value)}")
    recipe, workload = _resolve_workload(options)
    ds_config = read_judged(options.ds_config)
    precision = precision_of(ds_config)
    if options.micro_batch is not None:
        ds_config = {key: value for key, value in ds_config.items() if key != ACCUMULATION_KEY}
        ds_config[MICRO_BATCH_KEY] = options.micro_batch
    gpu = find_gpu(options.gpu)
    height, width = _parse_size(options.video)
    num_clips, clips_note = _count_clips(recipe, options.clips)
    mfu, mfu_note = _resolve_mfu(options)
    plan = partial(
        plan_batch,
        ds_config,
        recipe_batch=recipe.optim.global_batch,
        world_size=options.gpus,
        repeats=recipe.data.repeats,
    )
    batch = plan() if MICRO_BATCH_KEY in ds_config else None
    with importing("torch", "deepspeed"):
        read_ds_config(options.ds_config)  # DeepSpeed's own reader comes last: its import takes seconds
    loader = loader_on(gpu, LoaderMemory(prefetch=recipe.data.prefetch, height=height, width=width))
    if batch is None:
        batch = plan(room=room_on(gpu, workload, ds_config, world_size=options.gpus, loader=loader))
    notes = [*notes_on(ds_config), *clips_note, mfu_note]
    time = plan_time(
        workload.flops(),
        device_name=gpu.device_name,
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
        notes.append(f"no hours: the peak of {gpu.name} in {precision} is not in the table of peaks")
    return Question(recipe, workload, ds_config, precision, gpu, options.gpus, batch, loader, time, tuple(notes))


def _resolve_workload(options: PlanOptions) -> tuple[Recipe, Workload]:
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


def _count_clips(recipe: Recipe, stated: int | None) -> tuple[int, list[str]]:
    """Clips of an epoch, with a note where the number is assumed."""
    if stated is not None:
        return stated, []
    repeats = recipe.data.repeats
    if recipe.data.manifest is not None and Path(recipe.data.manifest).exists():
        from mats_ds.data.manifest import read_manifest

        return len(read_manifest(recipe.data.manifest, root=recipe.data.root, root_name="data.root")) * repeats, []
    known = next((name for name in KNOWN_CLIPS if name in recipe.name), None)
    if known:
        return KNOWN_CLIPS[known] * repeats, [f"an epoch of {KNOWN_CLIPS[known]} videos, as {known} is published"]
    num_videos = KNOWN_CLIPS[FALLBACK_DATA]
    return num_videos * repeats, [
        f"an epoch of {format_count(num_videos, 'video')}, the size of {FALLBACK_DATA}: state it with --clips"
    ]


def _resolve_mfu(options: PlanOptions) -> tuple[float, str]:
    """The MFU and a note on where it comes from."""
    if options.mfu is not None and options.measured is not None:
        raise ValueError("--mfu states what --measured would look up: give one of the two")
    if options.measured is not None:
        mfu = measured_mfu(options.measured)
        return mfu, f"MFU {100 * mfu:.1f}% as {options.measured} recorded it"
    if options.mfu is None:
        assumed = f"MFU {100 * ASSUMED_MFU:.0f}% is assumed, no run was timed on a GPU"
        return ASSUMED_MFU, f"{assumed}: state it with --mfu or --measured RUN_DIR"
    if not 0 < options.mfu <= 1:
        raise ValueError(f"--mfu is above 0 and at most 1, got {options.mfu}")
    return options.mfu, f"MFU {100 * options.mfu:.1f}% as stated"


def _parse_size(text: str) -> tuple[int, int]:
    """Height and width of a text like "340x256"."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise ValueError(f"--video is WIDTHxHEIGHT of the video files, as in 340x256, got {text!r}")
    return int(match[2]), int(match[1])
