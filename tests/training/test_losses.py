"""The classifier's loss: soft targets, smoothing, clips without weight; and what the model draws
itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from mats_ds.training.losses import classification_loss, make_loss

LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 2])
TARGETS = F.one_hot(LABELS, 3).float()
ONES = torch.ones(4)


def test_it_is_timms_cross_entropy_of_smoothed_and_of_soft_targets():
    smoothed = classification_loss(LOGITS, TARGETS, ONES, label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(float(LabelSmoothingCrossEntropy(0.1)(LOGITS, LABELS)), abs=1e-6)
    mixed = 0.7 * TARGETS + 0.3 * TARGETS.flip(0)
    soft = classification_loss(LOGITS, mixed, ONES, label_smoothing=0.0)
    assert float(soft) == pytest.approx(float(SoftTargetCrossEntropy()(LOGITS, mixed)), abs=1e-6)


def test_a_clip_without_weight_changes_neither_loss_nor_gradient():
    weight_B = torch.tensor([1.0, 0.0, 1.0, 1.0])
    logits = LOGITS.clone().requires_grad_()
    loss = classification_loss(logits, TARGETS, weight_B, label_smoothing=0.1)
    rest = [0, 2, 3]
    expected = classification_loss(LOGITS[rest], TARGETS[rest], ONES[:3], label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert logits.grad[1].abs().sum() == 0 and logits.grad[0].abs().sum() > 0


def test_a_micro_batch_of_blank_clips_has_loss_0_and_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = classification_loss(logits, TARGETS, torch.zeros(4), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_bf16_logits_are_summed_in_float32():
    assert classification_loss(LOGITS.bfloat16(), TARGETS, ONES, label_smoothing=0.0).dtype == torch.float32


def test_what_the_model_draws_is_a_function_of_the_micro_batch():
    clips = SimpleNamespace(frames_BTHWC=torch.zeros(4, 3), target_BC=TARGETS, weight_B=ONES, seed=9)
    loss_of = make_loss(lambda batch: clips, label_smoothing=0.0)

    def engine(frames, seed):
        return torch.rand(4, 3)

    losses = [float(loss_of(engine, SimpleNamespace(seed_B=None))) for _ in range(2)]
    clips.seed = 10
    assert losses[0] == losses[1] != float(loss_of(engine, SimpleNamespace(seed_B=None)))
