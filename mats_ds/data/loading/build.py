"""Recipe sections -> manifest and loader of a program; the views of a test, in batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from mats_ds.config.recipe import ClipSection, DataSection, Recipe
from mats_ds.core.clips import ClipBatch
from mats_ds.core.progress import show_progress
from mats_ds.core.storage.package_files import own_command
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.view_sampler import View, ViewSampler

logger = logging.getLogger(__name__)

SYNTHETIC_FOLDER = Path("data/synthetic")


@dataclass(frozen=True)
class ViewBatch:
    """A batch, always of full size. views: the view that each clip shows, None for padding.
    readable: false where it is blank."""

    clips: ClipBatch
    views: tuple[View | None, ...]
    readable: tuple[bool, ...]


def open_videos(data: DataSection) -> Manifest:
    """The recipe's videos, or the synthetic set where it names none."""
    source = data.manifest
    if source is None:
        source = write_synthetic_set(SYNTHETIC_FOLDER)
        logger.info("data: no data.manifest given, training on the synthetic set in %s (a test, not a data set)", source.parent)
    return read_manifest(source, root=data.root, root_name="data.root")


def name_data(data: DataSection) -> list[str]:
    """The overrides that name the recipe's videos, for a command that shall read the same ones."""
    return [f"data.{key}={value}" for key in ("manifest", "root") if (value := getattr(data, key))]


def how_to_mend(data: DataSection) -> str:
    """Advice to whom too many videos are unreadable."""
    if data.manifest is None:
        return "mend or remove them"
    root = ("--root", data.root) if data.root else ()
    command = own_command("prepare", "check", data.manifest, *root, "--out", "checked.csv")
    return f"train on what `{command}` finds usable (data.manifest=checked.csv)"


def open_loader(
    sampler: ClipSampler | ViewSampler,
    recipe: Recipe,
    *,
    rank: int,
    world_size: int,
    micro_batch: int,
    accumulation: int,
    device: torch.device,
) -> ClipLoader:
    """A loader of the recipe's picture size with its reading options. Raises ValueError for sizes
    that do not fit the sampler."""
    data = recipe.data
    return ClipLoader(
        sampler,
        BatchSplit(rank, world_size, micro_batch, accumulation),
        size=(recipe.clip.height, recipe.clip.width),
        device=device,
        options=ReadOptions(data.num_workers, data.prefetch, data.clip_timeout_seconds),
    )


def read_views(
    manifest: Manifest,
    *,
    recipe_clip: ClipSection,
    num_clips: int,
    num_crops: int,
    num_frames: int,
    micro_batch: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int | None = None,
    label: str = "",
) -> Iterator[ViewBatch]:
    """This rank's part of the `num_clips` x `num_crops` views of every video, each once over all
    ranks, in batches of `micro_batch`; all ranks have the same number of batches.

    Arguments as for ViewSampler and ClipLoader. With a `label`, progress is shown: a bar on a
    terminal, elsewhere a line every 20 seconds.
    """
    sampler = ViewSampler(
        manifest,
        recipe_clip=recipe_clip,
        num_clips=num_clips,
        num_crops=num_crops,
        micro_batch=micro_batch,
        world_size=world_size,
        num_frames=num_frames,
    )
    with ClipLoader(
        sampler,
        BatchSplit(rank, world_size, micro_batch),
        size=(recipe_clip.height, recipe_clip.width),
        device=device,
        options=ReadOptions(num_workers),
    ) as loader:
        yield from show_progress(read_pass(loader), total=sampler.steps_per_epoch, label=label, unit="batch")


def read_pass(loader: ClipLoader) -> Iterator[ViewBatch]:
    """One pass of a loader that has a ViewSampler."""
    batches = loader.micro_batches(0)
    for step, batch in enumerate(islice(batches, loader.sampler.steps_per_epoch)):
        views = tuple(loader.sampler.view(position) for position in loader.positions(step, 0))
        for view, sample in zip(views, batch.sample_B.tolist(), strict=True):
            assert view is None or view.sample == sample, "a clip is not the view that was asked for"
        yield ViewBatch(batch, views, tuple(batch.valid_B.tolist()))
    batches.close()
