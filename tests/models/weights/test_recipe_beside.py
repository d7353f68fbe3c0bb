"""The recipe of a run, wherever in the run one points."""

from __future__ import annotations

import os

import pytest

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import dump_recipe, load_recipe
from mats_ds.evaluation.options import read_run_clip
from mats_ds.models.weights.run import read_recipe_beside


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
    with pytest.raises(ValueError, match="did you mean clip.stride"):
        read_recipe_beside(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "long"])
def test_a_recipe_that_is_no_file_of_the_run_is_refused(tmp_path, kind):
    """A link could lead to any file, whose content an error message then shows; a pipe would be
    waited for."""
    private, path = tmp_path / "private", tmp_path / "run" / "recipe.yaml"
    path.parent.mkdir()
    private.write_text(dump_recipe(load_recipe("tiny")))
    if kind == "link":
        path.symlink_to(private)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"# \n" * 2**20)
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        read_recipe_beside(tmp_path / "run")


def test_checkpoints_on_a_larger_disk_are_read_through_their_link_with_the_runs_recipe(tmp_path):
    recipe = load_recipe("tiny", ["clip.stride=7"])
    (tmp_path / "big" / "step-00000003").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "step-00000003" / "complete.json").write_text("{}")
    for place in ("run", "run/checkpoints", "run/checkpoints/step-00000003"):
        assert read_recipe_beside(tmp_path / place) == recipe
        assert read_run_clip(tmp_path / place)["stride"] == 7
