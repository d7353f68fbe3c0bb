"""Recipes of fine-tuning: the paper's numbers, mistakes, and recipes of the other trainer."""

from __future__ import annotations

import pytest

from mats_ds.config.finetune_recipe import FinetuneRecipe, parse_rand_augment
from mats_ds.config.load import RECIPE_FOLDER, dump_recipe, load_recipe
from mats_ds.config.recipe import Recipe

RECIPES = sorted(path.stem for path in RECIPE_FOLDER.glob("finetune_*.yaml"))


def load(name, overrides=()):
    return load_recipe(name, overrides, schema=FinetuneRecipe)


def test_the_recipes_that_are_promised_exist():
    assert {name.removeprefix("finetune_") for name in RECIPES} == {"tiny", "ucf101", "hmdb51", "k400", "ssv2", "oscc"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_opens_with_its_command_and_is_written_back_equal(name, tmp_path):
    recipe = load(name)
    assert recipe.name == name
    head = (RECIPE_FOLDER / f"{name}.yaml").read_text().split("name:")[0]
    assert all(word in head for word in ("Command:", "Cost:", "Expected:"))
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("name", "epochs", "base_lr", "stride", "mixup", "cutmix"),
    [
        ("ucf101", 100, 1e-3, 4, 0, 0),
        ("hmdb51", 50, 1e-3, 2, 0, 0),
        ("k400", 100, 1e-3, 4, 0.8, 1.0),
        ("ssv2", 50, 5e-4, 2, 0.8, 1.0),
    ],
)
def test_data_set_recipes_carry_the_published_numbers(name, epochs, base_lr, stride, mixup, cutmix):
    recipe = load(f"finetune_{name}")
    optim, augment = recipe.optim, recipe.augment
    assert (optim.epochs, optim.base_lr, recipe.clip.stride) == (epochs, base_lr, stride)
    assert (augment.mixup, augment.cutmix, augment.random_erasing) == (mixup, cutmix, 0.25)
    assert (optim.betas, optim.weight_decay, optim.warmup_epochs, optim.global_batch) == ((0.9, 0.999), 0.05, 5, 8 * 16)
    assert (recipe.finetune.layer_decay, recipe.finetune.label_smoothing, recipe.model.drop_path) == (0.75, 0.1, 0.1)
    assert recipe.selection.keep_ratio == 0.6 and recipe.finetune.ema_decay is None
    plan = parse_rand_augment(augment.rand_augment)
    assert (plan.magnitude, plan.num_operations, plan.spread, plan.probability) == (7, 4, 0.5, 0.5)


@pytest.mark.parametrize(
    ("overrides", "test_views", "training_views"),
    [
        ([], (None, None), (1, 1)),
        # as in version 0.1: what is asked for is also taken during the training
        (["evaluation.clips=2"], (2, None), (2, 1)),
        (["evaluation.clips=10", "evaluation.crops=3", "evaluation.training_clips=1"], (10, 3), (1, 3)),
    ],
)
def test_views_of_the_test_are_those_of_the_training_unless_the_recipe_has_fewer(overrides, test_views, training_views):
    test = load("finetune_tiny", overrides).evaluation
    assert (test.clips, test.crops) == test_views and test.training_views == training_views


def test_oscc_reads_24_candidate_frames_for_16():
    assert load("finetune_oscc").candidate_grid().num_frames == 24


def test_all_tokens_may_be_kept_and_visible_ratio_has_no_say():
    assert load("finetune_tiny", ["selection.keep_ratio=1"]).selection.keep_ratio == 1
    assert load("finetune_tiny", ["selection.keep_ratio=0.05"]).selection.keep_ratio == 0.05


def test_all_mistakes_are_reported_at_once_with_the_nearest_name():
    overrides = [
        "finetune.wieghts=x",
        "augmnt.mixup=1",
        "mixup=1",
        "augment.rand_augment=rand-m7-x3",
        "selection.strategy=tube",
        "finetune.num_classes=1",
    ]
    with pytest.raises(ValueError, match="6 mistakes") as caught:
        load("finetune_tiny", overrides)
    for words in (
        "did you mean finetune.weights?",
        "did you mean augment?",
        "did you mean augment.mixup?",
        "no 'x3'",
        "'random_drop'",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("text", ["rand-m7-n4", "aug-m7-n4-inc1", "rand-m11-n4-inc1", "rand-m7-n0-inc1", "rand-m7-n1.5-inc1"])
def test_a_rand_augment_that_is_not_supported_names_what_is(text):
    with pytest.raises(ValueError, match="rand_augment"):
        parse_rand_augment(text)


@pytest.mark.parametrize(("name", "schema"), [("ucf101", FinetuneRecipe), ("finetune_ucf101", Recipe)])
def test_a_recipe_of_the_other_trainer_is_refused(name, schema):
    with pytest.raises(ValueError, match="choose another --recipe"):
        load_recipe(name, schema=schema)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["selection.keep_ratio=0.0001"], "is no token at all"),
        (["selection.frame_candidates=1.5", "selection.keep_ratio=1"], "keep_ratio 1 keeps all"),
    ],
)
def test_a_selection_that_selects_nothing_is_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        load("finetune_tiny", overrides)
