"""The micro-batch of a run whose DeepSpeed JSON leaves it out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mats_ds.config.batch_plan import plan_batch
from mats_ds.config.ds_config import read_ds_config
from mats_ds.config.load import load_recipe
from mats_ds.core.format import GIB, MIB
from mats_ds.core.gpus import find_gpu
from mats_ds.distributed import collectives
from mats_ds.distributed.ranks import RankInfo
from mats_ds.planning import room
from mats_ds.planning.forecast import LoaderMemory, forecast, largest_micro_batch
from mats_ds.planning.room import plan_batch_of_run, room_on
from mats_ds.planning.sweep import loader_on
from mats_ds.planning.workload import Workload

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
ZERO2 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2, "reduce_bucket_size": 25_000_000, "overlap_comm": True}}
RECIPE = load_recipe("default")


def ranks_on(device, world_size=1):
    return RankInfo(0, 0, world_size, world_size, torch.device(device))


@pytest.fixture
def gpu(monkeypatch):
    """`gpu(free, total)`: a GPU with so many bytes."""

    def make(free, total):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    return make


def test_one_large_gpu_takes_the_whole_batch_at_once(gpu):
    gpu(138 * GIB, 139 * GIB)
    plan = plan_batch_of_run(RECIPE, ZERO2, ranks_on("cuda"), went_on=None)
    assert (plan.micro_batch, plan.accumulation, plan.global_batch) == (192, 1, 192)
    assert "NVIDIA H200 (138.5 GiB)" in plan.note


def test_what_others_use_of_a_gpu_is_not_there(gpu):
    gpu(9 * GIB, 80 * GIB)
    plan = plan_batch_of_run(RECIPE, ZERO2, ranks_on("cuda"), went_on=None)
    assert 1 < plan.micro_batch < 192 and plan.global_batch == 192


def test_the_smallest_gpu_of_all_ranks_decides(gpu, monkeypatch):
    gpu(79 * GIB, 80 * GIB)
    monkeypatch.setattr(collectives, "gather_on_all", lambda value, ranks: [value, (6 * GIB, "NVIDIA T4")])
    plan = plan_batch_of_run(RECIPE, ZERO2, ranks_on("cuda", 2), went_on=None)
    assert plan.micro_batch < 96 and "NVIDIA T4 (6.0 GiB)" in plan.note


def test_a_cpu_takes_a_few(tmp_path):
    plan = plan_batch_of_run(RECIPE, ZERO2, ranks_on("cpu"), went_on=None)
    assert (plan.micro_batch, plan.accumulation) == (8, 24) and "8 that suit a CPU" in plan.note


def test_a_run_goes_on_with_its_micro_batch_on_as_many_ranks(monkeypatch, tmp_path):
    """What is mixed in fine-tuning is a micro-batch, so that another one is another training."""
    info = SimpleNamespace(micro_batch=6, world_size=1)
    monkeypatch.setattr(room, "read_run", lambda folder: SimpleNamespace(info=info))
    plan = plan_batch_of_run(RECIPE, ZERO2, ranks_on("cpu"), went_on=tmp_path)
    assert (plan.micro_batch, plan.accumulation) == (6, 32) and "6, as the run began" in plan.note
    info.world_size = 2
    assert plan_batch_of_run(RECIPE, ZERO2, ranks_on("cpu"), went_on=tmp_path).micro_batch == 8
    stated = ZERO2 | {"train_micro_batch_size_per_gpu": 3}
    assert plan_batch_of_run(RECIPE, stated, ranks_on("cpu"), went_on=tmp_path).micro_batch == 3


def test_without_a_record_of_the_run_it_is_chosen_anew(tmp_path):
    assert plan_batch_of_run(RECIPE, ZERO2, ranks_on("cpu"), went_on=tmp_path).micro_batch == 8


def test_the_room_is_the_plans():
    gpu, work, loader = find_gpu("3090-24g"), Workload(model_name="large"), LoaderMemory()
    how = dict(gpu=gpu, world_size=8, loader=loader)
    largest = largest_micro_batch(work, ZERO2, **how)
    fits = room_on(gpu, work, ZERO2, world_size=8, loader=loader).fits
    assert fits(largest, 1) and not fits(largest + 1, 1)


def test_captured_passes_have_a_batch_and_gradients_of_their_own():
    how = dict(gpu=find_gpu("a100-80g"), world_size=8, micro_batch=24)
    work = Workload.from_recipe(RECIPE)
    captured = Workload.from_recipe(load_recipe("default", ["model.compile=graphs"]))
    more = forecast(captured, ZERO2, **how).memory.peak_bytes - forecast(work, ZERO2, **how).memory.peak_bytes
    assert more == 0, "the tensors of a step are the same"
    kinds = [forecast(one, ZERO2, **how).bytes_by_kind["activations"] for one in (work, captured)]
    assert kinds[1] - kinds[0] == 24 * work.clip_bytes + 2 * work.parameters().total


def test_zero_3_leaves_room_for_the_weights_that_it_gathers():
    gpu, work, loader = find_gpu("3090-24g"), Workload(model_name="huge"), LoaderMemory()
    zero3 = ZERO2 | {"zero_optimization": {"stage": 3}}
    largest = largest_micro_batch(work, zero3, gpu=gpu, world_size=512, loader=loader)
    fits = room_on(gpu, work, zero3, world_size=512, loader=loader).fits
    assert not fits(largest, 1) and fits(largest // 2, 1)


# The GPU, and of each size the micro-batch at the recipes' batches of 192 (pre-training) and 128
# (fine-tuning).
NODES = {
    "zero2_8x24g": ("3090-24g", {"base": (24, 16), "large": (24, 16), "huge": (24, 16)}),
    "zero2_8x80g": ("h100-80g", {"base": (24, 16), "large": (24, 16), "huge": (24, 16)}),
}


@pytest.mark.parametrize("name", NODES)
def test_the_shipped_json_of_a_node_fits_its_gpus(name):
    config = read_ds_config(CONFIGS / f"{name}.json")
    gpu_name, expected = NODES[name]
    gpu = find_gpu(gpu_name)
    for model, micro_batches in expected.items():
        pretraining = Workload(model_name=model)
        for work, batch, micro in zip((pretraining, pretraining.for_finetuning()), (192, 128), micro_batches, strict=True):
            room = room_on(gpu, work, config, world_size=8, loader=loader_on(gpu, LoaderMemory()))
            plan = plan_batch(config, recipe_batch=batch, world_size=8, room=room)
            assert (plan.micro_batch, plan.global_batch) == (micro, batch), (model, work.task)
            how = dict(
                gpu=gpu, world_size=8, micro_batch=micro, accumulation=plan.accumulation, loader=loader_on(gpu, LoaderMemory())
            )
            assert forecast(work, config, **how).fits


def test_smaller_buckets_make_room_for_the_largest_fine_tuning_on_24_gigabytes():
    gpu, work = find_gpu("3090-24g"), Workload(model_name="huge").for_finetuning()
    how = dict(gpu=gpu, world_size=8, loader=loader_on(gpu, LoaderMemory()))
    assert [largest_micro_batch(work, read_ds_config(CONFIGS / f"{name}.json"), **how) for name in ("zero2", "zero2_8x24g")] == [
        15,
        16,
    ]


def test_the_memory_of_vit_base_by_kind_on_the_shipped_nodes():
    """MiB of one GPU; what is in them is held in test_memory.py."""
    for name, buckets, total in (("zero2_8x24g", 48, 3.38), ("zero2_8x80g", 191, 3.55)):
        gpu = find_gpu(NODES[name][0])
        config = read_ds_config(CONFIGS / f"{name}.json")
        planned = forecast(Workload(), config, gpu=gpu, world_size=8, micro_batch=24, loader=loader_on(gpu, LoaderMemory()))
        mib = {kind: round(size / MIB) for kind, size in planned.bytes_by_kind.items()}
        assert mib["buckets"] == buckets and planned.total_bytes / GIB == pytest.approx(total, abs=0.1)
        assert (mib["weights"], mib["gradients"], mib["master_weights"], mib["moments"]) == (180, 22, 45, 90), mib
