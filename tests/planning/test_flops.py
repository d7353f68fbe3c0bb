"""The closed form against the published figures and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mats_ds import MaskedAutoencoder, TokenGrid, step_flops
from mats_ds.models.sizes import RECOMPUTE_LEVELS

GRID = TokenGrid()
# torch 2.10 does not count the attention that it runs on a CPU
counts_cpu_attention = pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="this torch does not count attention on a CPU",
)


@pytest.mark.parametrize(
    ("model", "strategy", "decoder_depth", "gigamacs"),
    [
        ("small", "mats", None, 5.7),
        ("small", "tube", None, 11.5),
        ("base", "mats", None, 19.8),
        ("base", "tube", None, 35.4),
        ("large", "mats", 4, 57.9),
        ("large", "tube", 4, 83.0),
        ("large", "mats", 12, 71.6),
        ("large", "tube", 12, 142.6),
    ],
)
def test_pretraining_figures_as_published(model, strategy, decoder_depth, gigamacs):
    flops = step_flops(model, GRID, 0.3, 0.1, strategy=strategy, decoder_depth=decoder_depth)
    assert round(flops.forward_macs / 1e9, 1) == gigamacs
    assert flops.forward_flops == 2 * flops.forward_macs


@pytest.mark.parametrize(
    ("model", "keep_ratio", "gigamacs"),
    [("small", 0.6, 29.0), ("small", 1.0, 56.9), ("base", 0.6, 98.0), ("base", 1.0, 180.3), ("large", 0.6, 329.8)],
)
def test_finetuning_figures_as_published(model, keep_ratio, gigamacs):
    assert round(step_flops(model, GRID, keep_ratio, task="finetune").forward_macs / 1e9, 1) == gigamacs


@counts_cpu_attention
@pytest.mark.parametrize("strategy", ["mats", "random_drop", "tube", "running_cell"])
@pytest.mark.parametrize("checkpoint_blocks", ["none", "all", 3])
@pytest.mark.parametrize("recompute", RECOMPUTE_LEVELS)
def test_hardware_flops_equal_what_torch_counts(strategy, checkpoint_blocks, recompute):
    grid = TokenGrid(num_frames=8, height=32, width=48, tubelet=(2, 8, 8))
    policy = {"recompute": recompute, "checkpoint_blocks": checkpoint_blocks}
    model = MaskedAutoencoder.from_name("tiny", grid=grid, strategy=strategy, **policy)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.randint(0, 256, (3, 8, 32, 48, 3), dtype=torch.uint8)).backward()
    expected = step_flops("tiny", grid, strategy=strategy, **policy)
    assert counter.get_total_flops() == 3 * expected.hardware_flops


@counts_cpu_attention
def test_candidates_of_adaptive_frames_are_counted():
    grid = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 8, 8))
    candidates = grid.with_tau(3)
    model = MaskedAutoencoder.from_name("tiny", grid=grid, candidate_grid=candidates)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.randint(0, 256, (1, 6, 32, 48, 3), dtype=torch.uint8)).backward()
    assert counter.get_total_flops() == step_flops("tiny", grid, candidate_grid=candidates).hardware_flops


def test_useful_work_is_less_than_executed_work():
    flops = step_flops("base", GRID, checkpoint_blocks="all")
    assert 2 * flops.forward_flops < flops.training_flops < flops.hardware_flops
    assert flops.training_flops == step_flops("base", GRID, checkpoint_blocks="none").training_flops


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="unknown model"):
        step_flops("bass", GRID)
    with pytest.raises(ValueError, match="unknown task"):
        step_flops("base", GRID, task="train")
