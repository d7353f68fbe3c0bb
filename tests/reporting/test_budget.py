"""Budgets: what a file must hold, and what passes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mats_ds.core.format import GIB
from mats_ds.reporting.budget import Budget, Measured, judge, load_budget

BUDGETS = Path(__file__).parents[2] / "profiling" / "budgets"
BUDGET = Budget("2xcard", gpus=2, memory_per_gpu_bytes=24 * GIB)
GOOD = Measured(num_ranks=2, num_steps=5, memory_bytes=20 * GIB, memory_rank=1, on_gpu=True, missing=(), outcome="finished")


def failed(verdict):
    return [check.name for check in verdict.checks if check.passed is False]


def test_a_finished_run_within_all_limits_passes():
    verdict = judge(GOOD, BUDGET)
    assert verdict.passed
    for words in ("2xcard", "rank (1)", "20.00 GiB", "83.3%", "2 ranks for 2 GPUs", "all 5 steps", "finished"):
        assert words in verdict.headline
    assert "host memory" not in verdict.headline


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"memory_bytes": 24 * GIB + 1}, "memory", "24.00 GiB"),
        ({"num_ranks": 3}, "ranks", "3 ranks for 2 GPUs"),
        ({"missing": ("rank 1 has no records",)}, "records", "rank 1 has no records"),
        ({"outcome": None}, "outcome", "has not ended"),
        ({"outcome": "RuntimeError: out of memory\nat line 3"}, "outcome", "RuntimeError: out of memory"),
        ({"last_loss_is_finite": False}, "loss", "diverged"),
    ],
)
def test_each_fault_fails_alone_and_is_named_in_the_headline(change, name, words):
    verdict = judge(replace(GOOD, **change), BUDGET)
    assert not verdict.passed
    assert failed(verdict) == [name]
    assert words in verdict.headline
    assert "\n" not in verdict.headline
    assert any(line.startswith("FAIL") and words in line for line in verdict.lines)


def test_memory_equal_to_the_limit_passes():
    assert judge(replace(GOOD, memory_bytes=24 * GIB), BUDGET).passed


def test_a_run_on_a_cpu_says_that_its_memory_is_the_hosts():
    assert "this is host memory" in judge(replace(GOOD, on_gpu=False), BUDGET).headline


def test_limits_of_time_and_energy_are_judged_where_they_are_set_and_measured():
    strict = replace(BUDGET, hours=2.0, joules_per_clip=30.0)
    assert failed(judge(replace(GOOD, hours=2.5, joules_per_clip=31), strict)) == ["hours of the whole run", "joules per clip"]
    assert judge(replace(GOOD, hours=1.5, joules_per_clip=29), strict).passed
    unmeasured = judge(replace(GOOD, hours=1.5), strict)
    assert unmeasured.passed
    assert "not judged against 30, as no power was measured" in unmeasured.headline


@pytest.mark.parametrize("path", sorted(BUDGETS.glob("*.json")), ids=lambda path: path.stem)
def test_the_budgets_that_ship_are_valid_and_named_like_their_file(path):
    budget = load_budget(path)
    assert budget.name == path.stem
    assert budget == load_budget(path.stem, folder=BUDGETS)
    nominal_gb = int(path.stem.rsplit("-", 1)[1].removesuffix("g"))
    assert 0.97 * nominal_gb * GIB < budget.memory_per_gpu_bytes <= nominal_gb * GIB


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "got list"),
        ('{"gpus": 8}', "memory_per_gpu_bytes is an integer above 0, it is missing"),
        ('{"gpus": 1, "memory_per_gpu_bytes": 1' + 400 * "0" + "}", "memory_per_gpu_bytes is an integer above 0 and at most"),
        ('{"gpus": 1, "memory_per_gpu_bytes": 1, "hours": 1' + 400 * "0" + "}", "hours is a number above 0"),
        ('{"name": "' + 70_000 * "x" + '", "gpus": 1, "memory_per_gpu_bytes": 1}', "longer than 65,536 bytes"),
        ('{"gpus": 0, "memory_per_gpu_bytes": 1}', "gpus is an integer above 0, got 0"),
        ('{"gpus": 8, "memory_per_gpu_bytes": "80g"}', "got '80g'"),
        ('{"gpus": 8, "memory_per_gpu_bytes": 1, "hour": 3}', "did you mean hours?"),
        ('{"gpus": 8, "memory_per_gpu_bytes": 1, "gpus": 9}', "'gpus' is given more than once"),
        ('{"gpus": 8, "memory_per_gpu_bytes": 1, "hours": Infinity}', "Infinity is no number of JSON"),
        ('{"gpus": 8, "memory_per_gpu_bytes": 1, "hours": -1}', "hours is a number above 0"),
    ],
)
def test_mistakes_in_a_budget_are_named_with_the_file(tmp_path, text, complaint):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.json") as error:
        load_budget(path)
    assert complaint in str(error.value)


def test_a_budget_without_a_name_is_named_like_its_file(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"gpus": 1, "memory_per_gpu_bytes": 5}))
    assert load_budget(tmp_path / "mine.json") == Budget("mine", 1, 5)


def test_an_unknown_budget_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 8xa100-80g"):
        load_budget("8xa100-80", folder=BUDGETS)
