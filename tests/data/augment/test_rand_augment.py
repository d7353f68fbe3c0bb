"""The drawn operations are timm's: the same ones, as often, with the same strengths."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import timm.data.auto_augment as timm

from mats_ds.config.finetune_recipe import RandAugmentPlan, parse_rand_augment
from mats_ds.data.augment.rand_augment import AMOUNTS, sample_operations
from tests.data.whole_frames import PARAMETERLESS, TIMM_NAMES

PUBLISHED = parse_rand_augment("rand-m7-n4-mstd0.5-inc1")


def draw(plan=PUBLISHED, *, count=1, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_operations(plan, rng.random(4 * plan.num_operations).tolist()) for _ in range(count)]


def test_the_operations_are_timms_in_timms_order():
    assert [TIMM_NAMES[name] for name in AMOUNTS] == timm._RAND_INCREASING_TRANSFORMS
    assert timm._LEVEL_DENOM == 10 and timm._FILL == (128, 128, 128)


@pytest.mark.parametrize("name", sorted(set(AMOUNTS) - PARAMETERLESS))
def test_amounts_are_timms(name, monkeypatch):
    amount_of = timm.LEVEL_TO_ARG[TIMM_NAMES[name]]
    for level in (0.0, 0.3, 4.99, 5.0, 6.3, 7.0, 8.1, 10.0):
        for sign in (1, -1):
            monkeypatch.setattr(timm, "_randomly_negate", lambda value, sign=sign: sign * value)
            expected = amount_of(level, {})
            (expected,) = expected if isinstance(expected, tuple) else (expected,)
            assert AMOUNTS[name](level / 10, sign) == pytest.approx(expected, abs=1e-12), (level, sign)


def test_the_published_plan_draws_each_operation_as_often_as_timm_does():
    num_clips = 6000
    drawn = draw(count=num_clips)
    counts = Counter(operation.name for operations in drawn for operation in operations)
    expected = num_clips * 4 * 0.5 / 15
    assert set(counts) == set(AMOUNTS)
    assert all(abs(count - expected) < 4 * expected**0.5 for count in counts.values()), counts
    lengths = Counter(map(len, drawn))
    assert [lengths[number] / num_clips for number in range(5)] == pytest.approx(
        [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.02
    )
    assert any(len({operation.name for operation in operations}) < len(operations) for operations in drawn), "with replacement"


def test_magnitudes_are_normal_and_both_signs_are_as_likely():
    degrees = np.array([operation.amount for one in draw(count=20000) for operation in one if operation.name == "rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 0.04
    assert np.abs(degrees).mean() == pytest.approx(21, abs=0.15) and np.abs(degrees).std() == pytest.approx(1.5, abs=0.15)


def test_magnitudes_end_at_0_and_10():
    strong = [one.amount for drawn in draw(RandAugmentPlan(9.5, 4, 3.0, 1.0), count=500) for one in drawn if one.name == "rotate"]
    weak = [one.amount for drawn in draw(RandAugmentPlan(0.5, 4, 3.0, 1.0), count=500) for one in drawn if one.name == "rotate"]
    assert max(map(abs, strong)) == 30 and min(map(abs, weak)) == 0


def test_the_same_numbers_give_the_same_operations_and_a_probability_of_0_none():
    assert draw(seed=1, count=5) == draw(seed=1, count=5) != draw(seed=2, count=5)
    assert draw(RandAugmentPlan(7, 4, 0.5, 0.0), count=9) == [()] * 9
    assert all(len(one) == 3 for one in draw(RandAugmentPlan(7, 3, 0.5, 1.0), count=9))
