"""--trace and --memory_snapshot: a real trace on a CPU, and what a CPU is told of snapshots."""

import gzip
import json
import types

import pytest
import torch

from mats_ds.metering import profiler
from mats_ds.metering.profiler import MemorySnapshot, StepTrace, dump_snapshot, make_deep_dives
from tests.metering.test_recorder import make_event, make_run

CPU = torch.device("cpu")
CUDA = types.SimpleNamespace(type="cuda")


def train(observer, run_dir, *, num_steps=9, outcome="finished", rank=0, **changes):
    """Steps that each multiply matrices of their own size, so that a trace tells which steps it
    holds."""
    observer.on_start(make_run(run_dir, rank, total_steps=num_steps, **changes))
    for step in range(1, num_steps + 1):
        torch.mm(torch.ones(step, 2), torch.ones(2, 64))
        observer.on_step(make_event(step))
    observer.on_end(outcome)


def read_traced_steps(run_dir, rank=0):
    with gzip.open(run_dir / "traces" / f"rank-{rank:05d}.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    shapes = [event["args"]["Input Dims"][0] for event in events if event.get("name") == "aten::mm"]
    assert any(event.get("name") == "[memory]" for event in events)
    return [rows for rows, _ in shapes]


def test_nothing_is_observed_unless_asked(tmp_path):
    assert make_deep_dives(tmp_path, CPU, trace=False, memory_snapshot=False, num_steps=3) == []


def test_both_cover_the_same_steps(tmp_path):
    trace, snapshot = make_deep_dives(tmp_path, CPU, trace=True, memory_snapshot=True, num_steps=5)
    assert (trace.num_steps, snapshot.num_steps) == (5, 5)


def test_a_trace_holds_the_steps_after_the_first_ones(tmp_path):
    train(StepTrace(tmp_path, CPU, num_steps=3), tmp_path)
    assert read_traced_steps(tmp_path) == [5, 6, 7]


@pytest.mark.parametrize(("num_steps", "traced"), [(4, [2, 3, 4]), (3, [1, 2, 3]), (1, [1])])
def test_a_short_run_is_traced_sooner(tmp_path, num_steps, traced):
    train(StepTrace(tmp_path, CPU, num_steps=3), tmp_path, num_steps=num_steps, rank=1)
    assert read_traced_steps(tmp_path, rank=1) == traced


def test_a_run_that_breaks_off_in_the_stretch_leaves_what_there_is(tmp_path):
    observer = StepTrace(tmp_path, CPU, num_steps=3)
    observer.on_start(make_run(tmp_path, total_steps=100))
    for step in range(1, 7):
        torch.mm(torch.ones(step, 2), torch.ones(2, 64))
        observer.on_step(make_event(step))
    observer.on_end("RuntimeError: broken")
    assert read_traced_steps(tmp_path) == [5, 6]


def test_a_run_that_ends_before_the_stretch_says_that_there_is_no_trace(tmp_path, caplog):
    observer = StepTrace(tmp_path, CPU, num_steps=3)
    observer.on_start(make_run(tmp_path, total_steps=100))
    observer.on_step(make_event(1))
    observer.on_end("RuntimeError: broken")
    assert not (tmp_path / "traces").exists()
    assert "ended before the 3 steps to be traced began" in caplog.text


def test_on_a_cpu_a_snapshot_is_not_taken_and_rank_0_says_why(tmp_path, caplog):
    train(MemorySnapshot(tmp_path, CPU, num_steps=3), tmp_path, rank=1)
    assert caplog.text == ""
    train(MemorySnapshot(tmp_path, CPU, num_steps=3), tmp_path)
    assert "--memory_snapshot is for GPUs" in caplog.text and "--trace shows the CPU's operations" in caplog.text
    assert not (tmp_path / "memory_snapshots").exists()
    assert dump_snapshot(tmp_path, CPU, rank=0) == ""


class FakeAllocator:
    """Stands in for torch.cuda.memory and writes down what it is asked."""

    def __init__(self):
        self.calls = []

    def _record_memory_history(self, enabled="all", **options):
        self.calls.append("start" if enabled else "stop")

    def _dump_snapshot(self, path):
        self.calls.append("dump")
        open(path, "wb").close()


@pytest.fixture
def allocator(monkeypatch):
    fake = FakeAllocator()
    monkeypatch.setattr(torch.cuda, "memory", fake)
    return fake


@pytest.mark.parametrize(("num_steps", "first_step"), [(9, 0), (2, 0), (9, 7), (1, 0)])
def test_the_history_is_recorded_for_a_stretch_once_and_written(tmp_path, allocator, num_steps, first_step):
    observer = MemorySnapshot(tmp_path, CUDA, num_steps=2)
    observer.on_start(make_run(tmp_path, total_steps=num_steps, first_step=first_step))
    for step in range(first_step + 1, num_steps + 1):
        observer.on_step(make_event(step))
    observer.on_end("finished")
    assert allocator.calls == ["start", "dump", "stop"]
    assert (tmp_path / "memory_snapshots" / "steps-rank-00000.pickle").exists()


def test_a_snapshot_that_cannot_be_written_does_not_stop_a_run(tmp_path, allocator, caplog):
    (tmp_path / profiler.SNAPSHOTS).touch()
    assert dump_snapshot(tmp_path, CUDA, rank=2) == ""
    assert "could not be written" in caplog.text
