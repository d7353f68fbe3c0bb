"""Recipes: names, overrides, and mistakes that are all told at once."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
import yaml

from mats_ds.config.load import RECIPE_FOLDER, dump_recipe, load_recipe
from mats_ds.config.recipe import ModelSection, SelectionSection
from mats_ds.core.token_grid import TokenPruning
from mats_ds.models.sizes import MODEL_SIZES, RECOMPUTE_LEVELS

RECIPES = sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml") if not path.stem.startswith("finetune_"))


def test_the_recipes_that_are_promised_exist():
    assert {"default", "tiny", "ucf101", "hmdb51", "k400", "ssv2", "oscc"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_opens_with_its_command_cost_and_expectation(name):
    assert load_recipe(name).name == name
    head = (RECIPE_FOLDER / f"{name}.yaml").read_text().split("name:")[0]
    assert all(word in head for word in ("Command:", "Cost:", "Expected:"))


def test_the_schema_has_every_option_of_the_method_and_its_default():
    assert SelectionSection.model_fields.keys() - {"frame_candidates"} == {field.name for field in fields(TokenPruning)}
    assert SelectionSection().pruning() == TokenPruning()


def test_the_schema_has_every_size_and_recomputation_level():
    assert get_args(ModelSection.model_fields["name"].annotation) == tuple(MODEL_SIZES)
    assert get_args(ModelSection.model_fields["recompute"].annotation) == RECOMPUTE_LEVELS


def test_the_default_recipe_is_the_method():
    recipe = load_recipe()
    assert (recipe.model.name, recipe.clip.num_frames, recipe.clip.height, recipe.clip.width) == ("base", 16, 224, 224)
    assert (recipe.selection.strategy, recipe.selection.keep_ratio, recipe.selection.visible_ratio) == ("mats", 0.3, 0.1)
    assert (recipe.optim.global_batch, recipe.optim.betas, recipe.optim.weight_decay) == (192, (0.9, 0.95), 0.05)


@pytest.mark.parametrize(
    ("name", "epochs", "base_lr", "stride"),
    [("ucf101", 3200, 1e-3, 4), ("hmdb51", 4800, 1e-3, 2), ("k400", 200, 1.5e-4, 4), ("ssv2", 200, 1.5e-4, 2)],
)
def test_data_set_recipes_carry_the_published_numbers(name, epochs, base_lr, stride):
    recipe = load_recipe(name)
    assert (recipe.optim.epochs, recipe.optim.base_lr, recipe.clip.stride, recipe.optim.warmup_epochs) == (
        epochs,
        base_lr,
        stride,
        40,
    )


def test_oscc_reads_24_candidate_frames_for_16():
    recipe = load_recipe("oscc")
    assert recipe.candidate_grid().num_frames == 24


def test_overrides_are_dotted_and_typed():
    recipe = load_recipe("tiny", ["optim.base_lr=1e-3", "data.manifest=x y.csv", "model.checkpoint_blocks=2", "run.max_steps=5"])
    assert recipe.optim.base_lr == 1e-3
    assert recipe.data.manifest == "x y.csv"
    assert recipe.model.checkpoint_blocks == 2
    assert recipe.run.max_steps == 5


def test_all_mistakes_are_reported_at_once_with_the_nearest_name():
    with pytest.raises(ValueError) as caught:
        load_recipe(
            "tiny",
            ["optim.base_rl=1", "modle.name=base", "selection.strategy=mat", "clip.height=65", "strategy=tube", "nonsense"],
        )
    text = str(caught.value)
    assert "6 mistakes" in text
    for part in (
        "did you mean optim.base_lr?",
        "did you mean model?",
        "did you mean mats?",
        "height=65",
        "did you mean selection.strategy?",
        "'nonsense'",
    ):
        assert part in text


def test_visible_must_leave_something_to_reconstruct():
    with pytest.raises(ValueError, match="nothing would be left to reconstruct"):
        load_recipe("tiny", ["selection.visible_ratio=0.3"])


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ValueError, match="did you mean tiny"):
        load_recipe("tinny")


def test_a_recipe_survives_being_written_and_read(tmp_path):
    recipe = load_recipe("oscc", ["data.root=/videos"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert isinstance(yaml.safe_load(path.read_text())["clip"]["tubelet"], list)


def test_broken_yaml_is_one_clear_error(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(path)


def test_every_size_divides_into_its_heads():
    for size in MODEL_SIZES.values():
        assert size.width % size.heads == 0
        assert size.decoder_width % size.decoder_heads == 0


@pytest.mark.parametrize(
    "override", ["optim.base_lr=.inf", "optim.betas=[.nan, 0.9]", "optim.weight_decay=.inf", "optim.epochs=.inf"]
)
def test_numbers_are_finite(override):
    with pytest.raises(ValueError, match="finite") as caught:
        load_recipe("default", [override])
    assert override.partition("=")[0].partition(".")[2] in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "clip.num_frames=1000000000", "clip.height=1000000016", "clip.stride=10000000000000000000", "clip.stride_seconds=1e300",
        "data.num_workers=1000000000", "data.prefetch=1000000000", "data.clip_timeout_seconds=1e300", "optim.epochs=1e300",
        "optim.steps=10000000000000000000", "optim.global_batch=1000000000000", "run.seed=99999999999999999999",
        "run.max_steps=10000000000000000000", "run.hang_seconds=1e300",
    ],
)  # fmt: skip
def test_numbers_that_no_machine_can_obey_are_mistakes_of_the_recipe(override):
    with pytest.raises(ValueError, match="1 mistake in the recipe") as refusal:
        load_recipe("default", [override])
    assert override.partition("=")[0] in str(refusal.value) and "less than" in str(refusal.value)


def test_a_clip_of_a_million_tokens_is_a_mistake_of_the_recipe():
    with pytest.raises(ValueError, match="a clip has 1,048,576 tokens, expected 262,144 at most"):
        load_recipe("default", ["clip.num_frames=128", "clip.height=2048", "clip.width=2048"])


def test_a_recipe_of_another_kind_of_file_is_not_read(tmp_path):
    (tmp_path / "r.yaml").write_text("name: " + "x" * 200_000)
    with pytest.raises(ValueError, match=r"200,\d+ (characters|bytes)|longer than 200,000"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("name", ["../..", "/tmp/a", "a/b", ".hidden", "-rf", "a" * 100_000])
def test_the_name_of_a_recipe_is_the_name_of_a_file(tmp_path, name):
    """It begins the name of the run folder; `../..` led out of runs/."""
    path = tmp_path / "a.yaml"
    path.write_text(f"name: {name}\n")
    with pytest.raises(ValueError, match="name: it should .* becomes the name of a folder") as mistake:
        load_recipe(path)
    assert len(str(mistake.value)) < 600
    assert load_recipe(path, ["name=my run"]).name == "my run"


@pytest.mark.parametrize(
    "text, value", [("true", True), ("false", False), ("1", True), ("'off'", False), ("auto", "auto"), ("graphs", "graphs")]
)
def test_what_is_compiled_is_said_in_old_words_and_new_ones(text, value):
    recipe = load_recipe("tiny", [f"model.compile={text}"])
    assert recipe.model.compile == value and yaml.safe_load(dump_recipe(recipe))["model"]["compile"] == value
    with pytest.raises(ValueError, match="model.compile: input should be 'auto', True, False or 'graphs', got 'sometimes'"):
        load_recipe("tiny", ["model.compile=sometimes"])
