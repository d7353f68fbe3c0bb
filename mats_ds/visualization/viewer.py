"""The model that looks at a clip: from weights, or an untrained patch embedding of a recipe, with
changed selection options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import ClipSection, ModelSection, Recipe
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.weights.load import load_classifier, load_model
from mats_ds.models.weights.model_weights import Weights
from mats_ds.models.weights.run import read_recipe_beside


@dataclass(frozen=True)
class Viewer:
    """A model and how its clips are spaced. `decodes`: its decoder is trained; `names_classes`: its
    classification head is."""

    model: nn.Module
    recipe: Recipe
    note: str
    decodes: bool = False
    names_classes: bool = False

    def clip_section(self, stride: int | None) -> ClipSection:
        """The recipe's spacing for as many frames as the model takes; `stride` replaces the
        recipe's."""
        section = self.recipe.clip.model_copy(update={"num_frames": self.model.grid.num_frames})
        return section if stride is None else section.model_copy(update={"stride": stride, "stride_seconds": None})


def open_viewer(
    path: str | None, weights: Weights | None, *, named: str | None, selection: Mapping[str, Any], seed: int
) -> Viewer:
    """The model of the weights at `path`, or without weights an untrained patch embedding.

    named: a recipe's name or file, None for the recipe beside the weights or the default.
    selection: changes, keys of a recipe's section `selection`. Raises ValueError for values that do
    not go together.
    """
    beside = read_recipe_beside(path) if path else None
    recipe = load_recipe(named or "default") if named or beside is None else beside
    if weights is None:
        return _open_untrained(change_selection(recipe, selection), seed)
    spec, changes = weights.spec, dict(selection)
    if named is None:
        spacing = {**recipe.clip.model_dump(), **weights.origin.clip}
        recipe = recipe.model_copy(update={"clip": ClipSection.model_validate(spacing)})
    if "frame_candidates" in changes:
        changed = change_selection(recipe, {"frame_candidates": changes.pop("frame_candidates")})
        clip = changed.clip.model_copy(update=vars(spec.grid))
        changes["num_candidate_frames"] = changed.model_copy(update={"clip": clip}).candidate_grid().num_frames
    if spec.kind == "encoder":
        started = load_classifier(weights, num_classes=1, **changes)
        return Viewer(started.model, recipe, "an encoder without decoder: no reconstruction")
    if spec.kind == "classifier" and "keep_ratio" in changes:
        changes["visible_ratio"] = changes["keep_ratio"]
    model = load_model(weights, **changes)
    if isinstance(model, VideoClassifier):
        return Viewer(model, recipe, "a classifier: no reconstruction", names_classes=True)
    size = spec.size_name or f"width {spec.width}"
    kept = f"{model.pruning.strategy}, keep {model.pruning.keep_ratio:g}, visible {model.pruning.visible_ratio:g}"
    note = f"{Path(path).name}: {size}, {kept}"
    return Viewer(model, recipe, note, decodes=True)


def _open_untrained(recipe: Recipe, seed: int) -> Viewer:
    torch.manual_seed(seed)
    # only its patch embedding is used
    small = recipe.model_copy(update={"model": ModelSection(name="tiny")})
    note = "no weights given: motion of an untrained patch embedding, no reconstruction"
    return Viewer(MaskedAutoencoder.from_recipe(small), recipe, note)


def change_selection(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values in its section `selection`. Raises ValueError for values that do
    not go together."""
    tree = recipe.model_dump()
    tree["selection"] |= changes
    try:
        return type(recipe).model_validate(tree)
    except ValidationError as error:
        problems = ((problem["loc"][-1:], problem["msg"].removeprefix("Value error, ")) for problem in error.errors())
        raise ValueError("; ".join(": ".join([*map(str, name), message]) for name, message in problems)) from None


@torch.no_grad()
def classify(model: VideoClassifier, frames_CHWC: torch.Tensor) -> str:
    """The likeliest class with its probability."""
    probability_C = model(frames_CHWC[None]).float().softmax(dim=1)[0]
    best = int(probability_C.argmax())
    name = model.class_names[best] if model.class_names else f"class {best}"
    return f"{name} ({100 * float(probability_C[best]):.0f}%)"
