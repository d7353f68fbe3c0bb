"""What a fine-tuning begins with, and weights that do not fit the recipe."""

from __future__ import annotations

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.models.model_spec import describe_model
from mats_ds.models.weights.load import build_classifier
from mats_ds.models.weights.native import save_weights

GRID = TokenGrid(4, 32, 48, (2, 8, 8))
CLIP = ["clip.num_frames=4", "clip.height=32", "clip.width=48"]


def recipe_of(*overrides):
    return load_recipe("finetune_tiny", [*CLIP, *overrides], schema=FinetuneRecipe)


def save(model, folder):
    path = folder / "weights.safetensors"
    save_weights(path, describe_model(model), model.state_dict())
    return f"finetune.weights={path}"


@pytest.fixture
def pretrained(tmp_path):
    return save(MaskedAutoencoder.from_name("tiny", grid=GRID), tmp_path)


def classifier_weights(folder, num_classes, class_names=()):
    return save(VideoClassifier.from_name("tiny", num_classes=num_classes, grid=GRID, class_names=class_names), folder)


def test_the_recipe_gives_the_options_of_training():
    drop = "model.drop_path=0.1"
    recipe = recipe_of("selection.keep_ratio=0.5", "finetune.head_dropout=0.3", "selection.frame_candidates=1.5", drop)
    model = build_classifier(recipe, num_classes=3, class_names=("a", "b", "c"))
    assert (model.num_classes, model.class_names, model.keep_ratio) == (3, ("a", "b", "c"), 0.5)
    assert model.head_dropout.p == 0.3 and model.encoder.blocks[3].drop_path.drop_prob == pytest.approx(0.1)
    assert model.candidate_grid.num_frames == recipe.candidate_grid().num_frames == 6


def test_pretrained_weights_fill_the_encoder_and_the_head_is_fresh(pretrained, tmp_path):
    from mats_ds.models.weights.native import load_weights

    recipe = recipe_of(pretrained, "selection.keep_ratio=0.5", "selection.frame_candidates=1.5", "model.drop_path=0.1")
    model = build_classifier(recipe, num_classes=3)
    state = load_weights(tmp_path / "weights.safetensors").state
    name = "encoder.blocks.2.mlp.fc1.weight"
    assert model.state_dict()[name].equal(state[name])
    assert (model.num_classes, model.keep_ratio, model.candidate_grid.num_frames) == (3, 0.5, 6)
    assert model.encoder.blocks[3].drop_path.drop_prob == pytest.approx(0.1)


def test_another_clip_size_takes_the_weights_too(pretrained):
    recipe = load_recipe("finetune_tiny", [pretrained], schema=FinetuneRecipe)
    assert build_classifier(recipe, num_classes=3).grid == recipe.clip.grid() != GRID


def test_a_classifiers_head_is_kept_unless_a_new_one_is_asked_for(tmp_path):
    weights = classifier_weights(tmp_path, 3)
    kept, fresh = (build_classifier(recipe_of(weights, f"finetune.new_head={new}"), num_classes=3) for new in ("false", "true"))
    assert not kept.class_head.weight.equal(fresh.class_head.weight)
    assert kept.fc_norm.weight.equal(fresh.fc_norm.weight)


@pytest.mark.parametrize(
    ("make", "overrides", "words"),
    [
        (lambda folder: classifier_weights(folder, 4), [], ["head of 4 classes, and the data has 3", "new_head=true"]),
        (lambda folder: classifier_weights(folder, 3, "xyz"), [], ["head of other classes"]),
        (lambda folder: "finetune.weights=/nowhere/x.pth", [], ["/nowhere/x.pth"]),
        (lambda folder: f"finetune.weights={folder}", [], ["neither a Hugging Face folder", "nor a run"]),
        (lambda folder: classifier_weights(folder, 3), ["model.name=small"], ["size tiny", "model.name=small"]),
        (lambda folder: classifier_weights(folder, 3), ["clip.tubelet=[2,16,16]"], ["tubelets of (2, 8, 8)", "(2, 16, 16)"]),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_error(make, overrides, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        build_classifier(recipe_of(make(tmp_path), *overrides), num_classes=3, class_names=("a", "b", "c"))
    assert all(word in str(caught.value) for word in words), caught.value


def test_training_does_not_begin_with_nan(tmp_path):
    model = MaskedAutoencoder.from_name("tiny", grid=GRID)
    with torch.no_grad():
        model.encoder.blocks[1].mlp.fc1.bias[2:5] = float("nan")
    with pytest.raises(ValueError, match=r"cannot be trained from: .*encoder\.blocks\.1\.mlp\.fc1\.bias \(3 of"):
        build_classifier(recipe_of(save(model, tmp_path)), num_classes=3)
