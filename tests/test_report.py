"""The report as a person runs it: what is judged, what is printed and written, and the exit
status."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mats_ds import report
from mats_ds.core.run_dir import Outcome, write_outcome, write_run
from tests.reporting.fake_runs import (
    GIB,
    gpu_record,
    make_lifelike_record,
    make_record,
    make_run_info,
    run_report,
    write_fake_run,
    write_records,
)

SCRIPT = Path(__file__).resolve().parents[1] / "profiling" / "report.py"


def test_a_finished_run_within_the_budget_passes_and_says_what_was_judged(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", record=gpu_record, device="cuda:0", device_name="NVIDIA A100-SXM4-80GB")
    status, text, _ = run_report(capsys, run_dir)
    first_line = text.splitlines()[0]
    assert status == 0
    assert first_line.startswith("PASS: the run is within the budget 8xa100-80g")
    for words in ("worst rank (1) peaked at 22.00 GiB", "2 ranks for 8 GPUs", "all 9 steps recorded on every rank", "finished"):
        assert words in first_line
    assert (run_dir / "report.html").stat().st_size > 5_000


def test_on_a_cpu_the_first_line_says_that_memory_is_the_hosts(tmp_path, capsys):
    _, text, _ = run_report(capsys, write_fake_run(tmp_path / "run"))
    assert "this is host memory, the RSS of each rank's process" in text.splitlines()[0]


def test_a_run_over_the_budget_fails(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", record=lambda step, rank: make_record(step, rank, peak_reserved_bytes=30 * GIB))
    status, text, _ = run_report(capsys, run_dir, "--budget", "8x3090-24g")
    assert status == 1
    assert text.startswith("FAIL: memory: the worst rank (0) peaked at 31.00 GiB")


def test_a_budget_of_ones_own_limits_the_ranks(tmp_path, capsys):
    budget = tmp_path / "mine.json"
    budget.write_text(json.dumps({"gpus": 1, "memory_per_gpu_bytes": 80 * GIB}))
    status, text, _ = run_report(capsys, write_fake_run(tmp_path / "run"), "--budget", budget)
    assert status == 1
    assert "2 ranks on a CPU, where the budget has 1 GPU" in text.splitlines()[0]


def test_a_missing_rank_and_missing_steps_are_named(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", world_size=3)
    (run_dir / "records" / "rank-00002.jsonl").unlink()
    path = run_dir / "records" / "rank-00001.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[5:8]))
    status, text, _ = run_report(capsys, run_dir)
    assert status == 1
    assert "rank 1 lacks 3 steps: 4 to 5, 9; rank 2 has no records" in text.splitlines()[0]


def test_ranks_of_a_run_that_goes_on_may_be_a_step_apart(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", outcome=None)
    write_records(run_dir, [make_record(10, 0)])
    _, text, _ = run_report(capsys, run_dir)
    assert "lacks" not in text


def test_a_resumed_run_with_fewer_ranks_is_complete(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", num_steps=12, world_size=3, outcome=None)
    write_run(run_dir, make_run_info(run_dir, world_size=2, first_step=9, total_steps=14))
    for rank in range(2):
        write_records(run_dir, [make_record(step, rank, loss=0.01) for step in range(10, 15)], rank=rank)
    write_outcome(run_dir, Outcome("finished", 14, 0.0))
    status, text, _ = run_report(capsys, run_dir)
    assert status == 0, text
    assert "resumed at step 10; 6 older records" in text


def test_a_step_whose_record_died_with_the_run_before_its_resume_is_not_missed(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", num_steps=4, world_size=1, outcome=None)
    # step 5 was done, its record lost
    write_run(run_dir, make_run_info(run_dir, world_size=1, first_step=5, total_steps=7))
    write_records(run_dir, [make_record(step) for step in (6, 7)])
    write_outcome(run_dir, Outcome("finished", 7, 0.0))
    assert run_report(capsys, run_dir)[0] == 0


def test_torn_lines_are_counted_and_do_not_hide_the_rest(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", outcome=None)
    path = run_dir / "records" / "rank-00001.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    _, text, _ = run_report(capsys, run_dir)
    assert "1 unreadable line left out: rank-00001.jsonl line 9: torn" in " ".join(text.split())


def test_a_loss_that_is_not_a_number_is_told_and_at_the_end_it_fails(tmp_path, capsys):
    def record(step, rank, last=9):
        return make_record(step, rank, loss=math.nan if step in (4, last) else 1 / step)

    status, text, _ = run_report(capsys, write_fake_run(tmp_path / "diverged", record=record))
    assert status == 1
    assert "loss: the last recorded loss is not a finite number" in text.splitlines()[0]
    assert "not finite on 2 steps, first at step 4" in text
    run_dir = write_fake_run(tmp_path / "recovered", record=lambda step, rank: record(step, rank, last=5))
    assert run_report(capsys, run_dir)[0] == 0
    json.loads((run_dir / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_one_record_is_enough(tmp_path, capsys):
    status, text, _ = run_report(capsys, write_fake_run(tmp_path / "run", num_steps=1, world_size=1))
    assert status == 0
    assert "the only step recorded" in text


def test_figures_follow_from_the_records(tmp_path, capsys):
    run_dir = write_fake_run(
        tmp_path / "run", num_steps=50, record=gpu_record, device="cuda:0", device_name="NVIDIA A100-SXM4-80GB"
    )
    status, text, _ = run_report(capsys, run_dir, "--json")
    tree = json.loads(text)
    assert (status, tree["passed"]) == (0, True)
    assert tree == json.loads((run_dir / "report.json").read_text())
    assert tree["clips_per_second"] == pytest.approx(6.0)  # 2 ranks x 3 clips in a second
    assert tree["phase_shares"] == pytest.approx(
        {"data": 0.05, "forward": 0.25, "backward": 0.6, "optimizer": 0.05, "other": 0.05}
    )
    assert tree["num_warmup_steps"] == 10
    assert tree["peak_memory_bytes"] == 22 * GIB
    assert tree["forward_gmacs_per_clip"] == 19.8
    assert tree["model_flops_per_second_per_rank"] == pytest.approx(3 * 120e9)
    assert tree["model_flops_utilization"] == pytest.approx(3 * 120e9 / 19.5e12)
    assert tree["hardware_flops_utilization"] == pytest.approx(3 * 150e9 / 19.5e12)
    assert tree["joules_per_clip"] == pytest.approx(110.0)
    assert tree["watts_per_card"] == pytest.approx(330.0)
    kinds = tree["memory_bytes_by_kind"]
    assert sum(kinds.values()) == tree["peak_memory_bytes"]
    assert (kinds["clips"], kinds["cache"], kinds["outside"]) == (GIB // 16, GIB // 2, GIB)
    assert tree["balance"]["lost_share"] == 0.0
    assert tree["hours_projected"] == pytest.approx(50 / 3600)
    assert [rank["num_records"] for rank in tree["ranks"]] == [50, 50]


def test_records_of_the_first_schema_are_reported_with_power_for_energy(tmp_path, capsys):
    def record(step, rank):
        old = gpu_record(step, rank)
        return replace(old, joules=None, mfu=None, hfu=None, clip_bytes=None, activation_bytes=None, peak_active_bytes=None)

    run_dir = write_fake_run(tmp_path / "run", record=record)
    for path in (run_dir / "records").iterdir():
        path.write_text(path.read_text().replace('"schema":2', '"schema":1'))
    status, text, _ = run_report(capsys, run_dir, "--json")
    assert status == 0
    assert json.loads(text)["joules_per_clip"] == pytest.approx(100.0)  # 300 W, a second, 3 clips


@pytest.mark.parametrize("arithmetic", ["fp32", "tf32"])
def test_a_measured_peak_is_said_to_be_measured(tmp_path, capsys, arithmetic):
    facts = dict(device_name="NVIDIA Foo 9000", peak_flops=36e12, peak_source="measured", peak_arithmetic=arithmetic)
    run_dir = write_fake_run(tmp_path / "run", record=gpu_record, **facts)
    words = " ".join(run_report(capsys, run_dir)[1].split())
    assert f"1.0% of the {arithmetic} rate of one large product, measured on this GPU, of 36 TFLOP/s (MFU)" in words


def test_an_older_run_in_fp32_is_judged_by_the_peak_of_fp32(tmp_path, capsys):
    """It recorded the bf16 peak of its A100: 0.36 TFLOP/s of 312 were reported as 0.1%."""
    facts = dict(device_name="NVIDIA A100-SXM4-80GB", peak_flops=312e12, peak_source="table")
    words = " ".join(run_report(capsys, write_fake_run(tmp_path / "run", record=gpu_record, **facts))[1].split())
    assert "1.8% of the dense fp32 peak of 19.5 TFLOP/s (MFU)" in words


def test_an_unknown_gpu_has_no_mfu_and_the_report_says_so(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", record=gpu_record, device="cuda:0", device_name="NVIDIA Foo 9000")
    assert "no MFU, as the peak of NVIDIA Foo 9000 is not known" in " ".join(run_report(capsys, run_dir)[1].split())


@pytest.mark.parametrize(("data_seconds", "words"), [(0.01, "keeps up"), (0.1, "during 10% of a step"), (0.8, "the bottleneck")])
def test_the_advice_follows_the_time_spent_waiting(tmp_path, capsys, data_seconds, words):
    def record(step, rank):
        return make_record(step, rank, data_seconds=data_seconds, total_seconds=data_seconds + 0.9)

    assert words in " ".join(run_report(capsys, write_fake_run(tmp_path / "run", num_steps=40, record=record))[1].split())


def test_bad_videos_are_named_once_each(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    rows = ["rank,step,path,sample,reason", '0,1,"a, b.mp4",3,torn', '1,2,"a, b.mp4",3,torn', "1,2,c.mp4,4,empty", "1,2,half"]
    (run_dir / "bad_clips.csv").write_text("\n".join(rows))
    text = " ".join(run_report(capsys, run_dir)[1].split())
    assert "2 videos unreadable" in text
    assert "a, b.mp4 (torn); c.mp4 (empty)" in text
    rows[1:3] = ["0,1,d.mp4,3,damaged in part: decodes up to frame 28 of 50; frames 0 to 27 can be used"]
    (run_dir / "bad_clips.csv").write_text("\n".join(rows))
    text = " ".join(run_report(capsys, run_dir)[1].split())
    assert "1 video unreadable, 1 video damaged in part" in text and "frames 0 to 27 can be used" in text


def test_without_a_folder_the_newest_run_below_runs_is_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = write_fake_run(tmp_path / "runs" / "old", recipe_name="old")
    new = write_fake_run(tmp_path / "runs" / "group" / "new", recipe_name="new")
    for path in old.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert "new on 2 x CPU" in run_report(capsys)[1]
    assert (new / "report.json").exists()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no runs", "no folder runs/"),
        ("empty runs", "runs/ holds no run"),
        ("not a run", "is a folder, no run folder: it has no run.json"),
        ("no such folder", "there is no run folder"),
        ("no records", "holds no record of any step, so there is nothing to judge; the run ended with: ValueError: no video"),
        ("only torn records", "holds no record of any step"),
        ("unknown budget", "did you mean 8xh100-80g"),
    ],
)
def test_where_there_is_nothing_to_judge_the_status_is_2_and_one_line_says_why(tmp_path, capsys, monkeypatch, case, words):
    monkeypatch.chdir(tmp_path)
    arguments = []
    if case == "empty runs":
        (tmp_path / "runs").mkdir()
    elif case == "not a run":
        (tmp_path / "here").mkdir()
        arguments = ["here"]
    elif case == "no such folder":
        arguments = ["nowhere"]
    elif case == "no records":
        arguments = [write_fake_run(tmp_path / "run", num_steps=0, outcome="ValueError: no video\nat all")]
    elif case == "only torn records":
        arguments = [write_fake_run(tmp_path / "run", num_steps=1)]
        for path in (tmp_path / "run" / "records").iterdir():
            path.write_text('{"schema":1,"step":1,"ep')
    elif case == "unknown budget":
        arguments = [write_fake_run(tmp_path / "run"), "--budget", "8xh100-80"]
    status, text, errors = run_report(capsys, *arguments)
    assert (status, text, errors.count("\n")) == (2, "", 1)
    assert words in errors


def test_a_folder_that_cannot_be_written_is_still_judged(tmp_path, capsys, monkeypatch):
    def refuse(*arguments):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(report, "write_html", refuse)
    status, text, errors = run_report(capsys, write_fake_run(tmp_path / "run"))
    assert status == 0
    assert text.startswith("PASS")
    assert "could not be written: read-only file system" in errors


def test_as_a_script_it_answers_quickly_because_it_does_not_load_torch(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", outcome="stopped")
    code = (
        f"import runpy, sys; sys.argv = [{str(SCRIPT)!r}, {str(run_dir)!r}]\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout[:5]) == (1, "FAIL:"), run.stderr


@pytest.mark.slow
def test_a_hundred_thousand_records_take_seconds(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", num_steps=12_500, world_size=8, record=make_lifelike_record)
    begin = _cpu_seconds()
    status, _, _ = run_report(capsys, run_dir)
    seconds = _cpu_seconds() - begin
    with capsys.disabled():
        print(f"\n  100 000 records: {seconds:.1f} s of a CPU, page {(run_dir / 'report.html').stat().st_size / 1024:.0f} KiB")
    assert status == 0
    assert seconds < 10
    assert (run_dir / "report.html").stat().st_size < 500_000


def _cpu_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def test_a_reader_who_has_seen_enough_does_not_change_the_verdict(tmp_path):
    write_fake_run(tmp_path)
    command = f"set -o pipefail; '{sys.executable}' '{SCRIPT}' '{tmp_path}' | head -n 1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.returncode == 0 and "Traceback" not in run.stderr
