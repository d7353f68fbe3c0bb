"""Whether a checkpoint is of the run that wants to go on from it: the same recipe where it decides
about the model, the same precision, and weights of the same names and shapes.

Asked before an engine is built, of the description of the files (shapes and texts, no numbers):
DeepSpeed's own answer comes after it, and is a list of all names, or a file that it does not find.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mats_ds.config.recipe import Recipe
from mats_ds.core.checkpoint_files import AVERAGE_KEY, MODEL_FILE
from mats_ds.core.run_dir import RECIPE_FILE
from mats_ds.core.storage.documents import parse_yaml
from mats_ds.core.text import quote_word
from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.models.weights.state_dict import describe_misfit
from mats_ds.training.checkpoints.checkpoint import Checkpoint

PRECISIONS = {"torch.float32": "fp32", "torch.bfloat16": "bf16"}
SHOWN = 80


@dataclass(frozen=True)
class Stored:
    """What the files of a checkpoint say of the run that saved it; None or empty: they do not.

    recipe: the resolved one. precision: "fp32" or "bf16". shapes: of every weight. num_groups: of
    the optimizer's parameters.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    num_groups: int | None = None
    has_average: bool = False


def read_stored(descriptions: Mapping[str, Mapping[str, Any]]) -> Stored:
    """From the descriptions of the files by name (`check_state_files`). What is not as ours is left
    out: DeepSpeed may still read it, or say what is wrong with it."""
    content = next((tree for name, tree in sorted(descriptions.items()) if MODEL_FILE.fullmatch(name)), {})
    module = content.get("module")
    module = {name: value for name, value in module.items() if hasattr(value, "shape")} if isinstance(module, Mapping) else {}
    groups = content.get("param_shapes")
    groups = groups if isinstance(groups, (list, tuple)) and all(isinstance(group, Mapping) for group in groups) else None
    # under ZeRO-3 the module itself is empty
    known = module if not groups else {name: shape for group in groups for name, shape in group.items()}
    try:
        shapes = {
            name.removeprefix("_orig_mod."): tuple(map(int, getattr(shape, "shape", shape))) for name, shape in known.items()
        }
        recipe = parse_yaml(content["recipe"])
    except (AttributeError, KeyError, TypeError, ValueError):
        shapes, recipe = {}, {}
    dtypes = {PRECISIONS.get(str(value.dtype)) for value in module.values()}
    return Stored(
        recipe=recipe if isinstance(recipe, Mapping) else {},
        precision=dtypes.pop() if len(dtypes) == 1 else None,
        shapes=shapes,
        num_groups=None if groups is None else len(groups),
        has_average=AVERAGE_KEY in content,
    )


def refuse_other_recipe(checkpoint: Checkpoint, stored: Stored, recipe: Recipe, *, precision: str) -> None:
    """Raises ValueError, in one sentence, that names the keys which make another model or other
    states of its optimizer: what the checkpoint was saved with, what this start has, and the fix.
    """
    differences = list_differences(stored, recipe.model_dump(mode="json"))
    said = [f"{key} was {show_value(before)} and is {show_value(now)}" for key, before, now in differences]
    fixes = [quote_word(f"{key}={show_value(before)}") for key, before, _ in differences]
    if stored.precision not in (None, precision):
        said.append(f"it was trained in {stored.precision}, and the DeepSpeed JSON says {precision}")
        fixes.append(f'"bf16": {{"enabled": {"true" if stored.precision == "bf16" else "false"}}} in the DeepSpeed JSON')
    if said:
        raise ValueError(
            f"{checkpoint.path} does not fit this start: {'; '.join(said)}: "
            f"go on with {' and '.join(fixes)}, or begin a new run with another --out"
        )


def list_differences(stored: Stored, now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value before, value now) of the recipe's keys that decide about the shapes of weights,
    the groups of the optimizer or the average, where that differs."""
    found = []
    for key in ("model.name", "clip.tubelet"):
        before, after = _value(stored.recipe, key), _value(now, key)
        if before is not None and before != after:
            found.append((key, before, after))
    depths = [_decoder_depth(tree) for tree in (stored.recipe, now)]
    if "finetune" not in now and None not in depths and depths[0] != depths[1]:
        explicit = [_value(tree, "model.decoder_depth") for tree in (stored.recipe, now)]
        # another size has its own: it goes with model.name
        if not any(key == "model.name" for key, *_ in found) or explicit != [None, None]:
            found.append(
                (
                    "model.decoder_depth",
                    *(depths if _value(stored.recipe, "model.name") == _value(now, "model.name") else explicit),
                )
            )
    classes = [_value(tree, "finetune.num_classes") for tree in (stored.recipe, now)]
    if None not in classes and classes[0] != classes[1]:  # where it is not given, the data decides
        found.append(("finetune.num_classes", *classes))
    decays = [_value(tree, "finetune.layer_decay") for tree in (stored.recipe, now)]
    if None not in decays and (decays[0] == 1) != (decays[1] == 1):  # every rate has a group of its own
        found.append(("finetune.layer_decay", *decays))
    if stored.shapes and not stored.has_average and (decay := _value(now, "finetune.ema_decay")) is not None:
        found.append(("finetune.ema_decay", None, decay))
    return found


def refuse_other_model(checkpoint: Checkpoint, stored: Stored, model: nn.Module, groups: Sequence[Any]) -> None:
    """Raises ValueError where the weights of the checkpoint, or the groups of its optimizer, are
    not those of the model: whatever the recipes say (the data decides about classes)."""
    own = {name: tuple(tensor.shape) for name, tensor in model.named_parameters() if tensor.requires_grad}
    problems = describe_misfit(own, stored.shapes) if stored.shapes else []
    if problems:
        raise ValueError(
            f"{checkpoint.path} is of another model than the recipe's: {'; '.join(problems)}: {advise_recipe(checkpoint)}"
        )
    if stored.num_groups not in (None, len(groups)):
        raise ValueError(
            f"{checkpoint.path} has {stored.num_groups} groups of parameters in its optimizer, this recipe makes {len(groups)} "
            f"(finetune.layer_decay decides about them): {advise_recipe(checkpoint)}"
        )


def advise_recipe(checkpoint: Checkpoint) -> str:
    """What to do about a start with another model than the checkpoint's."""
    saved = checkpoint.folder.parent / RECIPE_FILE
    return f"go on with the recipe that it was saved with, --recipe {quote_word(saved)}, or begin a new run with another --out"


def _decoder_depth(recipe: Mapping[str, Any]) -> int | None:
    size = MODEL_SIZES.get(str(_value(recipe, "model.name")))
    return _value(recipe, "model.decoder_depth") or (None if size is None else size.decoder_depth)


def _value(recipe: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    inside = recipe.get(section)
    return inside.get(name) if isinstance(inside, Mapping) else None


def show_value(value: Any) -> str:
    """A value of a recipe as an override takes it: `null`, `true`, `tiny`, `[2,8,8]`."""
    return value[:SHOWN] if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)[:SHOWN]
