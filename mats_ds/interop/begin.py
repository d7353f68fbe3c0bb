"""What a fine-tuning begins with: recipe -> VideoClassifier, from the weights that the recipe names or from scratch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mats_ds.config_finetune import FinetuneRecipe
from mats_ds.interop.load import load_classifier, read_weights
from mats_ds.interop.weights import name_nonfinite
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.spec import ModelSpec

logger = logging.getLogger(__name__)


def build_classifier(recipe: FinetuneRecipe, *, num_classes: int, class_names: Sequence[str] = ()) -> VideoClassifier:
    """The recipe's classifier, from its weights if it names any; what became of them is logged.

    Raises ValueError for weights that cannot be read or do not fit the recipe or the classes.
    """
    selection, model, section = recipe.selection, recipe.model, recipe.finetune
    shared = dict(
        grid=recipe.clip.grid(),
        class_names=tuple(class_names),
        strategy=selection.strategy,
        keep_ratio=selection.keep_ratio,
        distance=selection.distance,
        feature=selection.feature,
        compensate_camera=selection.compensate_camera,
        run_threshold=selection.run_threshold,
        merge_dropped=selection.merge_dropped,
        drop_path=model.drop_path,
        head_dropout=section.head_dropout,
        recompute=model.recompute,
        checkpoint_blocks=model.checkpoint_blocks,
    )
    if section.weights is None:
        if section.weights_from is not None:
            raise ValueError(
                f"finetune.weights_from={section.weights_from} says which weights of a run: name it, finetune.weights=RUN"
            )
        logger.info("weights: none given, training from scratch")
        candidates = recipe.candidate_grid()
        return VideoClassifier.from_name(model.name, num_classes=num_classes, candidate_grid=candidates, **shared)
    weights = read_weights(section.weights, weights_from=section.weights_from)
    if spoilt := name_nonfinite(weights.state):
        raise ValueError(f"{section.weights} cannot be trained from: {spoilt[0]}; take another checkpoint")
    check_weights(recipe, weights.spec, num_classes=num_classes, class_names=tuple(class_names))
    started = load_classifier(
        weights,
        num_classes=num_classes,
        new_head=section.new_head,
        num_candidate_frames=recipe.candidate_grid().num_frames,
        **shared,
    )
    logger.info("weights: %s (%s); %s", section.weights, weights.source, started.report.describe())
    for note in started.notes:
        logger.info("weights: %s", note)
    return started.model


def check_weights(recipe: FinetuneRecipe, spec: ModelSpec, *, num_classes: int, class_names: tuple[str, ...]) -> None:
    """Raises ValueError where the model of the weights is of another size than the recipe's, or its head of other classes."""
    source = recipe.finetune.weights
    if spec.size_name != recipe.model.name:
        size = f"of size {spec.size_name}" if spec.size_name else "of no published size"
        raise ValueError(
            f"{source} holds a model {size} (width {spec.width}, depth {spec.depth}), and the recipe says "
            f"model.name={recipe.model.name}: make them agree"
        )
    if spec.kind != "classifier" or recipe.finetune.new_head:
        return
    if spec.num_classes != num_classes:
        raise ValueError(
            f"{source} has a head of {spec.num_classes} classes, and the data has {num_classes}: set finetune.new_head=true to "
            "replace it"
        )
    if spec.class_names and class_names and spec.class_names != class_names:
        raise ValueError(f"{source} has a head of other classes than the data's: set finetune.new_head=true to replace it")
