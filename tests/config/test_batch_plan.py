"""How a global batch is spread over ranks."""

from __future__ import annotations

import pytest

from mats_ds.config.batch_plan import plan_batch


@pytest.mark.parametrize(("world_size", "accumulation"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_accumulation_keeps_the_recipes_batch_on_fewer_gpus(world_size, accumulation):
    plan = plan_batch({"train_micro_batch_size_per_gpu": 24}, recipe_batch=192, world_size=world_size)
    assert (plan.accumulation, plan.global_batch) == (accumulation, 192)
    assert plan.learning_rate_scale == 0.75
    assert "learning rate as in the recipe" in plan.note


def test_where_it_cannot_be_kept_the_learning_rate_follows():
    plan = plan_batch({"train_micro_batch_size_per_gpu": 24}, recipe_batch=192, world_size=3)
    assert (plan.accumulation, plan.global_batch) == (3, 216)
    assert "192 is no multiple of 72" in plan.note and "linear rule, x 1.12" in plan.note


def test_more_gpus_than_the_batch_needs():
    plan = plan_batch({"train_micro_batch_size_per_gpu": 24}, recipe_batch=192, world_size=16)
    assert plan.global_batch == 384 and plan.learning_rate_scale == 1.5


def test_accumulation_in_the_json_wins():
    config = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}
    plan = plan_batch(config, recipe_batch=16, world_size=2)
    assert (plan.accumulation, plan.global_batch) == (3, 12)
    assert 'the JSON sets "gradient_accumulation_steps"' in plan.note and "x 0.75" in plan.note


def test_several_clips_of_a_video_count_once_in_the_learning_rate():
    """VideoMAE's rule: its lr x batch_size x GPUs / 256, where batch_size counts videos, whatever
    --num_sample is."""
    config = {"train_micro_batch_size_per_gpu": 12}
    plan = plan_batch(config, recipe_batch=768, world_size=64, repeats=2)
    assert (plan.global_batch, plan.num_videos, plan.learning_rate_scale) == (768, 384, 6 * 64 / 256)
    assert "2 of each of 384 videos" in plan.note
    assert plan_batch(config, recipe_batch=768, world_size=64).learning_rate_scale == 3.0
    follows = plan_batch(config, recipe_batch=200, world_size=8, repeats=4)
    assert (follows.global_batch, follows.num_videos, follows.learning_rate_scale) == (192, 48, 48 / 256)
    assert "4 of each of 48 videos" in follows.note and "linear rule, x 0.96" in follows.note
    with pytest.raises(ValueError, match="12 clips .* no multiple of data.repeats=5.* make it 10"):
        plan_batch(config, recipe_batch=768, world_size=64, repeats=5)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="must set"):
        plan_batch({}, recipe_batch=16, world_size=1)
    with pytest.raises(ValueError, match="from 1 to 16,777,216, got 'auto'"):
        plan_batch({"train_micro_batch_size_per_gpu": "auto"}, recipe_batch=16, world_size=1)
    with pytest.raises(ValueError, match="from 1 to 16,777,216, got 10000000000"):
        plan_batch({"train_micro_batch_size_per_gpu": 10**10}, recipe_batch=16, world_size=1)
    with pytest.raises(ValueError, match='leave "train_batch_size" out'):
        plan_batch({"train_micro_batch_size_per_gpu": 2, "train_batch_size": 12}, recipe_batch=16, world_size=1)
