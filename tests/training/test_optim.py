"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

from functools import partial

import pytest

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import OptimSection
from mats_ds.training.optim import layer_scale, make_schedule, parameter_groups


def test_biases_norms_and_the_mask_token_do_not_decay():
    model = MaskedAutoencoder.from_name("tiny", grid=TokenGrid(4, 32, 48))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in parameter_groups(model, OptimSection())}
    assert groups["decay"]["weight_decay"] == 0.05 and groups["no_decay"]["weight_decay"] == 0.0
    decayed = {names[id(parameter)] for parameter in groups["decay"]["params"]}
    free = {names[id(parameter)] for parameter in groups["no_decay"]["params"]}
    assert decayed | free == set(names.values()) and not decayed & free
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert {"mask_token", "encoder.blocks.0.attn.qkv.q_bias", "encoder.norm.weight"} <= free


def test_the_schedule_warms_up_and_decays_along_a_cosine():
    optim = OptimSection(base_lr=1e-3, min_lr=1e-5, warmup_lr=0.0, warmup_epochs=2, epochs=10)
    schedule = make_schedule(optim, steps_per_epoch=5, learning_rate_scale=0.5)
    assert (schedule.warmup_steps, schedule.total_steps, schedule.peak) == (10, 50, 5e-4)
    assert schedule.learning_rate(0) == 0
    assert schedule.learning_rate(5) == pytest.approx(2.5e-4)
    assert schedule.learning_rate(10) == pytest.approx(5e-4)
    assert schedule.learning_rate(30) == pytest.approx((5e-4 + 5e-6) / 2)
    assert schedule.learning_rate(50) == schedule.learning_rate(60) == pytest.approx(5e-6)


def test_a_length_in_steps_does_not_depend_on_the_data():
    optim = load_recipe("tiny").optim
    schedules = [make_schedule(optim, steps_per_epoch=steps, learning_rate_scale=1 / 16) for steps in (1, 100)]
    assert schedules[0] == schedules[1]


def test_an_epoch_of_the_published_recipes():
    schedule = make_schedule(load_recipe("ucf101").optim, steps_per_epoch=49, learning_rate_scale=192 / 256)
    assert (schedule.total_steps, schedule.warmup_steps) == (3200 * 49, 40 * 49)
    assert schedule.peak == pytest.approx(7.5e-4)


def test_layers_learn_the_slower_the_lower_they_are():
    model = VideoClassifier.from_name("tiny", num_classes=5, grid=TokenGrid(4, 32, 48))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimSection(), lr_scale_of=partial(layer_scale, depth=4, layer_decay=0.5))
    scale_of = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale_of.keys() == set(names.values())
    assert scale_of["patch_embed.proj.weight"] == 0.5**5
    assert [scale_of[f"encoder.blocks.{block}.attn.qkv.q_bias"] for block in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert scale_of["fc_norm.weight"] == scale_of["class_head.weight"] == scale_of["class_head.bias"] == 1
    decays = {name: group["weight_decay"] for group in groups for name in (names[id(p)] for p in group["params"])}
    assert all((decays[name] > 0) == (parameter.ndim > 1) for name, parameter in model.named_parameters())
    assert len({group["name"] for group in groups}) == len(groups) == 2 * 6


def test_a_layer_decay_of_1_leaves_the_two_groups_of_pretraining():
    model = VideoClassifier.from_name("tiny", num_classes=5, grid=TokenGrid(4, 32, 48))
    groups = parameter_groups(model, OptimSection(), lr_scale_of=partial(layer_scale, depth=4, layer_decay=1.0))
    assert [(group["name"], group["lr_scale"]) for group in groups] == [("decay", 1.0), ("no_decay", 1.0)]
