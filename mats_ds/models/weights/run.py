"""The weights of one of our runs: those that DeepSpeed wrote into its checkpoints (ZeRO-1 and -2),
their running average, or best.safetensors, which is what is read of a run folder that has it,
unless one asks for another.

Layout, as `core/checkpoint_files.py` has it:
RUN/checkpoints/step-00001000/{mp_rank_00_model_states.pt, ..., complete.json}. The weights are
those that the model computes with, in the run's precision; the optimizer's float32 copies are not
read. The average (`finetune.ema_decay`) is float32; where a run keeps one, it is what the run
tests, and what is read of a checkpoint unless one asks for another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.checkpoint_files import (
    AVERAGE_KEY,
    CHECKPOINTS,
    COMPLETE,
    SPEC_KEY,
    WEIGHT_FILE,
    find_file_damage,
    is_checkpoint,
    read_complete,
)
from mats_ds.core.storage.documents import MAX_YAML_BYTES, parse_json, parse_yaml
from mats_ds.core.storage.files import read_text
from mats_ds.core.text import Lines
from mats_ds.models.model_spec import ModelSpec, parse_spec
from mats_ds.models.weights.file_content import unpickle
from mats_ds.models.weights.model_weights import Weights, as_float32, measure
from mats_ds.models.weights.native import load_weights
from mats_ds.models.weights.origin import BEST_FILE, WEIGHTS_FROM, Origin, origin_of
from mats_ds.models.weights.source import SUFFIX, find_steps


def read_run(path: str | Path, *, weights_from: str | None = None) -> Weights:
    """The weights of a run. None: `best`, those of best.safetensors, where `path` is a run folder
    that has them (it was tested during the training), else `last`. `last` are those of the newest
    complete checkpoint: their average where the run keeps one, else the weights themselves;
    `average` and `unaveraged` require one of the two. A damaged checkpoint is skipped and noted.

    Raises ValueError when there is no complete one, when its recipe is of another version, when it
    is of ZeRO-3, which leaves no rank with all weights, and when the run has no such weights.
    """
    if weights_from not in (None, *WEIGHTS_FROM):
        raise ValueError(f"weights_from is one of {', '.join(WEIGHTS_FROM)}, got {weights_from!r}")
    if weights_from == "best":
        return read_best(Path(path))
    steps, notes = find_steps(path), []
    if weights_from is None and (Path(path) / BEST_FILE).is_file():
        try:
            weights = read_best(Path(path))
        except ValueError as error:
            notes.append(f"{BEST_FILE} is skipped: {error}")
        else:
            others = ["the last weights are there, too: --weights_from last"] if steps else []
            return replace(weights, notes=(*weights.notes, *others))
    for step in steps:
        problem = what_is_wrong(step)
        if problem is None:
            return read_step(step, notes, weights_from or "last")
        notes.append(f"{step.name} is skipped: {problem}")
    best = find_best(Path(path))
    hint = "" if best is None else f"; {best} is there: --weights_from best (finetune.weights_from=best in a recipe)"
    raise ValueError(Lines(f"{path} has no complete checkpoint{hint}", *(f"  - {note}" for note in notes)))


def find_best(path: Path) -> Path | None:
    """best.safetensors of a run folder, or of the run that a folder `checkpoints` or one of its
    checkpoints belongs to."""
    path = path.resolve()
    if is_checkpoint(path):
        path = path.parent
    folder = path.parent if path.name == CHECKPOINTS else path
    return folder / BEST_FILE if (folder / BEST_FILE).is_file() else None


def read_best(path: Path) -> Weights:
    """The weights with the best top-1 of all tests during the training."""
    best = find_best(path)
    if best is None:
        raise ValueError(
            f"{path} has no {BEST_FILE}: a run keeps it where it is tested during the training (evaluation.manifest); "
            "take its last weights, with --weights_from last (finetune.weights_from=last in a recipe)"
        )
    if is_checkpoint(path):
        raise ValueError(f"{path} is one checkpoint, and {BEST_FILE} belongs to the run: name {best.parent}")
    weights = load_weights(best)
    described = weights.origin.describe() or "of no known step"
    source = f"the best weights of one of our runs, {described} ({best})"
    return replace(weights, source=source, file=str(best), which="best")


def what_is_wrong(step: Path) -> str | None:
    """The reason that the weights of a checkpoint cannot be read, or None when they are there with
    the bytes that were written. Its other files may be missing."""
    try:
        files = read_complete(step).files
    except (OSError, ValueError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    if WEIGHT_FILE not in files:
        return f"it has no {WEIGHT_FILE}: ZeRO-3 keeps weights in parts; merge them with checkpoints/zero_to_fp32.py"
    return find_file_damage(step, files[WEIGHT_FILE])


def read_step(step: Path, notes: list[str], weights_from: str) -> Weights:
    """The weights of a complete checkpoint, averaged or not."""
    content = unpickle(step / WEIGHT_FILE)
    has_average = AVERAGE_KEY in content
    if weights_from == "average" and not has_average:
        best = find_best(step)
        raise ValueError(
            f"{step} holds no average of the weights (finetune.ema_decay was not set): it has last and unaveraged, which are the "
            f"same here{'' if best is None else ', and the run has best'}"
        )
    averaged = has_average and weights_from != "unaveraged"
    stored = content[AVERAGE_KEY if averaged else "module"]
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in stored.items()}
    if isinstance(content.get(SPEC_KEY), str):
        spec = parse_spec(parse_json(content[SPEC_KEY]))
    else:
        spec = spec_of_recipe(content["recipe"], state, step)
    origin = read_origin(content, averaged=averaged)
    kind = "the average of its weights" if averaged else "weights without averaging" if has_average else "its last weights"
    source = f"step {content['step']:,} of one of our runs, {kind} ({step})"
    chosen = dict(file=str(step / WEIGHT_FILE), which=weights_from)
    return Weights(spec, as_float32(state), source, tuple(notes), origin, **chosen)


def read_origin(content: Mapping[str, Any], *, averaged: bool) -> Origin:
    """From the recipe that a checkpoint holds, if it can be read."""
    try:
        recipe = parse_yaml(content["recipe"])
    except (KeyError, ValueError, TypeError, AttributeError):
        recipe = None
    return origin_of(recipe, step=int(content["step"]), averaged=averaged)


def spec_of_recipe(text: str, state: Mapping[str, Any], step: Path) -> ModelSpec:
    """The model that a recipe (YAML) describes, with the sizes that the weights have."""
    try:
        recipe = Recipe.model_validate(parse_yaml(text))
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise ValueError(f"the recipe in {step} is of another version: {keys}") from None
    sizes, pruning, grid = measure(state), recipe.selection.pruning(), recipe.clip.grid()
    is_classifier = sizes["kind"] == "classifier"
    return ModelSpec(
        grid=grid,
        position_grid=grid,
        pruning=pruning.keeping(pruning.keep_ratio) if is_classifier else replace(pruning, merge_dropped=False),
        num_candidate_frames=recipe.candidate_grid().num_frames,
        **sizes,
    )


RECIPE = "recipe.yaml"


def read_recipe_beside(source: str | Path) -> Recipe | None:
    """The recipe of a run folder, its `checkpoints` folder, one of its checkpoints, or a file of
    weights in the run folder; None where there is none. A fine-tuning's is a FinetuneRecipe.

    Raises ValueError when the file is there and is no recipe: a link, a pipe, what is no text or
    far too long for one.
    """
    path = Path(source)
    # a run's checkpoints may be a link to a larger disk: first the run that the path names
    if path.is_dir():
        folders = (path, *Path(os.path.abspath(path)).parents[:2], *path.resolve().parents[:2])
    elif path.suffix == SUFFIX:
        folders = (path.resolve().parent,)
    else:
        return None
    path = next((folder / RECIPE for folder in folders if os.path.lexists(folder / RECIPE)), None)
    if path is None:
        return None
    tree = parse_yaml(read_text(path, max_bytes=MAX_YAML_BYTES))
    is_finetuning = isinstance(tree, dict) and "finetune" in tree
    return load_recipe(path, schema=FinetuneRecipe if is_finetuning else Recipe)
