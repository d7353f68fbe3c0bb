"""A box of noise: the same in all frames, of timm's sizes."""

from __future__ import annotations

import numpy as np
import torch

from mats_ds.data.augment.mixing import erase_box, sample_box


def make_clip():
    return torch.full((3, 40, 56, 3), 7, dtype=torch.uint8)


def test_the_same_noise_lies_in_the_same_box_of_all_frames():
    clip = make_clip()
    erased = erase_box(clip, np.random.default_rng(1))
    changed_HW = (erased[0] != 7).any(dim=-1)
    assert 0.015 < changed_HW.float().mean() < 0.35
    assert all(frame.equal(erased[0]) for frame in erased)
    rows, columns = changed_HW.nonzero(as_tuple=True)
    box = erased[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].float()
    assert box.std() > 20, "noise, not one colour"
    assert make_clip().equal(clip), "the clip that was given is unchanged"


def test_boxes_lie_inside_and_have_the_published_sizes():
    rng = np.random.default_rng(0)
    boxes = [sample_box(40, 56, rng) for _ in range(300)]
    for top, left, height, width in filter(None, boxes):
        assert 0 <= top <= 40 - height and 0 <= left <= 56 - width
        assert 0.01 < height * width / (40 * 56) < 0.36
        assert 0.2 < height / width < 4.2
    assert {box.top for box in boxes if box} >= {0, 10}


def test_boxes_are_distributed_as_timms():
    """timm draws for a picture, ten times at most; for clips, with VideoMAE, a hundred times."""
    import random

    from timm.data.random_erasing import RandomErasing

    random.seed(0)
    erase = RandomErasing(probability=1.0, mode="pixel", max_count=1, device="cpu")
    drawn, timms = [sample_box(56, 56, np.random.default_rng(seed)) for seed in range(2000)], []
    for _ in range(2000):
        changed_HW = (erase(torch.full((3, 56, 56), 99.0)) != 99).all(0)
        rows, columns = changed_HW.any(1).nonzero(), changed_HW.any(0).nonzero()
        if len(rows):
            timms.append((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    assert all(drawn), "a hundred tries always find one"
    for measure in (lambda box: box[2] * box[3], lambda box: box[2] / box[3], lambda box: box[0], lambda box: box[1] + box[3]):
        ours, theirs = (np.sort([measure(box) for box in boxes]) for boxes in (drawn, timms))
        limits = np.concatenate([ours, theirs])
        gap = np.abs(np.searchsorted(ours, limits, "right") / len(ours) - np.searchsorted(theirs, limits, "right") / len(theirs))
        # Two samples of one distribution pass this limit once in 1000 times (Kolmogorov and
        # Smirnov); the draws are fixed.
        assert gap.max() < 1.95 * (2 / 2000) ** 0.5


def test_a_picture_too_small_for_a_box_stays_as_it_is():
    clip = torch.zeros(2, 1, 1, 3, dtype=torch.uint8)
    assert erase_box(clip, np.random.default_rng(0)).equal(clip)
