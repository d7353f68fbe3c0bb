"""What a person is told before the first step on a CPU."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from mats_ds.planning import cpu_steps
from mats_ds.planning.cpu_steps import CpuSteps, describe_steps, measure_rate
from mats_ds.planning.workload import Workload
from tests.training.test_observers import make_run

GIGA = 10**9
# ViT-B at the default recipe: about 100 GFLOP a clip
FULL = replace(
    make_run(), recipe_name="default", hardware_flops_per_clip=100 * GIGA, micro_batch=32, accumulation=4, total_steps=800
)


def test_a_step_is_flops_of_all_its_clips_over_what_was_measured():
    line, warning = describe_steps(replace(FULL, total_steps=10), flops_per_second=1280 * GIGA)
    assert "about 10 s a step and 100 s for 10 steps" in line and "reading not counted" in line and not warning
    assert "2 ranks" in line and "fp32" in line and "1.28 TFLOP/s" in line


def test_what_nobody_waits_for_is_warned_of_with_the_command_that_runs(monkeypatch):
    monkeypatch.setattr(cpu_steps, "own_command", lambda *words: " ".join(["mats", *words]))
    line, warning = describe_steps(FULL, flops_per_second=4 * GIGA, data=["data.manifest=my.csv"])
    assert "about 53 min a step and 29 days 15 h for 800 steps" in line
    assert "60 s a step" in warning and "24 h a run" in warning
    assert warning.endswith("mats pretrain --recipe tiny --ds_config zero2_tiny data.manifest=my.csv")
    _, warning = describe_steps(replace(FULL, task="finetune"), flops_per_second=4 * GIGA)
    assert warning.endswith("mats finetune --recipe finetune_tiny --ds_config zero2_tiny")


def test_the_smallest_recipe_is_not_offered_to_itself():
    _, warning = describe_steps(replace(FULL, recipe_name="tiny"), flops_per_second=4 * GIGA)
    assert "run.max_steps=27" in warning and "--recipe" not in warning


def test_a_resumed_run_has_the_steps_that_are_left():
    line, _ = describe_steps(replace(FULL, first_step=790), flops_per_second=1280 * GIGA)
    assert "for 10 steps" in line


def test_steps_below_the_bound_of_a_long_run_are_still_warned_of():
    _, warning = describe_steps(replace(FULL, total_steps=10_000), flops_per_second=1280 * GIGA)
    assert "--recipe tiny" in warning


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_it_is_measured_in_the_type_of_the_run_and_uses_no_random_number(monkeypatch, precision, dtype):
    seen = []
    timed = cpu_steps._time
    monkeypatch.setattr(cpu_steps, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(cpu_steps, "_time", lambda rows, weight, *rest: seen.append(weight.dtype) or timed(rows, weight, *rest))
    state = torch.get_rng_state()
    assert measure_rate(64, precision=precision) > 0
    assert set(seen) == {dtype} and torch.equal(torch.get_rng_state(), state)


def test_the_rate_is_that_of_the_products_that_were_timed(monkeypatch):
    monkeypatch.setattr(cpu_steps, "_time", lambda rows, *rest: 0.5)
    # forward and backward (3) of two products of 32 x 64 x 256, 2 FLOPs each, in half a second
    assert measure_rate(64, precision="fp32") == 3 * 2 * 2 * 32 * 64 * 256 / 0.5


def test_nothing_is_measured_on_a_gpu(caplog, monkeypatch):
    monkeypatch.setattr(cpu_steps, "measure_rate", None)
    with caplog.at_level(logging.INFO):
        CpuSteps(Workload()).on_start(replace(FULL, device="cuda:0"))
    assert not caplog.records


def test_all_ranks_measure_and_the_slowest_counts(caplog, monkeypatch):
    monkeypatch.setattr(cpu_steps, "measure_rate", lambda width, *, precision: 4.0 * GIGA)
    monkeypatch.setattr(cpu_steps, "gather_on_all", lambda value, run: [value, value and value / 2])
    with caplog.at_level(logging.INFO):
        CpuSteps(Workload()).on_start(FULL)
    assert ["2 GFLOP/s" in record.getMessage() for record in caplog.records] == [True, False]
    assert caplog.records[1].levelno == logging.WARNING
