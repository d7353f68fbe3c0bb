"""From a recipe's sections to what a script reads from: manifest and loader."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from mats_ds.clips import ClipBatch
from mats_ds.config import DataSection, Recipe
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.pipeline import ClipLoader
from mats_ds.data.sampler import ClipSampler
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.views import ViewSampler

logger = logging.getLogger(__name__)

SYNTHETIC_FOLDER = Path("data/synthetic")


def open_videos(data: DataSection) -> Manifest:
    """The recipe's videos, or the synthetic set where it names none."""
    source = data.manifest
    if source is None:
        source = write_synthetic_set(SYNTHETIC_FOLDER)
        logger.info("data: no data.manifest given, training on the synthetic set in %s (a test, not a data set)", source.parent)
    return read_manifest(source, root=data.root)


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
    """A loader of the recipe's picture size with its reading options. Raises ValueError for sizes that do not fit the sampler."""
    return ClipLoader(
        sampler,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        accumulation=accumulation,
        device=device,
        height=recipe.clip.height,
        width=recipe.clip.width,
        num_workers=recipe.data.num_workers,
        prefetch=recipe.data.prefetch,
        clip_timeout_seconds=recipe.data.clip_timeout_seconds,
    )


def read_once(loader: ClipLoader) -> Iterator[ClipBatch]:
    """This rank's micro-batches of one epoch, or of one pass over a test's views."""
    batches = loader.micro_batches(0)
    yield from islice(batches, loader.sampler.steps_per_epoch)
    batches.close()
