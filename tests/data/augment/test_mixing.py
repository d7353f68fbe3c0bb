"""Mixup and cutmix: clips are mixed in pairs, and shares say how much is left of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mats_ds.config.finetune_recipe import AugmentSection
from mats_ds.data.augment.mixing import Box, Mixture, choose_partners, mix_clips, sample_mixture


def make_clips():
    """Three clips of one value each: 10, 100, 200."""
    values = torch.tensor([10, 100, 200], dtype=torch.uint8)
    return values[:, None, None, None, None].expand(3, 2, 8, 12, 3).clone()


NEXT = [1, 2, 0]


def test_mixup_rounds_to_bytes():
    mixed = mix_clips(make_clips(), Mixture(0.75, None), partner_B=NEXT, mixes_B=[True] * 3)
    assert mixed.dtype == torch.uint8
    # 32.5 and 152.5 round to even
    assert [clip.unique().tolist() for clip in mixed] == [[32], [125], [152]]


def test_cutmix_replaces_the_same_box_of_all_frames():
    mixed = mix_clips(make_clips(), Mixture(0.5, Box(1, 2, 4, 5)), partner_B=NEXT, mixes_B=[True, True, False])
    expected = make_clips()
    expected[0, :, 1:5, 2:7] = 100
    expected[1, :, 1:5, 2:7] = 200
    assert mixed.equal(expected)


def test_a_clip_that_shall_not_be_mixed_stays_as_it_is():
    mixed = mix_clips(make_clips(), Mixture(0.5, None), partner_B=NEXT, mixes_B=[False, True, False])
    assert mixed[[0, 2]].equal(make_clips()[[0, 2]]) and mixed[1].unique().tolist() == [150]


@pytest.mark.parametrize(("micro_batch", "repeats"), [(2, 1), (5, 1), (6, 2), (4, 2), (12, 4)])
def test_each_clip_meets_one_of_another_video(micro_batch, repeats):
    partners = choose_partners(micro_batch, repeats=repeats)
    assert sorted(partners) == list(range(micro_batch)), "each is a partner once"
    assert all(place // repeats != partner // repeats for place, partner in enumerate(partners))


def test_partners_are_timms_where_timm_has_any():
    assert choose_partners(6, repeats=1) == [5, 4, 3, 2, 1, 0] and choose_partners(8, repeats=2)[:2] == [7, 6]
    assert choose_partners(3, repeats=1) == [1, 2, 0] and choose_partners(6, repeats=2) == [2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize(("mixup", "cutmix", "boxes"), [(0.8, 0.0, {False}), (0.0, 1.0, {True}), (0.8, 1.0, {False, True})])
def test_the_recipe_says_which_of_the_two(mixup, cutmix, boxes):
    section, rng = AugmentSection(mixup=mixup, cutmix=cutmix), np.random.default_rng(0)
    drawn = [sample_mixture(section, 40, 56, rng) for _ in range(60)]
    assert {mixture.box is not None for mixture in drawn} == boxes
    for mixture in drawn:
        assert 0 <= mixture.fraction <= 1
        if mixture.box is not None:
            top, left, height, width = mixture.box
            assert 0 <= top <= 40 - height and 0 <= left <= 56 - width
            assert mixture.fraction == pytest.approx(1 - height * width / (40 * 56))
