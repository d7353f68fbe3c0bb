"""The recipe of a run, wherever in the run one points."""

from __future__ import annotations

import pytest

from mats_ds.config import dump_recipe, load_recipe
from mats_ds.config_finetune import FinetuneRecipe
from mats_ds.interop.recipe_beside import read_recipe_beside


def test_a_run_its_checkpoints_and_one_of_them_have_the_runs_recipe(tmp_path):
    recipe = load_recipe("tiny", ["clip.stride=7"])
    step = tmp_path / "run" / "checkpoints" / "step-00000003"
    step.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    for place in (tmp_path / "run", step.parent, step):
        assert read_recipe_beside(place) == recipe


def test_a_fine_tuning_and_the_weights_in_its_folder_have_its_recipe(tmp_path):
    recipe = load_recipe("finetune_ssv2", schema=FinetuneRecipe)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "best.safetensors").touch()
    for place in (tmp_path, tmp_path / "best.safetensors"):
        assert read_recipe_beside(place) == recipe


def test_weights_in_a_file_or_folder_of_others_have_none(tmp_path):
    (tmp_path / "hf" / "deep").mkdir(parents=True)
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert read_recipe_beside(tmp_path / "hf" / "deep") is None
    assert read_recipe_beside(tmp_path / "a.safetensors") is None


def test_a_recipe_that_is_none_is_an_error(tmp_path):
    (tmp_path / "recipe.yaml").write_text("clip: {strid: 3}")
    with pytest.raises(ValueError, match="did you mean stride"):
        read_recipe_beside(tmp_path)
