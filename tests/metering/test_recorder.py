"""The recorder as the training loop sees it: events in, files out, without waiting for the
device."""

import csv
import errno
import json
import math
import os
import time
import types

import pytest
import torch

from mats_ds.core.clips import BadClip
from mats_ds.core.events import PhaseClock, PhaseTimes, RunInfo, StepEvent
from mats_ds.core.run_dir import Outcome, read_outcome, read_run, write_outcome
from mats_ds.metering import recorder as recorder_module
from mats_ds.metering.device_memory import MemoryReading
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.recorder import Recorder

CPU = torch.device("cpu")


def make_run(run_dir, rank=0, **changes):
    fields = dict(
        run_dir=str(run_dir), rank=rank, world_size=2, device="cpu", device_name="CPU", recipe_name="tiny", model_name="tiny",
        num_parameters=11, precision="fp32", zero_stage=2, micro_batch=3, accumulation=1, global_batch=6, total_steps=9,
        steps_per_epoch=4, first_step=0, learning_rate=1e-3, num_tokens=156, kept=47, visible=15, targets=32,
        forward_macs_per_clip=100, model_flops_per_clip=600, hardware_flops_per_clip=700, static_bytes={"weights": 44},
        versions={"torch": "2.9"}, command="pretrain", started="2025-01-01T00:00:00",
    )  # fmt: skip
    return RunInfo(**(fields | changes))


def make_times(data=0.1, forward=0.2, backward=0.3, optimizer=0.05, other=0.0):
    marks, now = [("start", 0.0, None)], 0.0
    for phase, seconds in (("data", data), ("forward", forward), ("backward", backward), ("optimizer", optimizer)):
        now += seconds
        marks.append((phase, now, None))
    return PhaseTimes(marks)


def make_event(step=1, loss=None, **changes):
    fields = dict(
        step=step, epoch=0, loss=torch.tensor(1 / step if loss is None else loss), learning_rate=1e-3,
        grad_norm=torch.tensor(0.5), num_clips=3, times=make_times(),
    )  # fmt: skip
    return StepEvent(**(fields | changes))


def record_run(run_dir, events, *, rank=0, outcome="finished", **changes):
    recorder = Recorder(run_dir, CPU)
    recorder.on_start(make_run(run_dir, rank, **changes))
    for event in events:
        recorder.on_step(event)
    if outcome is not None:
        recorder.on_end(outcome)
    return recorder


def test_one_record_per_step_with_the_events_figures(tmp_path):
    recorder = record_run(tmp_path, [make_event(1), make_event(2, grad_norm=None)])
    first, second = read_records(tmp_path)
    assert (first.step, first.loss, first.grad_norm, first.num_clips, first.rank) == (1, 1.0, 0.5, 3, 0)
    assert (first.data_seconds, first.optimizer_seconds, first.total_seconds) == (0.1, 0.05, 0.65)
    assert first.clips_per_second == pytest.approx(3 / 0.65, rel=1e-4)
    assert (first.kept, first.visible, first.targets, first.num_tokens) == (47, 15, 32, 156)
    assert (first.model_flops, first.hardware_flops) == (1800, 2100)
    assert second.grad_norm is None
    assert recorder.latest.step == 2


def test_on_a_cpu_gpu_figures_are_none_and_never_zero(tmp_path):
    record_run(tmp_path, [make_event()])
    (record,) = read_records(tmp_path)
    for name in ("peak_allocated_bytes", "peak_reserved_bytes", "num_alloc_retries", "nvml_used_bytes", "nvml_power_watts"):
        assert getattr(record, name) is None
    assert record.memory_name == "host RSS"
    assert 50e6 < record.rss_bytes <= record.peak_rss_bytes


def test_a_step_is_handled_when_the_next_one_arrives(tmp_path):
    class Unfinished(PhaseTimes):
        def seconds(self):
            raise AssertionError("the device is still busy with this step")

    recorder = record_run(tmp_path, [make_event(1), make_event(2, times=Unfinished([]))], outcome=None)
    assert recorder.latest.step == 1


def test_phase_times_come_from_the_loops_own_clock(tmp_path):
    clock = PhaseClock(CPU)
    clock.start()
    time.sleep(0.02)
    clock.mark("data")
    clock.mark("forward")
    record_run(tmp_path, [make_event(times=clock.stop())])
    (record,) = read_records(tmp_path)
    assert 0.02 <= record.data_seconds <= record.total_seconds


