"""Memory of GPUs and outside of tensors, the largest micro-batch, and the time of a run."""

import json
from pathlib import Path

import pytest

from mats_ds.core.gpus import GPUS, find_gpu
from mats_ds.metering.peak_flops import find_peak
from mats_ds.planning.forecast import Overheads, as_recorded, forecast, largest_micro_batch, measured_mfu, plan_time
from mats_ds.planning.workload import Workload
from mats_ds.reporting.budget import load_budget

ROOT = Path(__file__).resolve().parents[2]
ZERO2 = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
HOW = dict(gpu=GPUS["3090-24g"], world_size=8)


@pytest.mark.parametrize("path", sorted((ROOT / "profiling" / "budgets").glob("*.json")), ids=lambda path: path.stem)
def test_a_gpu_has_the_memory_of_its_budget(path):
    assert find_gpu(path.stem).memory_bytes == load_budget(path).memory_per_gpu_bytes


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_the_peak_of_every_gpu_to_plan_for_is_known(gpu):
    assert find_peak(gpu.device_name) is not None


def test_the_largest_micro_batch_fits_and_one_more_does_not():
    work = Workload(model_name="large")
    largest = largest_micro_batch(work, ZERO2, **HOW)
    assert forecast(work, ZERO2, micro_batch=largest, **HOW).fits
    assert not forecast(work, ZERO2, micro_batch=largest + 1, **HOW).fits


def test_no_micro_batch_fits_where_the_buckets_alone_are_too_large():
    config = {**ZERO2, "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 20_000_000_000}}
    assert largest_micro_batch(Workload(), config, **HOW) == 0


def test_one_gpu_needs_no_nccl():
    overheads = Overheads()
    assert overheads.outside(world_size=8) - overheads.outside(world_size=1) == overheads.nccl
    assert overheads.decoder_bytes(num_pipelines=2, chunk_frames=10, height=4, width=6) == 2 * (20 * 24 * 3 // 2 + 10 * 24 * 3)


def test_recorded_kinds_add_up_to_the_same():
    planned = forecast(Workload(), ZERO2, micro_batch=8, **HOW)
    recorded = as_recorded(planned.bytes_by_kind)
    assert sum(recorded.values()) == planned.total_bytes
    assert not {"waiting_clips", "decoder"} & set(recorded)


def test_time_is_work_over_speed():
    flops = Workload().flops()
    batch = dict(world_size=8, clips_per_step=192, num_clips=1920)
    time = plan_time(flops, device_name="NVIDIA A100-SXM4-80GB", epochs=3, steps=None, mfu=0.5, **batch)
    assert (time.steps_per_epoch, time.total_steps) == (10, 30)
    assert time.step_seconds == pytest.approx(192 * flops.training_flops / (8 * 312e12 * 0.5))
    assert time.hours == pytest.approx(30 * time.step_seconds / 3600)


@pytest.mark.parametrize("change", [{"device_name": "CPU"}, {"precision": "fp32", "device_name": "NVIDIA B200"}])
def test_no_time_where_the_peak_is_not_known(change):
    how = dict(device_name="NVIDIA L4", world_size=1, clips_per_step=8, num_clips=80, epochs=1, steps=5) | change
    time = plan_time(Workload().flops(), **how)
    assert time.total_steps == 5 and time.step_seconds is time.hours is time.clips_per_second is None


@pytest.mark.parametrize(("precision", "peak"), [("bf16", 312e12), ("fp32", 19.5e12)])
def test_the_peak_is_that_of_the_precision(precision, peak):
    """An A100 multiplies float32 on its ordinary cores, a sixteenth of its bf16 rate, unless torch
    is set to use TF32."""
    flops = Workload().flops()
    batch = dict(world_size=8, clips_per_step=192, num_clips=1920, epochs=3, steps=None, mfu=0.5)
    time = plan_time(flops, device_name="NVIDIA A100-SXM4-80GB", precision=precision, **batch)
    assert time.step_seconds == pytest.approx(192 * flops.training_flops / (8 * peak * 0.5))


def test_an_mfu_of_another_precisions_peak_is_not_taken(tmp_path):
    """Runs in fp32 recorded it of the bf16 peak before they recorded which."""
    from tests.reporting.fake_runs import make_record, write_fake_run

    def record(step, rank):
        return make_record(step, rank, mfu=0.25)

    old = write_fake_run(tmp_path / "old", record=record)
    with pytest.raises(ValueError, match="of the bf16 peak.*--mfu"):
        measured_mfu(old)
    for name, facts in (("fp32", dict(peak_arithmetic="fp32")), ("bf16", dict(precision="bf16"))):
        assert measured_mfu(write_fake_run(tmp_path / name, record=record, **facts)) == 0.25


def test_an_mfu_that_nobody_recorded_says_so(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        measured_mfu(tmp_path)
