"""Weights of one of our runs -> the recipe that they were trained with: weights alone do not tell how frames were spaced."""

from __future__ import annotations

from pathlib import Path

from mats_ds.config import Recipe, load_recipe
from mats_ds.config_finetune import FinetuneRecipe
from mats_ds.core.small_files import read_small_text
from mats_ds.interop.plain import SUFFIX
from mats_ds.parsing import MAX_YAML_CHARACTERS, parse_yaml

RECIPE = "recipe.yaml"


def read_recipe_beside(source: str | Path) -> Recipe | None:
    """The recipe of a run folder, its `checkpoints` folder, one of its checkpoints, or a file of weights in the run folder; None
    where there is none. A fine-tuning's is a FinetuneRecipe.

    Raises ValueError when the file is there and is no recipe.
    """
    path = Path(source)
    if path.is_dir():
        folders = (path, *path.resolve().parents[:2])
    elif path.suffix == SUFFIX:
        folders = (path.resolve().parent,)
    else:
        return None
    found = next((folder / RECIPE for folder in folders if (folder / RECIPE).is_file()), None)
    if found is None:
        return None
    tree = parse_yaml(read_small_text(found, max_bytes=MAX_YAML_CHARACTERS))
    is_finetuning = isinstance(tree, dict) and "finetune" in tree
    return load_recipe(found, schema=FinetuneRecipe if is_finetuning else Recipe)
