"""The command line of the programs that train: its options, and what every one of them does before
and after its own work.

What can be wrong with arguments, recipe, JSON and paths is looked for before torch and DeepSpeed
are imported, which takes seconds on every rank: once where the ranks are started from (mats,
launch.sh), and by every rank.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mats_ds.config.batch_plan import MICRO_BATCH_KEY, plan_batch
from mats_ds.config.ds_config import list_json_names, read_judged
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import list_recipes, load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.cli import run_script
from mats_ds.core.interrupts import AGAIN
from mats_ds.core.run_dir import RUN_FILE, describe_standing
from mats_ds.core.storage.folder_lock import find_held_folders
from mats_ds.data.classes import check_test_set, resolve_classes
from mats_ds.data.early_list import check_list
from mats_ds.data.manifest import Manifest
from mats_ds.distributed.ranks import begin_rank
from mats_ds.distributed.scheduler_env import are_all_here
from mats_ds.models.weights.source import check_source
from mats_ds.training.ds_outputs import check_outputs
from mats_ds.training.own_folder import RUNS, check_run_folder, find_newest_run, parse_out

ADVICE = "make room or mend that disk"
R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class RunOptions:
    """The command line's options beside the recipe.

    ds_config: path of the DeepSpeed JSON. out: the run folder, None for a new one. resume: go on
    from the newest checkpoint of the run folder. trace, memory_snapshot: of `trace_steps` steps.
    """

    ds_config: str
    out: str | None = None
    resume: bool = False
    trace: bool = False
    memory_snapshot: bool = False
    trace_steps: int = 3


def add_run_options(parser: argparse.ArgumentParser, *, default_recipe: str | None) -> None:
    """The options of a training run; without `default_recipe` a recipe must be named."""
    default = f" (default: {default_recipe})" if default_recipe else ""
    names = [name for name in list_recipes() if name.startswith("finetune") == (default_recipe is None)]
    parser.add_argument(
        "--recipe",
        default=default_recipe,
        required=default_recipe is None,
        help=f"YAML file, or one of {', '.join(names)}{default}",
    )
    parser.add_argument("--ds_config", required=True, help=f"DeepSpeed JSON, or one of {', '.join(list_json_names())}")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-DATE-TIME)")
    parser.add_argument("--resume", choices=["auto"], help="go on from the newest complete checkpoint of the run folder")
    # the deepspeed launcher passes it
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument(
        "--trace", action="store_true", help="write a trace of some steps (torch's profiler, for ui.perfetto.dev) into RUN/traces"
    )
    parser.add_argument(
        "--memory_snapshot",
        action="store_true",
        help="write every GPU allocation of some steps (for pytorch.org/memory_viz) into RUN/memory_snapshots",
    )
    parser.add_argument("--trace_steps", type=_positive, default=3, metavar="N", help="how many steps (default: %(default)s)")


def run_training(
    train: Callable[[R, RunOptions], None], options: argparse.Namespace, *, task: str, schema: type[R] = Recipe
) -> int:
    """The exit status of a training, as `run_script` gives it. task: "pretrain" or "finetune"."""

    def work() -> None:
        begin_rank()
        # a rank that ends before it has joined those of other machines would leave them waiting
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        recipe = check_start(options, task=task, schema=schema, reads_paths=are_all_here(), num_ranks=num_ranks)
        names = ("ds_config", "out", "trace", "memory_snapshot", "trace_steps")
        train(recipe, RunOptions(resume=options.resume is not None, **{name: getattr(options, name) for name in names}))

    return run_script(work, advice=ADVICE, standing=_describe_standing)


def check_start(options: argparse.Namespace, *, task: str, schema: type[R], reads_paths: bool, num_ranks: int | None = None) -> R:
    """The recipe. Raises ValueError for all that is known to be wrong without torch and DeepSpeed,
    in the order in which a run would come to it; writes nothing.

    reads_paths: also look at the run folder, videos and weights, which may be another machine's.
    num_ranks: None where it is not known yet.
    """
    recipe = load_recipe(options.recipe, options.overrides, schema=schema)
    ds_config = read_judged(options.ds_config)
    check_outputs(ds_config)
    if num_ranks is not None and MICRO_BATCH_KEY in ds_config:
        plan_batch(ds_config, recipe_batch=recipe.optim.global_batch, world_size=num_ranks, repeats=recipe.data.repeats)
    if not reads_paths:
        return recipe
    if options.out is not None:
        check_run_folder(parse_out(options.out), task=task, resume=options.resume is not None)
    elif options.resume and not RUNS.is_dir():
        find_newest_run(RUNS, recipe_name=recipe.name, task=task)
    data = recipe.data
    manifest = check_list(data.manifest, root=data.root, root_name="data.root") if data.manifest is not None else None
    if isinstance(recipe, FinetuneRecipe):
        check_test_and_weights(recipe, manifest)
    return recipe


def check_test_and_weights(recipe: FinetuneRecipe, manifest: Manifest | None) -> None:
    """Raises ValueError for labels and test videos that do not fit, and for a path without weights.
    manifest: None where it is not read yet."""
    data, test, weights = recipe.data, recipe.evaluation, recipe.finetune.weights
    test_set = None
    classes = resolve_classes(manifest, data.manifest, asked=recipe.finetune.num_classes) if manifest is not None else None
    if test.manifest is not None:
        test_set = check_list(test.manifest, root=test.root or data.root, root_name="evaluation.root")
    if classes is not None and test_set is not None:
        check_test_set(test_set, test.manifest, classes)
    if weights is not None:
        check_source(weights)


def _describe_standing() -> str:
    """What is saved of the run whose folder this process holds; without one, nothing has begun."""
    held = find_held_folders()
    try:
        begun = bool(held) and (held[0] / RUN_FILE).exists()
    except OSError:  # a folder that cannot be looked into was begun all the same: this process holds it
        begun = True
    return describe_standing(held[0]) if begun else AGAIN


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of steps of at least 1, got {text!r}")
    return int(text)
