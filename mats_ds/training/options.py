"""The command line of the programs that train: its options, and what every one of them does before
and after its own work."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from mats_ds.config.ds_config import list_json_names
from mats_ds.config.load import list_recipes, load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.cli import run_script
from mats_ds.core.interrupts import AGAIN
from mats_ds.core.run_dir import RUN_FILE, describe_standing
from mats_ds.core.storage.folder_lock import find_held_folders
from mats_ds.distributed.ranks import begin_rank
from mats_ds.training.run import RunOptions

ADVICE = "make room or mend that disk"
R = TypeVar("R", bound=Recipe)


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


def run_training(train: Callable[[R, RunOptions], None], options: argparse.Namespace, *, schema: type[R] = Recipe) -> int:
    """The exit status of a training, as `run_script` gives it."""

    def work() -> None:
        begin_rank()
        recipe = load_recipe(options.recipe, options.overrides, schema=schema)
        names = ("ds_config", "out", "trace", "memory_snapshot", "trace_steps")
        train(recipe, RunOptions(resume=options.resume is not None, **{name: getattr(options, name) for name in names}))

    return run_script(work, advice=ADVICE, standing=_describe_standing)


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
