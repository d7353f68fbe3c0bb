"""How a global batch is spread over ranks."""

from __future__ import annotations

import pytest

from mats_ds.config.batch_plan import Room, plan_batch


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


def room(largest):
    return Room(lambda micro_batch, accumulation: micro_batch + (accumulation > 1) <= largest, "fit here")


@pytest.mark.parametrize(
    "world_size, largest, micro_batch, accumulation",
    [(1, 4096, 192, 1), (1, 100, 96, 2), (1, 48, 32, 6), (8, 4096, 24, 1), (8, 24, 24, 1), (8, 23, 12, 2), (8, 2, 1, 24)],
)
def test_a_micro_batch_that_is_left_out_is_the_largest_that_fits_and_divides_a_ranks_part(
    world_size, largest, micro_batch, accumulation
):
    """Accumulating takes memory itself: 48 would fit once, and not twice."""
    plan = plan_batch({}, recipe_batch=192, world_size=world_size, room=room(largest))
    assert (plan.micro_batch, plan.accumulation, plan.global_batch) == (micro_batch, accumulation, 192)
    assert plan.learning_rate_scale == 0.75
    assert '"train_micro_batch_size_per_gpu" out' in plan.note and f"{192 // world_size} clips" in plan.note


def test_a_stated_micro_batch_wins_over_what_fits():
    plan = plan_batch({"train_micro_batch_size_per_gpu": 24}, recipe_batch=192, world_size=1, room=room(4096))
    assert (plan.micro_batch, plan.accumulation) == (24, 8) and "out" not in plan.note


def test_clips_of_a_video_stay_together_in_a_micro_batch_that_is_chosen():
    plan = plan_batch({}, recipe_batch=120, world_size=2, repeats=4, room=room(32))
    assert (plan.micro_batch, plan.accumulation) == (20, 3)


def test_a_batch_that_ranks_cannot_divide_becomes_the_nearest_one_and_the_rate_follows():
    plan = plan_batch({}, recipe_batch=192, world_size=5, room=room(4096))
    assert (plan.micro_batch, plan.accumulation, plan.global_batch) == (38, 1, 190)
    assert "x 0.99" in plan.note
    assert plan_batch({}, recipe_batch=4, world_size=8, room=room(4096)).global_batch == 8


def test_a_stated_accumulation_decides_about_the_micro_batch():
    config = {"gradient_accumulation_steps": 3}
    plan = plan_batch(config, recipe_batch=192, world_size=8, room=room(4096))
    assert (plan.micro_batch, plan.accumulation, plan.global_batch) == (8, 3, 192)
    with pytest.raises(ValueError, match='"gradient_accumulation_steps" to 5 .* 24 clips .*state the micro-batch'):
        plan_batch({"gradient_accumulation_steps": 5}, recipe_batch=192, world_size=8, room=room(4096))


def test_where_nothing_fits_the_smallest_is_tried_and_said():
    plan = plan_batch({}, recipe_batch=192, world_size=8, repeats=2, room=room(0))
    assert (plan.micro_batch, plan.accumulation) == (2, 12) and "not even 2 fit here" in plan.note
