"""A checkpoint of another model is refused in one sentence with the keys that differ, before an
engine is built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mats_ds import MaskedAutoencoder, load_recipe
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import dump_recipe
from mats_ds.config.recipe import OptimSection
from mats_ds.training.checkpoints.checkpoint import seal
from mats_ds.training.checkpoints.match import Stored, read_stored, refuse_other_model, refuse_other_recipe
from mats_ds.training.optim import parameter_groups
from tests.training.checkpoint_content import STATES, WEIGHTS

MOST_CHARACTERS = 600


def make_model(**changes):
    recipe = load_recipe("tiny", ["model.decoder_depth=1"])
    sizes = dict(width=24, depth=2, heads=3, decoder_width=12, decoder_depth=1, decoder_heads=2, grid=recipe.clip.grid())
    return MaskedAutoencoder(**sizes | changes)


def describe(model, recipe, **more):
    """What a run of this model writes beside its weights, as DeepSpeed's file has it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimSection())
    shapes = [{names[id(parameter)]: parameter.shape for parameter in group["params"]} for group in groups]
    return {"module": model.state_dict(), "param_shapes": shapes, "recipe": dump_recipe(recipe), **more}


def refusal(stored, recipe, *, precision="fp32"):
    checkpoint = SimpleNamespace(path="run/step-00000004", folder=Path("run/checkpoints"))
    with pytest.raises(ValueError) as error:
        refuse_other_recipe(checkpoint, stored, recipe, precision=precision)
    text = str(error.value)
    assert "run/step-00000004" in text and "\n" not in text and len(text) < MOST_CHARACTERS and "--out" in text
    return text


@pytest.mark.parametrize(
    ("changes", "facts", "others"),
    [
        (["model.name=small"], ["model.name was tiny and is small", "model.name=tiny"], ["decoder_depth", "tubelet"]),
        (["model.decoder_depth=3"], ["model.decoder_depth was 2 and is 3", "model.decoder_depth=2"], ["model.name"]),
        (["clip.tubelet=[2,16,16]"], ["clip.tubelet was [2,8,8] and is [2,16,16]", "clip.tubelet=[2,8,8]"], ["model.name"]),
        (["model.name=small", "model.decoder_depth=3"], ["model.name=tiny", "model.decoder_depth=null"], []),
    ],
)
def test_the_keys_that_differ_are_named_with_both_values_and_the_fix(changes, facts, others):
    stored = Stored(recipe=load_recipe("tiny").model_dump(mode="json"))
    text = refusal(stored, load_recipe("tiny", changes))
    assert [fact for fact in facts if fact not in text] == [] and [other for other in others if other in text] == []


def test_the_fix_followed_literally_is_accepted():
    stored = Stored(recipe=load_recipe("tiny", ["model.decoder_depth=3"]).model_dump(mode="json"))
    changes = ["model.name=small"]
    text = refusal(stored, load_recipe("tiny", changes))
    fixes = text.partition("go on with ")[2].partition(", or begin")[0].split(" and ")
    refuse_other_recipe(
        SimpleNamespace(path="x", folder=Path("run/checkpoints")), stored, load_recipe("tiny", changes + fixes), precision="fp32"
    )


def test_settings_that_change_no_shape_are_no_reason():
    stored = Stored(recipe=load_recipe("tiny").model_dump(mode="json"), precision="fp32")
    now = load_recipe("tiny", ["optim.weight_decay=0", "model.decoder_depth=2", "clip.num_frames=8", "optim.steps=500"])
    refuse_other_recipe(SimpleNamespace(path="x", folder=Path("run/checkpoints")), stored, now, precision="fp32")


def test_another_precision_is_told_as_such():
    recipe = load_recipe("tiny")
    stored = Stored(recipe=recipe.model_dump(mode="json"), precision="bf16")
    text = refusal(stored, recipe)
    assert "trained in bf16" in text and "says fp32" in text and '"bf16": {"enabled": true}' in text