def test_a_loss_that_is_not_a_number_is_recorded_as_such(tmp_path):
    record_run(tmp_path, [make_event(loss=math.nan)])
    assert [math.isnan(record.loss) for record in read_records(tmp_path)] == [True]


def test_rank_0_describes_the_run_and_its_outcome(tmp_path):
    record_run(tmp_path, [make_event(1)], rank=1)
    assert not (tmp_path / "run.json").exists()
    record_run(tmp_path, [make_event(1), make_event(2)], rank=0)
    assert read_run(tmp_path).info == make_run(tmp_path)
    assert (read_outcome(tmp_path).outcome, read_outcome(tmp_path).last_step) == ("finished", 2)
    assert [path.name for path in sorted((tmp_path / "records").iterdir())] == ["rank-00000.jsonl", "rank-00001.jsonl"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_resume_adds_a_part_and_takes_the_old_outcome_away(tmp_path):
    record_run(tmp_path, [make_event(1), make_event(2)], outcome="stopped by a signal")
    record_run(tmp_path, [make_event(2), make_event(3)], outcome=None, first_step=1, world_size=1, started="2025-01-02")
    run = read_run(tmp_path)
    assert [(part.first_step, part.world_size, part.started[:10]) for part in run.parts] == [
        (1, 2, "2025-01-01"),
        (2, 1, "2025-01-02"),
    ]
    assert run.info.first_step == 1
    assert read_outcome(tmp_path) is None


def test_bad_clips_are_listed_with_their_path_and_counted(tmp_path):
    clip = BadClip('videos/a, "b".mp4', 17, "no video stream")
    record_run(tmp_path, [make_event(1, bad_clips=(clip,), num_substitutes=1), make_event(2)])
    record_run(tmp_path, [make_event(1, bad_clips=(clip, clip))], rank=1)
    with open(tmp_path / "bad_clips.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["rank", "step", "path", "sample", "reason"]
    assert rows[1:] == [[rank, "1", clip.path, "17", clip.reason] for rank in ("0", "1", "1")]
    counts = [(r.num_bad_clips, r.num_bad_clips_total, r.num_substitutes) for r in read_records(tmp_path)]
    assert counts == [(1, 1, 1), (0, 1, 0), (2, 2, 0)]


def test_the_count_of_bad_clips_goes_on_after_a_resume(tmp_path):
    clip = BadClip("a.mp4", 1, "torn")
    record_run(tmp_path, [make_event(1, bad_clips=(clip,)), make_event(2, bad_clips=(clip,))])
    record_run(tmp_path, [make_event(2, bad_clips=(clip,)), make_event(3)], first_step=1)
    assert [record.num_bad_clips_total for record in read_records(tmp_path)] == [1, 2, 2]


def test_the_outcome_is_written_even_where_the_last_step_cannot_be_read(tmp_path, caplog):
    class Failed(PhaseTimes):
        def seconds(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    record_run(tmp_path, [make_event(1), make_event(2, times=Failed([]))], outcome="CUDA error")
    assert read_outcome(tmp_path).outcome == "CUDA error"
    assert read_outcome(tmp_path).last_step == 1
    assert "last step could not be recorded" in caplog.text


def test_a_run_that_ends_before_its_first_step_has_an_outcome_and_no_record(tmp_path):
    recorder = record_run(tmp_path, [], outcome="no video could be read")
    assert recorder.latest is None
    assert read_outcome(tmp_path).last_step is None
    assert list(read_records(tmp_path)) == []


def test_run_json_of_another_version_still_reads_and_a_broken_one_says_so(tmp_path):
    record_run(tmp_path, [])
    path = tmp_path / "run.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(tree | {"later": 1}))
    assert read_run(tmp_path).info == make_run(tmp_path)
    del tree["kept"]
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="kept"):
        read_run(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="no run folder"):
        read_run(tmp_path / "elsewhere")


class FakeMeter:
    """A GPU of which every figure is known: step k peaks at 1000 + k bytes and has spent 50 k
    joules."""

    def __init__(self):
        self.num_read = 0
        self.is_open = True

    def read(self):
        self.num_read += 1
        return MemoryReading(
            peak_allocated_bytes=1000 + self.num_read, peak_reserved_bytes=1500, nvml_used_bytes=2000, rss_bytes=1,
            peak_rss_bytes=1, peak_active_bytes=1100, peak_inactive_bytes=30, num_alloc_retries=0, num_ooms=0,
        )  # fmt: skip

    def read_joules(self):
        return 50.0 * self.num_read

    def reset_peak(self):
        pass

    def close(self):
        self.is_open = False


def make_gpu_recorder(run_dir, rank=0, **changes):
    recorder = Recorder(run_dir, CPU)
    recorder._meter = FakeMeter()
    static_bytes = {"weights": 300, "moments": 100, "host_moments": 9999}
    recorder.on_start(make_run(run_dir, rank, static_bytes=static_bytes, peak_flops=10_000.0, peak_source="table", **changes))
    return recorder


def test_on_a_gpu_energy_utilisation_and_memory_by_kind_are_recorded(tmp_path):
    recorder = make_gpu_recorder(tmp_path)
    for step in (1, 2):
        recorder.on_step(make_event(step, clip_bytes=60))
    recorder.on_end("finished")
    first, second = read_records(tmp_path)
    assert (first.joules, second.joules) == (50.0, 50.0)
    assert (first.clip_bytes, first.activation_bytes, second.activation_bytes) == (60, 1001 - 400 - 60, 1002 - 400 - 60)
    assert (first.peak_active_bytes, first.peak_inactive_bytes) == (1100, 30)
    assert first.mfu == pytest.approx(1800 / 0.65 / 10_000)
    assert first.hfu == pytest.approx(2100 / 0.65 / 10_000)
    assert not recorder._meter.is_open


@pytest.mark.parametrize(("precision", "peak"), [("bf16", 312e12), ("fp32", 19.5e12), ("fp16", None)])
def test_the_peak_is_recorded_in_the_runs_arithmetic(tmp_path, monkeypatch, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(total_memory=7))
    run = make_run(tmp_path, precision=precision, device_name="NVIDIA A100-SXM4-80GB")
    run = recorder_module._add_gpu(run, types.SimpleNamespace(type="cuda"))
    assert (run.peak_flops, run.peak_arithmetic) == (peak, precision if peak else "")


def test_on_a_cpu_there_is_no_utilisation_no_energy_and_no_activations(tmp_path):
    record_run(tmp_path, [make_event(clip_bytes=60)])
    (record,) = read_records(tmp_path)
    assert (record.mfu, record.hfu, record.joules, record.activation_bytes, record.clip_bytes) == (None, None, None, None, 60)


OUT_OF_MEMORY = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def test_out_of_memory_keeps_the_records_and_leaves_a_snapshot_and_one_line_of_advice(tmp_path, monkeypatch, caplog):
    dumped = []
    monkeypatch.setattr(
        recorder_module, "dump_snapshot", lambda run_dir, device, *, rank: dumped.append(rank) or str(run_dir / "x.pickle")
    )
    recorder = make_gpu_recorder(tmp_path, micro_batch=24)
    for step in (1, 2, 3):
        recorder.on_step(make_event(step))
    recorder.on_end(OUT_OF_MEMORY)
    outcome = read_outcome(tmp_path)
    assert [record.step for record in read_records(tmp_path)] == [1, 2, 3]
    assert (outcome.outcome, outcome.last_step, outcome.rank, dumped) == (OUT_OF_MEMORY, 3, 0, [0])
    assert outcome.snapshot == str(tmp_path / "x.pickle")
    assert "train_micro_batch_size_per_gpu" in outcome.advice and "now 24, try 12" in outcome.advice
    assert caplog.text.count("ran out of memory after step 3: set PYTORCH_CUDA_ALLOC_CONF") == 1


def test_out_of_memory_in_the_first_step_is_advised_on_too(tmp_path):
    recorder = make_gpu_recorder(tmp_path)
    recorder.on_end(OUT_OF_MEMORY)
    assert read_outcome(tmp_path).last_step is None
    assert read_outcome(tmp_path).advice.startswith("lower train_micro_batch_size_per_gpu")


def test_another_rank_that_fails_tells_so_itself_and_the_first_failure_counts(tmp_path):
    record_run(tmp_path, [make_event(1)], rank=3, outcome=OUT_OF_MEMORY)
    assert (read_outcome(tmp_path).rank, read_outcome(tmp_path).last_step) == (3, 1)
    write_outcome(tmp_path, Outcome("RuntimeError: NCCL: peer is gone", 1, time.time() + 5))
    assert read_outcome(tmp_path).outcome == OUT_OF_MEMORY


def test_a_rank_that_finishes_leaves_no_outcome_and_a_resume_clears_those_of_all_ranks(tmp_path):
    record_run(tmp_path, [make_event(1)], rank=1)
    assert not list(tmp_path.glob("outcome*"))
    record_run(tmp_path, [make_event(1)], rank=2, outcome="killed")
    record_run(tmp_path, [make_event(2)], outcome=None, first_step=1)
    assert read_outcome(tmp_path) is None


def test_recording_a_step_costs_less_than_a_hundredth_of_a_short_step(tmp_path, capsys):
    recorder = record_run(tmp_path, [], outcome=None)
    events = [make_event(step) for step in range(1, 301)]
    rounds = []
    for start in range(0, 300, 60):
        begin = time.process_time()
        for event in events[start : start + 60]:
            recorder.on_step(event)
        rounds.append((time.process_time() - begin) / 60)
    with capsys.disabled():
        print(f"\n  recording costs {min(rounds) * 1e6:.0f} microseconds of a CPU a step")
    assert min(rounds) < 1e-3  # a hundredth of a step of a tenth of a second


@pytest.mark.parametrize("is_replaced", [False, True])
def test_nothing_is_written_where_the_run_folder_is_gone(tmp_path, is_replaced):
    """A new folder of that name is somebody else's."""
    folder = tmp_path / "run"
    folder.mkdir()
    recorder = record_run(folder, [make_event(1)], outcome=None)
    assert recorder.what_is_lost() is None
    folder.rename(tmp_path / "moved")
    if is_replaced:
        folder.mkdir()
    assert str(folder) in recorder.what_is_lost()
    recorder.on_end("FolderLost: it is gone")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("run*")] == ["run"] * is_replaced + ["moved/run.json"]
    assert not is_replaced or list(folder.iterdir()) == []


def test_a_run_has_not_finished_where_its_folder_is_gone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    recorder = record_run(folder, [make_event(1)], outcome=None)
    folder.rename(tmp_path / "moved")
    with pytest.raises(OSError, match="is gone"):
        recorder.on_end("finished")
    assert not folder.exists()


def test_a_recorder_does_not_make_the_run_folder(tmp_path):
    """The start of the run did, and holds it; where it is gone by now, records would go into half
    of one."""
    with pytest.raises(FileNotFoundError):
        record_run(tmp_path / "run", [make_event(1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bad_clips.csv", "records/rank-00000.jsonl", "records", "run.json"])
def test_a_link_in_the_run_folder_is_not_followed(tmp_path, name):
    folder, private = tmp_path / "run", tmp_path / "private"
    (folder / name).parent.mkdir(parents=True)
    private.mkdir() if name == "records" else private.write_text("mine\n")
    (folder / name).symlink_to(private)
    with pytest.raises(ValueError, match=f"{folder / name} is a symbolic link"):
        record_run(folder, [make_event(1, bad_clips=(BadClip("a.mp4", 1, "torn"),))])
    assert list(private.iterdir()) == [] if name == "records" else private.read_text() == "mine\n"


def test_a_disk_that_is_almost_full_leaves_whole_lines_and_an_error(tmp_path, monkeypatch):
    """It takes a part of a line; what a resumed run adds does not mix with that."""
    recorder = record_run(tmp_path, [make_event(1), make_event(2)], outcome=None)
    room = [100]
    true_write = os.write

    def write(descriptor, content):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = true_write(descriptor, content[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        recorder.on_step(make_event(3))
    monkeypatch.undo()
    recorder.on_end("OSError: no space")
    record_run(tmp_path, [make_event(2), make_event(3)], first_step=1)
    assert [record.step for record in read_records(tmp_path)] == [1, 2, 3]


def test_a_file_of_bad_clips_that_cannot_be_read_stops_nobody(tmp_path, caplog):
    (tmp_path / "bad_clips.csv").write_bytes(b"rank,step,path,sample,reason\n0,1,\xff,1,x\n0," + b"9" * 5000 + b",a,1,x\n")
    (record,) = (record_run(tmp_path, [make_event(2)], first_step=1), *read_records(tmp_path))[1:]
    assert record.num_bad_clips_total == 1
    (tmp_path / "bad_clips.csv").write_bytes(b"0,1," + b"x" * 200_000 + b",1,x\n")
    record_run(tmp_path, [make_event(3)], first_step=2)
    assert "bad_clips.csv cannot be read" in caplog.text
