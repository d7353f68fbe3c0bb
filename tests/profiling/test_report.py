"""The report as a person runs it: what is judged, what is printed and written, and the exit status."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import report
from fake_runs import GIB, make_lifelike_record, make_plan, make_record, make_run_info, write_fake_run, write_records

from mats_ds.metering.plan_file import write_plan
from mats_ds.metering.run_files import Outcome, write_outcome, write_run

SCRIPT = Path(report.__file__)


def run_report(capsys, *arguments):
    """Exit status, printed text, and errors of one report."""
    status = report.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def gpu_record(step, rank):
    return make_record(step, rank, peak_reserved_bytes=(20 + rank) * GIB)


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
    assert "no GPU was there: this is host memory, the RSS of each rank's process" in text.splitlines()[0]


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
    assert "2 ranks for 1 GPUs" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (None, "was killed or hangs; its last record, of step 9, is"),
        ("RuntimeError: CUDA out of memory\nmore", "stopped early after step 9: RuntimeError: CUDA out"),
    ],
)
def test_a_run_that_did_not_finish_is_not_a_pass(tmp_path, capsys, outcome, words):
    status, text, _ = run_report(capsys, write_fake_run(tmp_path / "run", outcome=outcome))
    assert status == 1
    assert words in text.splitlines()[0]
    assert "memory was within the budget" in text.splitlines()[0]


def test_a_run_that_still_writes_records_may_be_going_on(tmp_path, capsys):
    def record(step, rank):
        return make_record(step, rank, unix_seconds=time.time())

    _, text, _ = run_report(capsys, write_fake_run(tmp_path / "run", outcome=None, record=record))
    assert "it is still going on, or was killed; its last record, of step 9, is" in text.splitlines()[0]


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
    assert "resumed at step 10; 6 older records of steps done again left out" in text


def test_a_step_whose_record_died_with_the_run_before_its_resume_is_not_missed(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", num_steps=4, world_size=1, outcome=None)
    write_run(run_dir, make_run_info(run_dir, world_size=1, first_step=5, total_steps=7))  # step 5 was done, its record lost
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
    assert tree["model_flops_utilization"] == pytest.approx(3 * 120e9 / 312e12)
    assert tree["hardware_flops_utilization"] == pytest.approx(3 * 150e9 / 312e12)
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


def test_a_measured_peak_is_said_to_be_measured(tmp_path, capsys):
    run_dir = write_fake_run(
        tmp_path / "run", record=gpu_record, device_name="NVIDIA Foo 9000", peak_flops=36e12, peak_source="measured"
    )
    words = " ".join(run_report(capsys, run_dir)[1].split())
    assert "1.0% of the bf16 rate of one large product, measured on this card, of 36 TFLOP/s (MFU)" in words


@pytest.mark.parametrize(("late_seconds", "words"), [(0.001, "well balanced"), (0.3, "rank 1 is the last in 100% of the steps")])
def test_the_rank_that_others_wait_for_is_named(tmp_path, capsys, late_seconds, words):
    def record(step, rank):
        late = late_seconds if rank == 1 else 0.0
        return make_record(step, rank, forward_seconds=0.25 + late, backward_seconds=0.6 - late)

    run_dir = write_fake_run(tmp_path / "run", world_size=3, record=record)
    _, text, _ = run_report(capsys, run_dir)
    assert words in " ".join(text.split())
    balance = json.loads((run_dir / "report.json").read_text())["balance"]
    assert balance["lost_share"] == pytest.approx(late_seconds * 2 / 3)
    assert balance["worst_rank"] == 1
    assert balance["late_seconds"]["1"] == pytest.approx(late_seconds * 2 / 3)


def test_one_rank_has_nobody_to_wait_for(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", world_size=1)
    assert "balance" not in run_report(capsys, run_dir)[1]
    assert json.loads((run_dir / "report.json").read_text())["balance"] is None


def test_a_plan_is_set_against_what_was_measured(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", record=lambda step, rank: make_record(step, rank, peak_reserved_bytes=9 * GIB))
    assert "planned" not in run_report(capsys, run_dir)[1]
    write_plan(run_dir, make_plan())
    words = " ".join(run_report(capsys, run_dir)[1].split())
    assert "peak memory of a card 10.56 GiB, measured 10.00 GiB (0.95 x)" in words
    assert "step 0.8 s, measured 1 s (1.25 x)" in words
    pairs = {pair["name"]: pair for pair in json.loads((run_dir / "report.json").read_text())["plan"]}
    assert pairs["weights"]["ratio"] == 1.0
    assert pairs["clips a second"] == {"name": "clips a second", "planned": 7.5, "measured": 6.0, "ratio": 0.8}
    assert "MFU" not in pairs  # not planned


def test_a_spoilt_plan_is_an_error_of_one_line(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    (run_dir / "plan.json").write_text("{")
    status, _, errors = run_report(capsys, run_dir)
    assert (status, errors.count("\n")) == (2, 1)
    assert "plan.json is not valid JSON" in errors


def test_on_a_cpu_a_plan_is_still_shown(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    write_plan(run_dir, make_plan())
    assert run_report(capsys, run_dir)[0] == 0
    pairs = {pair["name"]: pair for pair in json.loads((run_dir / "report.json").read_text())["plan"]}
    assert pairs["peak memory of a card"]["measured"] is None
    assert pairs["weights"]["measured"] == GIB  # exact, from the engine's tensors


def test_two_runs_are_compared_with_ratios_and_settings(tmp_path, capsys):
    a = write_fake_run(tmp_path / "a", record=gpu_record)
    b = write_fake_run(
        tmp_path / "b", kept=235, versions={"torch": "2.16"},
        record=lambda step, rank: make_record(step, rank, total_seconds=0.5, peak_reserved_bytes=10 * GIB),
    )  # fmt: skip
    (a / "recipe.yaml").write_text("keep: 0.3\nseed: 0\n")
    (b / "recipe.yaml").write_text("keep: 0.15\nseed: 0\n")
    status, text, _ = run_report(capsys, "--compare", a, b)
    rows = {line[:34].strip(): line[34:].split() for line in text.splitlines()}
    assert status == 0
    assert rows["clips a second"] == ["6", "12", "2.000"]
    assert rows["step, s"] == ["1", "0.5", "0.500"]
    assert rows["peak memory of the worst rank"] == ["22.00", "GiB", "11.00", "GiB", "0.500"]
    assert rows["tokens kept"] == ["470", "235", "0.500"]
    for line in ("- keep: 0.3", "+ keep: 0.15", "- torch 2.15", "+ torch 2.16"):
        assert f"  {line}\n" in text + "\n"
    assert "seed" not in text
    tree = json.loads(run_report(capsys, "--compare", a, b, "--json")[1])
    assert {"name": "step, s", "a": 1.0, "b": 0.5, "ratio": 0.5} in tree["figures"]
    assert not (a / "report.html").exists()


def test_a_comparison_with_something_that_is_no_run_is_status_2(tmp_path, capsys):
    a = write_fake_run(tmp_path / "a")
    status, _, errors = run_report(capsys, "--compare", a, tmp_path / "nowhere")
    assert (status, errors.count("\n")) == (2, 1)


def test_a_run_that_was_killed_in_mid_line_is_reported_up_to_there(tmp_path, capsys):
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "import pathlib, fake_runs\n"
        "run_dir = pathlib.Path(sys.argv[1])\n"
        "fake_runs.write_fake_run(run_dir, num_steps=0, world_size=1, outcome=None)\n"
        "writer = fake_runs.RecordWriter(run_dir, rank=0)\n"
        "for step in range(1, 8): writer.append(fake_runs.make_record(step))\n"
        'os.write(writer._file.fileno(), b\'{"schema":2,"step":8,"epo\')\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folders = [str(Path(__file__).parent), str(SCRIPT.parents[1])]
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run"), *folders], timeout=120)
    assert run.returncode == -signal.SIGKILL
    status, text, _ = run_report(capsys, tmp_path / "run")
    assert status == 1
    assert "its last record, of step 7, is" in text.splitlines()[0]
    assert "1 unreadable line left out: rank-00000.jsonl line 8: torn" in " ".join(text.split())
    assert (tmp_path / "run" / "report.html").exists()


def test_an_unknown_card_has_no_mfu_and_it_is_said(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", record=gpu_record, device="cuda:0", device_name="NVIDIA Foo 9000")
    assert "no MFU, as the peak of NVIDIA Foo 9000 is not known" in " ".join(run_report(capsys, run_dir)[1].split())


@pytest.mark.parametrize(("data_seconds", "words"), [(0.01, "keeps up"), (0.1, "to win that back"), (0.8, "the bottleneck")])
def test_the_advice_follows_the_time_spent_waiting(tmp_path, capsys, data_seconds, words):
    def record(step, rank):
        return make_record(step, rank, data_seconds=data_seconds, total_seconds=data_seconds + 0.9)

    assert words in " ".join(run_report(capsys, write_fake_run(tmp_path / "run", record=record))[1].split())


def test_bad_videos_are_named_once_each(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    rows = ["rank,step,path,sample,reason", '0,1,"a, b.mp4",3,torn', '1,2,"a, b.mp4",3,torn', "1,2,c.mp4,4,empty", "1,2,half"]
    (run_dir / "bad_clips.csv").write_text("\n".join(rows))
    text = " ".join(run_report(capsys, run_dir)[1].split())
    assert "2 videos unreadable" in text
    assert "a, b.mp4 (torn); c.mp4 (empty)" in text


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
        ("not a run", "is not a run folder: it has no run.json"),
        ("no such folder", "is not a run folder"),
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
