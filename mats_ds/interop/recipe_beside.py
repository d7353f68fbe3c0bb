"""Weights of one of our runs -> the recipe that they were trained with: weights alone do not tell how frames were spaced.

The run may be somebody else's: its recipe is a regular file of a bounded size and no link, which could lead to any file.
"""

from __future__ import annotations

import os
from pathlib import Path

from mats_ds.config import Recipe, load_recipe
from mats_ds.config_finetune import FinetuneRecipe
from mats_ds.core.files import read_bytes
from mats_ds.interop.plain import SUFFIX
from mats_ds.parsing import parse_yaml

RECIPE = "recipe.yaml"
MAX_RECIPE_BYTES = 2**20


def read_recipe_beside(source: str | Path) -> Recipe | None:
    """The recipe of a run folder, its `checkpoints` folder, one of its checkpoints, or a file of weights in the run folder; None
    where there is none. A fine-tuning's is a FinetuneRecipe.

    Raises ValueError when the file is there and is no recipe.
    """
    path = Path(source)
    if path.is_dir():  # a run's checkpoints may be a link to a larger disk: first the run that the path names
        folders = (path, *Path(os.path.abspath(path)).parents[:2], *path.resolve().parents[:2])
    elif path.suffix == SUFFIX:
        folders = (path.resolve().parent,)
    else:
        return None
    found = next((folder / RECIPE for folder in folders if os.path.lexists(folder / RECIPE)), None)
    if found is None:
        return None
    tree = parse_yaml(read_recipe_text(found))
    is_finetuning = isinstance(tree, dict) and "finetune" in tree
    return load_recipe(found, schema=FinetuneRecipe if is_finetuning else Recipe)


def read_recipe_text(path: Path) -> str:
    """The text of a recipe in a run folder. Raises ValueError for a link, a pipe, and what is no text or far too long for one."""
    try:
        return read_bytes(path, max_bytes=MAX_RECIPE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None
