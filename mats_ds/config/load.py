"""YAML and dotted overrides -> a checked recipe. All mistakes are reported at once, with the
nearest valid names."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mats_ds.config.recipe import Recipe
from mats_ds.core.storage.documents import MAX_YAML_BYTES, parse_yaml
from mats_ds.core.storage.files import read_text
from mats_ds.core.storage.package_files import find_file, find_folder, list_names
from mats_ds.core.text import Lines

RECIPE_FOLDER = find_folder("recipes")
# of a wrong name that is compared with the valid ones: longer names take memory and time
COMPARED_LETTERS = 100


RecipeT = TypeVar("RecipeT", bound=Recipe)


def load_recipe(source: str | Path = "default", overrides: Sequence[str] = (), *, schema: type[RecipeT] = Recipe) -> RecipeT:
    """The recipe of a YAML file, or of a name in this package's `recipes` folder, with
    `section.key=value` overrides on top.

    schema: Recipe, or a class that adds sections to it. Raises ValueError that lists every mistake
    with the nearest valid name, and for a recipe of another trainer than the schema's.
    """
    path = _find_recipe(source)
    text = read_text(path, max_bytes=MAX_YAML_BYTES, follows_links=True)
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a recipe is a mapping of sections, got {type(tree).__name__}")
    if ("finetune" in tree) != ("finetune" in schema.model_fields):
        trainers = ("fine-tuning", "mats_ds/finetune.py"), ("pre-training", "mats_ds/pretrain.py")
        (what, script), (other, _) = trainers if "finetune" in tree else trainers[::-1]
        raise ValueError(f"{path} is a recipe for {what} (it is {script}'s), and this is {other}: choose another --recipe")
    tree.setdefault("name", path.stem)
    mistakes = [problem for override in overrides if (problem := _apply_override(tree, override))]
    try:
        recipe = schema.model_validate(tree)
    except ValidationError as error:
        mistakes += [_explain(problem, schema) for problem in error.errors()]
    if mistakes:
        count = f"{path}: {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} in the recipe"
        raise ValueError(Lines(count, *(f"  - {mistake}" for mistake in mistakes)))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _find_recipe(source: str | Path) -> Path:
    if path := find_file(source, "recipes", suffix=".yaml"):
        return path
    names = list_names("recipes", suffix=".yaml")
    raise ValueError(f"no recipe at {source}: give a YAML file or one of {', '.join(names)}{_nearest(Path(source).stem, names)}")


PATH_KEYS = ("manifest", "root", "weights")


def _apply_override(tree: dict[str, Any], override: str) -> str | None:
    """Write one `a.b=value` into the tree; returns the mistake in it, if any."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        return f"override {override!r}: expected section.key=value, for example optim.base_lr=1e-3"
    leaf = key.strip().rpartition(".")[2]
    is_path = leaf in PATH_KEYS and text.strip() not in ("", "null", "~") and text[0] not in "\"'"
    # a path is taken literally: YAML would take `12:30` for a number and what follows ` #` for a
    # comment
    try:
        value = text if is_path else parse_yaml(text)
    except ValueError:
        return f"override {override!r}: {text!r} is not a YAML value"
    if isinstance(value, str) and not is_path:
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 (no dot) as a string
            value = float(value)
    node = tree
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            return f"override {override!r}: {parent} is a value, not a section"
    node[leaf] = value
    return None


def _explain(problem: Any, schema: type[BaseModel]) -> str:
    """One pydantic error as a sentence, with the nearest valid name for an unknown key."""
    path = [str(part) for part in problem["loc"] if not str(part).startswith(("literal[", "constrained-", "function-"))]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        names = list(_section_at(path[:-1], schema).model_fields)
        elsewhere = sorted(full for full in _all_keys(schema) if full.rsplit(".", 1)[-1] == path[-1])
        hint = f"; did you mean {elsewhere[0]}?" if elsewhere else _nearest(path[-1], names)
        if not hint:
            hint = f"; valid here: {', '.join(names)}"
        return f"{dotted} is not a key of a recipe{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = "" if isinstance(problem["input"], (dict, BaseModel)) else f", got {problem['input']!r:.200}"
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        valid = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = _nearest(problem["input"], valid)
    return f"{dotted + ': ' if dotted else ''}{message}{got}{hint}"


def _section_at(path: Iterable[str], schema: type[BaseModel]) -> type[BaseModel]:
    section = schema
    for name in path:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    return section


def _all_keys(schema: type[BaseModel]) -> list[str]:
    return [
        f"{section}.{key}"
        for section, info in schema.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for key in info.annotation.model_fields
    ]


def _nearest(name: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:COMPARED_LETTERS], valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
