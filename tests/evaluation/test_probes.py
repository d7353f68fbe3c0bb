"""Probes of frozen features: each against plain arithmetic, and on data whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mats_ds.evaluation import probes as attentive_probe
from mats_ds.evaluation.probes import (
    AttentivePool,
    apply_attentive_probe,
    fit_attentive_probe,
    fit_decays,
    fit_linear_probe,
    hold_out,
    normalise_tokens,
    rate_at,
    vote_of_neighbours,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestNeighbours:
    def test_votes_are_exponentials_of_the_cosine_summed_by_class(self):
        query, bank, label = random(3, 5), random(11, 5, seed=1), torch.arange(11) % 4
        scores = vote_of_neighbours(query, bank_SD=bank, label_S=label, num_classes=4, num_neighbours=6, temperature=0.5)
        for row in range(3):
            cosine = [float(query[row] @ other / query[row].norm() / other.norm()) for other in bank]
            nearest = sorted(range(11), key=lambda index: -cosine[index])[:6]
            votes = [sum(math.exp(cosine[index] / 0.5) for index in nearest if label[index] == c) for c in range(4)]
            torch.testing.assert_close(scores[row], torch.tensor(votes) / sum(votes))

    def test_a_small_bank_votes_as_a_whole_and_an_empty_one_is_refused(self):
        bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        scores = vote_of_neighbours(bank * 7, bank_SD=bank, label_S=torch.tensor([2, 0]), num_classes=3)
        assert scores.argmax(dim=1).tolist() == [2, 0]
        with pytest.raises(ValueError, match="at least 1 neighbour"):
            vote_of_neighbours(bank, bank_SD=bank[:0], label_S=torch.zeros(0, dtype=torch.int64), num_classes=3)


class TestLinearProbe:
    def test_it_finds_the_minimum(self):
        features, label = random(40, 6) * torch.tensor([1, 5, 0.1, 1, 1, 1]) + 3, torch.arange(40) % 3
        (probe,) = fit_decays(features, label, num_classes=3, decays=(0.05,))
        weight, bias = probe.weight_CD.clone().requires_grad_(), probe.bias_C.clone().requires_grad_()
        scaled = (features - features.mean(dim=0)) / features.std(dim=0, unbiased=False)
        loss = F.cross_entropy(scaled @ weight.T + bias, label) + 0.025 * weight.square().sum()
        for gradient in torch.autograd.grad(loss, (weight, bias)):
            assert gradient.abs().max() < 1e-4
        torch.testing.assert_close(probe(features), scaled @ probe.weight_CD.T + probe.bias_C)

    def test_a_feature_that_never_changes_does_no_harm(self):
        features, label = random(20, 4), torch.arange(20) % 2
        features[:, 2] = 7.0
        assert fit_linear_probe(features, label, num_classes=2)(features).isfinite().all()

    def test_decay_is_chosen_on_held_out_videos_strong_for_noise_and_weak_for_signal(self):
        label = torch.arange(60) % 3
        signal = F.one_hot(label, 3).float() @ random(3, 8, seed=2) + 0.1 * random(60, 8, seed=3)
        assert fit_linear_probe(signal, label, num_classes=3).decay < 0.1
        assert fit_linear_probe(random(60, 50, seed=4), label, num_classes=3).decay >= 0.1

    def test_the_last_fifth_of_each_class_is_held_out(self):
        label = torch.tensor([0] * 10 + [1] * 5 + [2] + [3] * 2)
        assert hold_out(label).nonzero()[:, 0].tolist() == [8, 9, 14, 17]


def make_task() -> tuple[torch.Tensor, torch.Tensor]:
    """Clips whose class is in one token of nine, somewhere, under noise that hides it from the
    mean."""
    label = torch.arange(240) % 4
    tokens = random(240, 9, 16, seed=5)
    place = torch.randint(9, (240,), generator=torch.Generator().manual_seed(6))
    marks = 4 * torch.eye(16)[:4]
    tokens[torch.arange(240), place] = marks[label] + 4 * torch.eye(16)[5] + 0.3 * random(240, 16, seed=7)
    return normalise_tokens(tokens), label


class TestAttentiveProbe:
    def test_the_pool_is_multi_head_attention_of_one_query_then_an_mlp(self):
        torch.manual_seed(0)
        pool, tokens = AttentivePool(12, 3), normalise_tokens(random(2, 7, 12))
        with torch.no_grad():
            for parameter in pool.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        plain = torch.nn.MultiheadAttention(12, 3, batch_first=True)
        with torch.no_grad():
            plain.in_proj_weight.copy_(torch.cat([torch.eye(12), pool.key_HED.flatten(0, 1), pool.value_HED.flatten(0, 1)]))
            plain.in_proj_bias.copy_(torch.cat([torch.zeros(24), pool.value_bias_HE.flatten()]))
            plain.out_proj.weight.copy_(pool.proj.weight), plain.out_proj.bias.copy_(pool.proj.bias)
        query = pool.query_HE.flatten().expand(2, 1, 12)
        pooled = plain(query, tokens, tokens, need_weights=False)[0][:, 0]
        torch.testing.assert_close(pool(tokens), pooled + pool.mlp(pool.norm(pooled)), atol=1e-5, rtol=1e-4)

    def test_tokens_are_normalised_each_by_itself(self):
        tokens = normalise_tokens(random(2, 3, 40).half() * 9 + 5)
        assert tokens.mean(dim=-1).abs().max() < 1e-3 and (tokens.std(dim=-1, unbiased=False) - 1).abs().max() < 1e-3

    def test_it_finds_what_one_token_says_and_the_mean_does_not(self):
        tokens, label = make_task()
        probe = fit_attentive_probe(tokens[:200].half(), label[:200], heads=2, num_classes=4)
        linear = fit_linear_probe(tokens[:200].mean(dim=1), label[:200], num_classes=4)
        found, missed = (
            float((logits.argmax(dim=1) == label[200:]).float().mean())
            for logits in (apply_attentive_probe(probe, tokens[200:]), linear(tokens[200:].mean(dim=1)))
        )
        assert found >= 0.9 and found > missed + 0.1

    def test_it_repeats_itself_under_a_seed_and_leaves_the_global_generator_alone(self, monkeypatch):
        monkeypatch.setattr(attentive_probe, "MIN_STEPS", 4)
        monkeypatch.setattr(attentive_probe, "EPOCHS", 1)
        tokens, label = make_task()
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        probes = [fit_attentive_probe(tokens, label, heads=2, num_classes=4, seed=seed) for seed in (0, 0, 1)]
        assert torch.equal(torch.rand(1), expected)
        first, again, other = (apply_attentive_probe(probe, tokens) for probe in probes)
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_channels_are_standardised_over_all_tokens_of_the_training_set(self):
        # more clips than are measured at a time
        tokens = random(70, 3, 12) * torch.arange(1, 13) + 40
        probe = attentive_probe.AttentiveProbe(12, 3, 5)
        probe.measure(tokens.double())
        torch.testing.assert_close(probe.mean_D, tokens.mean(dim=(0, 1)))
        torch.testing.assert_close(probe.spread_D, tokens.std(dim=(0, 1), unbiased=False), rtol=1e-3, atol=1e-3)
        scaled = (tokens[:2] - tokens.mean(dim=(0, 1))) / tokens.std(dim=(0, 1), unbiased=False)
        torch.testing.assert_close(probe(tokens[:2]), probe.head(probe.pool(scaled)), rtol=1e-3, atol=1e-3)

    def test_the_learning_rate_warms_up_and_ends_near_zero(self):
        rates = [rate_at(step, 100) for step in range(100)]
        assert rates[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
        assert max(rates) == 1 and rates[-1] < 0.001 and rates[10:] == sorted(rates[10:], reverse=True)
