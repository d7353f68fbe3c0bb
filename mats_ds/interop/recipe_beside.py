"""Weights of one of our runs -> the recipe that they were trained with: weights alone do not tell how frames were spaced."""

from __future__ import annotations

from pathlib import Path

from mats_ds.config import Recipe, load_recipe

RECIPE = "recipe.yaml"


def read_recipe_beside(source: str | Path) -> Recipe | None:
    """The recipe of a run folder, its `checkpoints` folder, or one of its checkpoints; None where there is none.

    Raises ValueError when the file is there and is no recipe.
    """
    path = Path(source)
    if not path.is_dir():
        return None
    places = [folder / RECIPE for folder in (path, *path.resolve().parents[:2])]
    found = next((place for place in places if place.is_file()), None)
    return None if found is None else load_recipe(found)
