"""Augmented micro-batches are functions of the clips' seeds, and blank clips count for nothing."""

from __future__ import annotations

import pytest
import torch

from mats_ds.config.finetune_recipe import AugmentSection
from mats_ds.core.clips import ClipBatch
from mats_ds.data.augment.augmenter import Augmenter

ALL = AugmentSection(random_erasing=0.5, mixup=0.8, cutmix=1.0)
CLIPWISE = AugmentSection(random_erasing=0.5)


def make_batch(seeds=(11, 12, 13, 14), labels=(0, 1, 2, 0), blank=()):
    frames = torch.randint(0, 256, (4, 2, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return ClipBatch(
        frames_BTHWC=frames[: len(seeds)],
        label_B=torch.tensor(labels[: len(seeds)]),
        sample_B=torch.arange(len(seeds)),
        valid_B=torch.tensor([place not in blank for place in range(len(seeds))]),
        seed_B=torch.tensor(seeds),
        clip_seeds=tuple(seeds),
        paths=tuple("" if place in blank else f"{place}.mp4" for place in range(len(seeds))),
    )


def augment(section, batch, repeats=1):
    return Augmenter(section, num_classes=5, micro_batch=4, repeats=repeats)(batch)


def test_without_augmentation_clips_and_labels_stay_as_they_are():
    batch = make_batch()
    clips = augment(AugmentSection(), batch)
    assert clips.frames_BTHWC is batch.frames_BTHWC
    assert clips.target_BC.argmax(dim=1).tolist() == [0, 1, 2, 0] and clips.target_BC.sum() == 4
    assert clips.weight_B.tolist() == [1, 1, 1, 1]


def test_the_same_seeds_give_the_same_clips_whatever_was_drawn_before():
    augmenter = Augmenter(ALL, num_classes=5, micro_batch=4)
    first = augmenter(make_batch())
    torch.rand(3)
    other = augmenter(make_batch(seeds=(21, 22, 23, 24)))
    again = augmenter(make_batch())
    assert first.frames_BTHWC.equal(again.frames_BTHWC) and first.target_BC.equal(again.target_BC) and first.seed == again.seed
    assert not first.frames_BTHWC.equal(other.frames_BTHWC) and first.seed != other.seed


def test_torchs_own_random_state_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    augment(ALL, make_batch())
    assert torch.get_rng_state().equal(before)


def test_a_clip_is_augmented_the_same_in_any_company():
    """So one rank and two see the same pixels."""
    whole = augment(CLIPWISE, make_batch()).frames_BTHWC
    alone = augment(CLIPWISE, make_batch(seeds=(11, 12))).frames_BTHWC
    assert whole[:2].equal(alone) and not whole.equal(make_batch().frames_BTHWC)
    assert whole.dtype == torch.uint8 and whole.shape == make_batch().frames_BTHWC.shape


def test_mixing_spreads_the_target_over_the_labels_of_both_clips():
    target_BC = augment(AugmentSection(mixup=0.8), make_batch()).target_BC
    assert target_BC.sum(dim=1).tolist() == pytest.approx([1, 1, 1, 1])
    assert target_BC[3].tolist() == pytest.approx([1, 0, 0, 0, 0]), "the last meets the first, and both have label 0"
    assert target_BC[1, 1] == pytest.approx(float(1 - target_BC[1, 2])) == pytest.approx(float(target_BC[2, 2]))
    assert 0 < target_BC[1, 1] < 1


@pytest.mark.parametrize("micro_batch", [4, 6])
def test_targets_and_clips_are_mixed_as_timm_mixes_them(micro_batch):
    """The same pairs, the same share, and, with label smoothing in the loss, the same target."""
    from timm.data.mixup import Mixup, mixup_target

    frames = torch.randint(0, 256, (micro_batch, 2, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 4, 3][:micro_batch])
    batch = make_batch(seeds=(11, 12, 13, 14, 15, 16)[:4])
    batch.frames_BTHWC, batch.label_B = frames, labels
    batch.paths = tuple(f"{place}.mp4" for place in range(micro_batch))
    clips = Augmenter(AugmentSection(mixup=0.8), num_classes=5, micro_batch=micro_batch)(batch)
    share = float(clips.target_BC[1, 1])
    expected = mixup_target(labels, 5, lam=share, smoothing=0.1)
    assert (clips.target_BC * 0.9 + 0.1 / 5).allclose(expected)
    mixer = Mixup(mixup_alpha=0.8, num_classes=5)
    mixer._params_per_batch = lambda: (share, False)
    mixed, _ = mixer(frames.flatten(2).float(), labels)
    assert (clips.frames_BTHWC.flatten(2).float() - mixed).abs().max() <= 0.5


def test_clips_of_one_video_are_never_mixed_with_each_other():
    batch = make_batch(labels=(0, 0, 2, 2))
    batch.frames_BTHWC = torch.tensor([10, 10, 200, 200], dtype=torch.uint8)[:, None, None, None, None].expand(4, 2, 16, 24, 3)
    clips = augment(AugmentSection(mixup=0.8), batch, repeats=2)
    values = [int(clip.unique()) for clip in clips.frames_BTHWC]
    assert values[0] == values[1] and values[2] == values[3] and sum(values[::2]) in (209, 210, 211)
    assert all(10 < value < 200 for value in values)
    assert ((clips.target_BC > 0).sum(dim=1) == 2).all()


def test_a_blank_clip_has_no_weight_and_is_mixed_into_no_other():
    batch = make_batch(blank=(1,))
    clips = augment(AugmentSection(mixup=0.8), batch)
    assert clips.weight_B.tolist() == [1, 0, 1, 1]
    assert clips.frames_BTHWC[2].equal(batch.frames_BTHWC[2]) and clips.target_BC[2].tolist() == [0, 0, 1, 0, 0]
    assert not clips.frames_BTHWC[0].equal(batch.frames_BTHWC[0])


def test_a_substitute_counts_with_its_own_label():
    batch = make_batch()
    batch.valid_B[:] = False
    assert augment(AugmentSection(), batch).weight_B.tolist() == [1, 1, 1, 1]


def test_mixing_needs_a_partner():
    with pytest.raises(ValueError, match="that of the DeepSpeed JSON, 1, holds one video at data.repeats=1: take at least 2"):
        Augmenter(ALL, num_classes=5, micro_batch=1)
    with pytest.raises(ValueError, match="4, holds one video at data.repeats=4: take at least 8, lower data.repeats"):
        Augmenter(ALL, num_classes=5, micro_batch=4, repeats=4)
