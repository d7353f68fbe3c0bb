"""YAML and dotted overrides -> a checked recipe. All mistakes are reported at once, with the
nearest valid names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mats_ds.config.batch_plan import MICRO_BATCH_KEY
from mats_ds.config.recipe import Recipe
from mats_ds.core.format import format_count
from mats_ds.core.storage.documents import MAX_YAML_BYTES, parse_yaml
from mats_ds.core.storage.file_kind import describe_file, not_a
from mats_ds.core.storage.files import read_text
from mats_ds.core.storage.package_files import find_file, find_folder, list_names, own_command
from mats_ds.core.text import Lines, did_you_mean, find_nearest, quote_word

RECIPE_FOLDER = find_folder("recipes")
# the sections that FinetuneRecipe adds
OF_FINETUNING = ("finetune", "augment", "evaluation")

RecipeT = TypeVar("RecipeT", bound=Recipe)


def load_recipe(source: str | Path = "default", overrides: Sequence[str] = (), *, schema: type[RecipeT] = Recipe) -> RecipeT:
    """The recipe of a YAML file, or of a name in this package's `recipes` folder, with
    `section.key=value` overrides on top.

    schema: Recipe, or a class that adds sections to it. Raises ValueError that lists every mistake
    with the nearest valid name, and for a recipe of another trainer than the schema's.
    """
    path = find_recipe(source)
    kind = describe_file(path)
    if kind not in (None, "a text file", "a recipe (YAML)", "an empty file", "a JSON file"):
        raise ValueError(f"{not_a('recipe', path)}: give a YAML file or one of {', '.join(list_recipes())}")
    text = read_text(path, max_bytes=MAX_YAML_BYTES, follows_links=True)
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a recipe is a mapping of sections, got {type(tree).__name__}")
    if not set(tree) & {*schema.model_fields, *OF_FINETUNING, "name"} and tree:
        given = ": a DeepSpeed JSON is given as --ds_config" if MICRO_BATCH_KEY in tree else ""
        first = ", ".join(map(str, list(tree)[:3]))
        hint = did_you_mean(str(next(iter(tree))), schema.model_fields)
        known = ", ".join(schema.model_fields)
        raise ValueError(f"{path} is no recipe{given or f': its keys are {first}, and a recipe has {known}{hint}'}")
    if ("finetune" in tree) != ("finetune" in schema.model_fields):
        trainers = ("fine-tuning", "finetune"), ("pre-training", "pretrain")
        (what, verb), (other, _) = trainers if "finetune" in tree else trainers[::-1]
        raise ValueError(
            f"{path} is a recipe for {what} ({own_command(verb)} takes it), and this is {other}: choose another --recipe"
        )
    tree.setdefault("name", path.stem)
    mistakes = _apply_overrides(tree, overrides, list_keys(schema))
    try:
        recipe = schema.model_validate(tree)
    except ValidationError as error:
        mistakes += [_explain(problem, schema) for problem in error.errors()]
    if mistakes:
        count = f"{path}: {format_count(len(mistakes), 'mistake')} in the recipe"
        raise ValueError(Lines(count, *(f"  - {mistake}" for mistake in mistakes)))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe, by its path or its name. Raises ValueError where there is none."""
    if path := find_file(source, "recipes", suffix=".yaml"):
        return path
    names = list_recipes()
    if Path(source).exists():
        raise ValueError(f"{not_a('recipe', source)}: give a YAML file or one of {', '.join(names)}")
    raise ValueError(
        f"no recipe at {source}: give a YAML file or one of {', '.join(names)}{did_you_mean(Path(source).stem, names)}"
    )


PATH_KEYS = ("manifest", "root", "weights")


