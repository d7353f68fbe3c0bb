"""RandAugment treats all frames of a clip alike and follows timm's strengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mats_ds.config_finetune import RandAugmentPlan, parse_rand_augment
from mats_ds.data.rand_augment import OPERATIONS, enhancement, rand_augment

PUBLISHED = parse_rand_augment("rand-m7-n4-mstd0.5-inc1")
BY_NAME = {operation.__name__: operation for operation in OPERATIONS}


def make_clip(seed=0):
    """[T, C, H, W], every dimension of another size; no two frames alike."""
    return torch.randint(0, 256, (5, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draws(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_operation_keeps_shape_and_type_and_changes_a_clip(name):
    clip = make_clip() // 2 + 40  # neither black nor white: autocontrast has something to do
    changed = BY_NAME[name](clip, 0.7, 1)
    assert changed.shape == clip.shape and changed.dtype == torch.uint8
    assert not changed.equal(clip)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_operation_does_the_same_to_equal_frames_wherever_they_stand(name):
    clip = make_clip()
    clip[3] = clip[1]
    for sign in (1, -1):
        changed = BY_NAME[name](clip, 0.7, sign)
        assert changed[3].equal(changed[1]) and not changed[2].equal(changed[1])


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast"])
def test_what_is_measured_is_measured_on_the_whole_clip_and_adds_no_flicker(name):
    dark, bright = make_clip()[:2] // 4, make_clip()[2:4] // 4 + 150
    patch = torch.full((3, 4, 4), 55, dtype=torch.uint8)
    clip = torch.cat([dark, bright])
    clip[:, :, :4, :4] = patch  # a still corner in a clip that gets brighter
    corner = BY_NAME[name](clip, 0.7, 1)[:, :, :4, :4]
    assert all(frame.equal(corner[0]) for frame in corner)


def test_strengths_are_timms():
    clip = make_clip()
    assert enhancement(0.7, 1) == pytest.approx(1.63) and enhancement(0.7, -1) == pytest.approx(0.37)
    assert enhancement(1, -1) == pytest.approx(0.1)
    posterized = BY_NAME["posterize"](clip, 0.7, 1)  # 4 - int(2.8) = 2 bits
    assert posterized.unique().tolist() == [0, 64, 128, 192]
    solarized = BY_NAME["solarize"](clip, 0.5, 1)
    assert solarized.equal(torch.where(clip >= 128, 255 - clip, clip))
    lifted = BY_NAME["solarize_add"](clip, 0.5, 1)
    assert lifted.equal(torch.where(clip < 128, clip + 55, clip))
    shifted = BY_NAME["translate_x"](clip, 1 / 0.45 / 7, 1)  # a seventh of 28 pixels
    assert shifted[..., 4:].equal(clip[..., :-4])


def test_an_operation_of_strength_zero_is_none():
    clip = make_clip()
    for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y", "colour", "contrast", "brightness", "sharpness"):
        assert BY_NAME[name](clip, 0.0, 1).equal(clip), name


def test_the_same_draws_give_the_same_clip_and_others_another():
    clip = make_clip()
    results = [rand_augment(clip, PUBLISHED, draws(seed)) for seed in (1, 1, 2, 3)]
    assert results[0].equal(results[1])
    assert not all(results[0].equal(other) for other in results[2:])


def test_each_operation_is_used_with_its_probability():
    clip = make_clip()
    assert rand_augment(clip, RandAugmentPlan(7, 4, 0.5, 0.0), draws()).equal(clip)
    used = [not rand_augment(clip, RandAugmentPlan(7, 1, 0.5, 0.5), draws(seed)).equal(clip) for seed in range(100)]
    assert 30 < sum(used) < 70
