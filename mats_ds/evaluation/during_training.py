"""The test videos of a fine-tuning: opened, compared with the training videos, and the result of
the last weights on them."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.core.format import format_count, format_views
from mats_ds.core.storage.files import write_json
from mats_ds.core.storage.package_files import own_command
from mats_ds.data.classes import Classes, check_test_set
from mats_ds.data.loading.build import open_loader
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.shared_videos import refuse_shared
from mats_ds.data.view_sampler import ViewSampler, fit_micro_batch
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.validation import read_evaluations
from mats_ds.metering.run_result import RESULT_FILE, conclude
from mats_ds.models.weights.origin import BEST_FILE

logger = logging.getLogger("mats_ds")


def open_test_set(recipe: FinetuneRecipe, classes: Classes) -> Manifest | None:
    """The videos that the run is tested on; None, with a log line, where the recipe names none.
    Raises ValueError for labels that are not among the classes.
    """
    section = recipe.evaluation
    if section.manifest is None:
        logger.info("test: no evaluation.manifest given, so nothing is tested, there is no result and no best weights are kept")
        return None
    manifest = read_manifest(section.manifest, root=section.root or recipe.data.root, root_name="evaluation.root")
    check_test_set(manifest, section.manifest, classes)
    return manifest


def check_unseen(test_set: Manifest | None, manifest: Manifest, recipe: FinetuneRecipe) -> int:
    """The number of test videos that are trained on as well. Raises ValueError for them unless the
    recipe allows it."""
    if test_set is None:
        return 0
    section, (clips, crops) = recipe.evaluation, recipe.evaluation.training_views
    what = "the average of the weights" if recipe.finetune.ema_decay else "the weights"
    videos = f"{format_count(len(test_set), 'video')} of {test_set.name}, {format_views(clips, crops)} each"
    often = "every epoch" if section.every_epochs == 1 else f"every {section.every_epochs:g} epochs"
    logger.info("test: %s on %s, %s; the best is kept, the last is the result", what, videos, often)
    return refuse_shared(test_set, manifest, allowed=section.allow_overlap, fix="set evaluation.allow_overlap=true")


def open_test_loader(manifest: Manifest, recipe: FinetuneRecipe, ranks: RankInfo, *, micro_batch: int) -> ClipLoader:
    """The views of the test, in micro-batches of the training's size or a little less, so that few
    passes decode a video."""
    clips, crops = recipe.evaluation.training_views
    micro_batch = fit_micro_batch(clips * crops, at_most=micro_batch)
    sampler = ViewSampler(
        manifest,
        recipe_clip=recipe.clip,
        num_clips=clips,
        num_crops=crops,
        micro_batch=micro_batch,
        world_size=ranks.world_size,
        num_frames=recipe.candidate_grid().num_frames,
        seed=recipe.run.seed,
    )
    split = dict(rank=ranks.rank, world_size=ranks.world_size, micro_batch=micro_batch, accumulation=1)
    return open_loader(sampler, recipe, **split, device=ranks.device)


def write_result(folder: Path, recipe: FinetuneRecipe, *, num_trained_on: int) -> None:
    """Log the accuracy of the last weights, write it into result.json, and log how to test as the
    recipe says."""
    tests = [asdict(test) for test in read_evaluations(folder)]
    if not (result := conclude(tests, num_trained_on=num_trained_on, best_file=BEST_FILE)):
        return
    write_json(folder / RESULT_FILE, result.as_json(), durable=True, indent=2)
    for line in result.describe():
        logger.info("%s", line)
    test = recipe.evaluation
    views = test.clips or 1, test.crops or 1
    if (test.clips or test.crops) and test.training_views != views:
        # the best ones were chosen with these very videos
        command = own_command("evaluate", "--model", folder, "--weights_from", "last", "--manifest", test.manifest)
        logger.info("on %s, as the recipe tests: %s", format_views(*views), command)
