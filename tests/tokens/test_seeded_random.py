"""Numbers that are functions of a seed."""

from __future__ import annotations

import torch

from mats_ds.tokens.seeded_random import random_bits, random_order, random_uniform, sample_seeds

SEEDS = torch.tensor([0, 1, 2**61 + 12345])


def test_the_same_seed_gives_the_same_numbers_in_any_batch():
    assert torch.equal(random_bits(SEEDS, 7)[2], random_bits(SEEDS[2:], 7)[0])
    assert torch.equal(random_bits(SEEDS, 7), random_bits(SEEDS, 9)[:, :7])


def test_known_numbers_so_that_masks_never_change_between_versions():
    assert random_bits(torch.tensor([0]), 3).tolist() == [[4607041891190626162, 6869446166584666695, 8084911050856847527]]
    assert (random_bits(SEEDS, 1000) >= 0).all()


def test_seeds_and_streams_are_independent():
    first, second = random_uniform(SEEDS, 20_000), random_uniform(SEEDS, 20_000, stream=1)
    for one, other in ((first[0], first[1]), (first[0], second[0]), (first[0][:-1], first[0][1:])):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.03


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    values = random_uniform(torch.arange(50), 2_000)
    assert float(values.min()) > 0 and float(values.max()) < 1
    counts = torch.histc(values, bins=20, min=0, max=1)
    expected = values.numel() / 20
    # chi-squared, 19 degrees of freedom: p > 1e-4
    assert float(((counts - expected) ** 2 / expected).sum()) < 50


def test_orders_are_permutations_and_uniform():
    orders = random_order(torch.arange(6000), 3)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(3).expand(6000, 3))
    ranks = orders[:, 0] * 9 + orders[:, 1] * 3 + orders[:, 2]
    _, counts = ranks.unique(return_counts=True)
    assert len(counts) == 6
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 26  # 5 degrees of freedom: p > 1e-4


def test_seeds_follow_the_generator():
    draws = [sample_seeds(4, device=torch.device("cpu"), generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