def list_keys(schema: type[BaseModel] = Recipe) -> list[str]:
    """The keys that a recipe of that schema may have, as `section.key`."""
    return [
        f"{section}.{key}"
        for section, info in schema.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for key in info.annotation.model_fields
    ]


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return list_names("recipes", suffix=".yaml")


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Write every `a.b=value` into the tree; returns the mistakes in them."""
    mistakes = []
    rest = list(overrides)
    while rest:
        word = rest.pop(0)
        spread = _join_spread(word, rest, keys)
        if spread:
            whole, num_more = spread
            wrong = " ".join([word, *rest[:num_more]])
            del rest[:num_more]
            mistakes.append(f"override {wrong!r}: write it as one word: {quote_word(whole)}")
        elif mistake := _apply_override(tree, word, keys):
            mistakes.append(mistake)
    return mistakes


def _join_spread(word: str, rest: Sequence[str], keys: Sequence[str]) -> tuple[str, int] | None:
    """The override that several words were meant to be, as `a.b = 1`, `a.b= 1`, `a.b =1` or `a.b
    1`, and how many more words than the first it takes; None for one that is whole."""
    after, then = [*rest[:2], "", ""][:2]
    is_key = word in keys or find_nearest(word, keys, cutoff=0.9) is not None
    if "=" not in word and after == "=":
        return f"{word}={then}", 2 if then else 1
    if "=" not in word and after.startswith("="):
        return f"{word}={after[1:]}", 1
    if word.endswith("=") and after and "=" not in after:
        return f"{word}{after}", 1
    if is_key and after and "=" not in after and after not in keys:
        return f"{word}={after}", 1
    return None


def _apply_override(tree: dict[str, Any], override: str, keys: Sequence[str]) -> str | None:
    """Write one `a.b=value` into the tree; returns the mistake in it, if any."""
    key, equals, text = override.partition("=")
    if equals and key.strip() and not text.strip():  # as of an unset variable of a shell
        return f"override {override!r}: no value; {key.strip()}=null is for none"
    if not equals or not key.strip():
        return f"override {override!r}: expected section.key=value, {_guess_override(override, keys)}"
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


def _guess_override(word: str, keys: Sequence[str]) -> str:
    """What a word without `=` was meant to be."""
    key, colon, value = word.partition(":")
    if colon and (found := find_nearest(key, keys, cutoff=0.8)):
        return f"so write {quote_word(f'{found}={value.strip()}')}"
    if word in list_recipes() or word.endswith((".yaml", ".yml")):
        return f"and a recipe is given as --recipe {quote_word(word)}"
    if word in list_names("ds_configs", suffix=".json") or word.endswith(".json"):
        return f"and a DeepSpeed JSON is given as --ds_config {quote_word(word)}"
    if found := find_nearest(word, keys, cutoff=0.8):
        return f"so write {found}=VALUE"
    if word.strip() and Path(word).exists():
        return f"and videos are given as {quote_word(f'data.manifest={word}')}"
    return "for example optim.base_lr=1e-3"


def _explain(problem: Any, schema: type[BaseModel]) -> str:
    """One pydantic error as a sentence, with the nearest valid name for an unknown key."""
    path = [str(part) for part in problem["loc"] if not str(part).startswith(("literal[", "constrained-", "function-"))]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        names = [".".join([*path[:-1], name]) for name in _section_at(path[:-1], schema).model_fields]
        last = path[-1].replace("-", "_")
        elsewhere = sorted(full for full in list_keys(schema) if full.rsplit(".", 1)[-1] == last)
        hint = f"; did you mean {elsewhere[0]}?" if elsewhere else did_you_mean(dotted, names, cutoff=0.7)
        hint = hint or did_you_mean(dotted, list_keys(schema), cutoff=0.7)
        if not hint and len(path) == 1 and path[0] in OF_FINETUNING:
            verb = own_command("finetune")
            return f"{dotted} is a section of recipes for fine-tuning ({verb}), and this is pre-training: leave it out"
        if not hint:
            hint = f"; valid here: {', '.join(names)}"
        return f"{dotted} is not a key of a recipe{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = "" if isinstance(problem["input"], (dict, BaseModel)) else f", got {problem['input']!r:.200}"
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        valid = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = did_you_mean(problem["input"], valid)
    return f"{dotted + ': ' if dotted else ''}{message}{got}{hint}"


def _section_at(path: Iterable[str], schema: type[BaseModel]) -> type[BaseModel]:
    section = schema
    for name in path:
        section = section.model_fields[name].annotation  # type: ignore[assignment]
    return section
