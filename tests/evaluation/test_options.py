"""How a model is shown videos: the command line's numbers, else those of the training's recipe,
else the default."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import dump_recipe, load_recipe
from mats_ds.evaluation import options
from mats_ds.models.weights.load import read_weights
from mats_ds.models.weights.origin import Origin
from tests.trained_models import GRID, save_classifier


def request_of(path, *arguments):
    parser = argparse.ArgumentParser()
    options.add_model_options(parser, num_clips=None, num_crops=None)
    return options.read_request(parser.parse_args(["--model", str(path), *arguments]))


def test_clips_are_sampled_as_in_the_run(tmp_path, monkeypatch):
    """Stride and sampling are in the recipe of a run folder; the command line wins."""
    (tmp_path / "recipe.yaml").write_text("clip: {num_frames: 16, stride: 7, sampling: uniform, stride_seconds: null}\n")
    monkeypatch.setattr(options, "find_steps", lambda path: [tmp_path / "checkpoints" / "step-00000001"])
    weights = SimpleNamespace(origin=Origin())
    section, source = options.choose_clip_section(request_of(tmp_path), weights, GRID)
    assert (section.stride, section.sampling, section.num_frames, section.height) == (7, "uniform", 4, 32)
    assert "recipe" in source
    (tmp_path / "checkpoints").mkdir()
    section, source = options.choose_clip_section(request_of(tmp_path / "checkpoints", "--stride", "3"), weights, GRID)
    assert section.stride == 3 and "--stride" in source


def test_weights_in_a_run_folder_are_shown_clips_of_its_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("clip: {stride: 5, sampling: dense}\n")
    (tmp_path / "best.safetensors").touch()
    assert options.read_run_clip(tmp_path / "best.safetensors") == {"stride": 5, "sampling": "dense"}
    assert options.read_run_clip(tmp_path / "checkpoint.pth") == options.read_run_clip(tmp_path) == {}


def test_one_checkpoint_named_from_within_its_folder_has_the_recipe_of_its_run(tmp_path, monkeypatch):
    step = tmp_path / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (step / "complete.json").touch()
    (tmp_path / "recipe.yaml").write_text("clip: {stride: 5, sampling: uniform}\n")
    monkeypatch.chdir(step.parent)
    assert options.read_run_clip(Path("step-00000001")) == {"stride": 5, "sampling": "uniform"}


class TestViews:
    """How many views of a video make a test: the command line's, else the training's recipe's, else
    5 x 3."""

    V01 = "evaluation: {manifest: val.csv, root: null, clips: CLIPS, crops: 1, every_epochs: 5.0}\n"

    def views_of(self, path, *arguments):
        weights = read_weights(path)
        device = torch.device("cpu")
        plan = options.plan_views(request_of(path, *arguments), weights, grid=GRID, num_frames=4, device=device)
        return (plan.num_clips, plan.num_crops), plan.describe_views()

    @pytest.mark.parametrize(
        ("name", "views"), [("ucf101", (5, 3)), ("hmdb51", (10, 3)), ("k400", (5, 3)), ("ssv2", (2, 3)), ("oscc", (1, 1))]
    )
    def test_the_recipes_of_data_sets_are_tested_as_published(self, tmp_path, name, views):
        """METHOD section 5 of arXiv 2211.10636."""
        recipe = load_recipe(f"finetune_{name}", schema=FinetuneRecipe)
        assert recipe.evaluation.training_views == (1, 1)
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
        found, words = self.views_of(save_classifier(tmp_path / "best.safetensors"))
        assert found == views and "recipe" in words

    def test_the_file_itself_says_it_wherever_it_lies(self, tmp_path):
        origin = Origin(views={"clips": 4, "crops": 2})
        found, words = self.views_of(save_classifier(tmp_path / "moved.safetensors", origin=origin))
        assert found == (4, 2) and "4 x 2 views" in words and "recipe" in words

    def test_weights_from_outside_are_shown_5_by_3(self, tmp_path):
        found, words = self.views_of(save_classifier(tmp_path / "a.safetensors"))
        assert found == (5, 3) and "default" in words

    def test_the_command_line_wins_for_what_it_names(self, tmp_path):
        path = save_classifier(tmp_path / "a.safetensors", origin=Origin(views={"clips": 4, "crops": 2}))
        found, words = self.views_of(path, "--clips", "7")
        assert found == (7, 2) and "--clips" in words and "recipe" in words

    @pytest.mark.parametrize(("clips", "views"), [("1", (5, 3)), ("2", (2, 1))])
    def test_what_version_0_1_wrote_unasked_is_not_taken_for_a_wish(self, tmp_path, clips, views):
        (tmp_path / "recipe.yaml").write_text(self.V01.replace("CLIPS", clips))
        assert self.views_of(save_classifier(tmp_path / "best.safetensors"))[0] == views

    def test_one_of_the_two_alone_leaves_the_other_at_1(self, tmp_path):
        (tmp_path / "recipe.yaml").write_text("evaluation: {clips: 4}\n")
        assert self.views_of(save_classifier(tmp_path / "best.safetensors"))[0] == (4, 1)

    def test_what_a_person_wrote_is(self, tmp_path):
        (tmp_path / "recipe.yaml").write_text("evaluation: {clips: 1, crops: 1}\n")
        assert self.views_of(save_classifier(tmp_path / "best.safetensors"))[0] == (1, 1)


@pytest.mark.parametrize(("views", "given", "micro_batch"), [((5, 3), (), 15), ((2, 1), (), 8), ((2, 3), ("--batch", "4"), 4)])
def test_a_batch_holds_all_views_of_a_video_unless_it_is_given(tmp_path, views, given, micro_batch):
    """So that they are decoded in one pass; about 8 at a time on a CPU."""
    path = save_classifier(tmp_path / "a.safetensors")
    request = request_of(path, "--clips", str(views[0]), "--crops", str(views[1]), *given)
    plan = options.plan_views(request, read_weights(path), grid=GRID, num_frames=6, device=torch.device("cpu"))
    assert (plan.micro_batch, plan.num_frames, plan.dtype) == (micro_batch, 6, torch.float32)