@pytest.mark.parametrize(
    ("before", "now", "fact"),
    [
        (["finetune.layer_decay=1"], ["finetune.layer_decay=0.75"], "finetune.layer_decay was 1.0 and is 0.75"),
        (["finetune.num_classes=4"], ["finetune.num_classes=7"], "finetune.num_classes was 4 and is 7"),
        ([], ["finetune.ema_decay=0.9"], "finetune.ema_decay was null and is 0.9"),
    ],
)
def test_keys_of_a_fine_tuning_that_decide_about_the_state(before, now, fact):
    recipes = [load_recipe("finetune_tiny", changes, schema=FinetuneRecipe) for changes in (before, now)]
    stored = Stored(recipe=recipes[0].model_dump(mode="json"), shapes={"a": (1,)})
    assert fact in refusal(stored, recipes[1])
    refuse_other_recipe(SimpleNamespace(path="x", folder=Path("run/checkpoints")), stored, recipes[0], precision="fp32")


def test_what_a_checkpoint_says_of_itself_is_read_from_its_file(tmp_path):
    from mats_ds.training.checkpoints.state_files import check_state_files

    pytest.importorskip("deepspeed")
    recipe, model = load_recipe("tiny"), make_model()
    torch.save(describe(model, recipe, ema={}), tmp_path / WEIGHTS)
    stored = read_stored(check_state_files(tmp_path))
    assert stored.recipe == recipe.model_dump(mode="json") and stored.precision == "fp32" and stored.has_average
    assert stored.num_groups == 2 and stored.shapes == {name: tuple(value.shape) for name, value in model.named_parameters()}
    refuse_other_model(
        SimpleNamespace(path="x", folder=Path("run/checkpoints")), stored, model, parameter_groups(model, OptimSection())
    )


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (dict(width=48), "model.name): its tokens are 24 wide, and 48 here"),
        (dict(depth=3), "model.name): 2 encoder blocks, and 3 here"),
        (dict(decoder_depth=3), "model.decoder_depth): 1 decoder block, and 3 here"),
    ],
)
def test_other_weights_than_the_recipe_says_are_counted_and_explained_in_one_line(changes, cause):
    stored, other = read_stored({WEIGHTS: describe(make_model(), load_recipe("tiny"))}), make_model(**changes)
    with pytest.raises(ValueError) as error:
        refuse_other_model(
            SimpleNamespace(path="run/step-1", folder=Path("run/checkpoints")),
            stored,
            other,
            parameter_groups(other, OptimSection()),
        )
    text = str(error.value)
    assert cause in text and "\n" not in text and len(text) < 1000 and "--recipe run/recipe.yaml" in text


def test_another_number_of_groups_is_no_index_error():
    stored, model = read_stored({WEIGHTS: describe(make_model(), load_recipe("tiny"))}), make_model()
    with pytest.raises(ValueError, match="2 groups of parameters .*makes 3 .*layer_decay"):
        refuse_other_model(SimpleNamespace(path="x", folder=Path("run/checkpoints")), stored, model, [{}, {}, {}])


@pytest.mark.parametrize("content", [{}, {"module": 3}, {"module": {}, "param_shapes": [7], "recipe": 5}, {"recipe": "[a"}])
def test_a_file_of_somebody_else_says_nothing(content):
    assert read_stored({WEIGHTS: content}).num_groups is None and read_stored({WEIGHTS: content}).shapes == {}


def test_a_resume_is_refused_before_an_engine_is_there(tmp_path):
    pytest.importorskip("deepspeed")
    from mats_ds.training.checkpoints.resume import find_resume_point

    step = tmp_path / "step-00000005"
    step.mkdir()
    torch.save(describe(make_model(), load_recipe("tiny")), step / WEIGHTS)
    torch.save({"optimizer_state_dict": {}}, step / STATES.format(0))
    seal(step, step=5, world_size=1, facts={"zero_stage": 2, "global_batch": 16})
    how = dict(global_batch=16, zero_stage=2, precision="fp32")
    ranks = SimpleNamespace(rank=0, world_size=1)
    with pytest.raises(ValueError, match=r"step-00000005 .*model\.name was tiny and is base"):
        find_resume_point(tmp_path, ranks, recipe=load_recipe("tiny", ["model.name=base"]), **how)
    assert find_resume_point(tmp_path, ranks, recipe=load_recipe("tiny"), **how).stored.num_groups == 2
