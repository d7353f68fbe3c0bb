"""The closed form of memory against what autograd keeps, against real ZeRO partitions, and its own
arithmetic."""

import json
from pathlib import Path

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.core.token_grid import TokenPruning
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.sizes import RECOMPUTE_LEVELS
from mats_ds.planning.memory import ZeroSettings, plan_memory, plan_static
from mats_ds.planning.tensor_bytes import SavedBytes
from mats_ds.planning.workload import Workload

GRID = TokenGrid(num_frames=8, height=64, width=48, tubelet=(2, 8, 8))  # 4 x 48 = 192 tokens
CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
CLIPS = 3


def read(name, **zero):
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    config["zero_optimization"].update(zero)
    return config


def kept_bytes(model, dtype):
    model = model.to(dtype)
    saved = SavedBytes(model)
    output = model(torch.randint(0, 256, (CLIPS, 8, 64, 48, 3), dtype=torch.uint8), torch.arange(CLIPS))
    assert output.requires_grad
    return saved.num_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", ["none", "all", 2])
@pytest.mark.parametrize("recompute", RECOMPUTE_LEVELS)
@pytest.mark.parametrize("strategy", ["mats", "tube"])
def test_what_pretraining_keeps_is_what_autograd_keeps(strategy, recompute, blocks, dtype):
    options = dict(pruning=TokenPruning(strategy), recompute=recompute, checkpoint_blocks=blocks)
    kept = kept_bytes(MaskedAutoencoder.from_name("tiny", grid=GRID, **options), dtype)
    work = Workload(model_name="tiny", grid=GRID, candidate_grid=GRID, **options)
    config = read("zero2_tiny", stage=2) | ({"bf16": {"enabled": True}} if dtype is torch.bfloat16 else {})
    planned = plan_memory(work, config, world_size=1, micro_batch=CLIPS).activations.saved_bytes
    assert planned == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize("recompute", RECOMPUTE_LEVELS)
@pytest.mark.parametrize("keep_ratio", [0.6, 1.0])
def test_what_finetuning_keeps_is_what_autograd_keeps(keep_ratio, recompute):
    model = VideoClassifier.from_name("tiny", grid=GRID, num_classes=11, keep_ratio=keep_ratio, recompute=recompute)
    work = Workload(model_name="tiny", grid=GRID, candidate_grid=GRID, recompute=recompute)
    work = work.for_finetuning(keep_ratio=keep_ratio, num_classes=11, drop_path=0.0)
    planned = plan_memory(work, read("zero2_tiny"), world_size=1, micro_batch=CLIPS).activations.saved_bytes
    assert planned == pytest.approx(kept_bytes(model, torch.float32), rel=0.05)


def zero_parts_of_a_rank(name, stage):
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.config.recipe import OptimSection
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.engine import make_engine, static_bytes
    from mats_ds.training.optim import parameter_groups

    ranks = start_distributed()
    config = read("zero2_tiny", stage=stage)
    plan = plan_batch(config, recipe_batch=2 * ranks.world_size, world_size=ranks.world_size)
    model = MaskedAutoencoder.from_name(name, grid=GRID)
    engine = make_engine(model, parameter_groups(model, OptimSection()), config, plan)
    partitions = sum(tensor.numel() for tensor in engine.optimizer.single_partition_of_fp32_groups)
    return static_bytes(engine), partitions


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_zero_parts_are_those_of_real_ranks(ranks, world_size, stage):
    work = Workload(model_name="tiny", grid=GRID, candidate_grid=GRID)
    planned = plan_static(work, ZeroSettings.of(read("zero2_tiny", stage=stage)), world_size=world_size)
    for real, partition_elements in ranks(zero_parts_of_a_rank, world_size, "tiny", stage):
        assert planned.keys() == real.keys()
        for kind in planned:
            assert planned[kind] == pytest.approx(real[kind], rel=0.01), kind
        assert planned["master_weights"] == 4 * partition_elements


def test_kinds_add_up_to_the_largest_moment():
    plan = plan_memory(Workload(), read("zero2"), world_size=8, micro_batch=24)
    assert plan.peak_bytes == max(plan.moments.values()) == plan.moments[plan.peak_moment]
    assert plan.bytes_by_kind["clips"] == 24 * 16 * 224 * 224 * 3


def test_offloaded_states_are_on_the_host():
    plan = plan_memory(Workload(), read("zero2_offload"), world_size=8, micro_batch=24)
    assert set(plan.host_bytes) == {"host_master_weights", "host_moments"}
    assert plan.peak_bytes < plan_memory(Workload(), read("zero2"), world_size=8, micro_batch=24).peak_bytes


def test_more_of_anything_needs_more():
    def peak(micro_batch=8, world_size=8, **changes):
        return plan_memory(Workload(**changes), read("zero2"), world_size=world_size, micro_batch=micro_batch).peak_bytes

    assert peak(micro_batch=9) > peak() > peak(recompute="pointwise") > peak(recompute="mlp") > peak(checkpoint_blocks="all")
    assert peak(world_size=1) > peak()
    assert peak(pruning=TokenPruning("tube")) > peak() > peak(model_name="small")


def test_a_bucket_as_large_as_deepspeeds_default_shows():
    config = read("zero2")
    del config["zero_optimization"]["reduce_bucket_size"]
    assert plan_static(Workload(), ZeroSettings.of(config), world_size=8)["buckets"] == 2 * 500_000_000 * 2


def test_a_json_that_cannot_be_planned_says_so():
    with pytest.raises(ValueError, match="stage is 0, 1, 2 or 3, got 4"):
        ZeroSettings.of({"zero_optimization": {"stage": 4}})
    with pytest.raises(ValueError, match="enables fp16"):
        ZeroSettings.of({"fp16": {"enabled": True}})
