"""Runs that stopped, hang or were killed are reported up to their last step, and are no pass."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reporting.fake_runs import gpu_record, make_record, run_report, write_fake_run


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
    assert "memory was within the budget" not in text.splitlines()[0]  # of GPUs: none was used


def test_memory_of_a_run_that_stopped_is_judged_unless_it_ran_out(tmp_path, capsys):
    for outcome, words in (("RuntimeError: torn", True), ("torch.OutOfMemoryError: CUDA out of memory", False)):
        run_dir = write_fake_run(tmp_path / outcome[:5], record=gpu_record, outcome=outcome)
        first_line = run_report(capsys, run_dir)[1].splitlines()[0]
        assert ("memory was within the budget 8xa100-80g" in first_line) is words


def test_a_run_that_still_writes_records_may_be_going_on(tmp_path, capsys):
    def record(step, rank):
        return make_record(step, rank, unix_seconds=time.time())

    _, text, _ = run_report(capsys, write_fake_run(tmp_path / "run", outcome=None, record=record))
    assert "it is still going on, or was killed; its last record, of step 9, is" in text.splitlines()[0]


def test_a_run_that_was_killed_in_mid_line_is_reported_up_to_there(tmp_path, capsys):
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "import pathlib; from tests.reporting import fake_runs\n"
        "run_dir = pathlib.Path(sys.argv[1])\n"
        "fake_runs.write_fake_run(run_dir, num_steps=0, world_size=1, outcome=None)\n"
        "writer = fake_runs.RecordWriter(run_dir, rank=0)\n"
        "for step in range(1, 8): writer.append(fake_runs.make_record(step))\n"
        'os.write(writer._file.fileno(), b\'{"schema":2,"step":8,"epo\')\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folders = [str(Path(__file__).parents[2])]
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run"), *folders], timeout=120)
    assert run.returncode == -signal.SIGKILL
    status, text, _ = run_report(capsys, tmp_path / "run")
    assert status == 1
    assert "its last record, of step 7, is" in text.splitlines()[0]
    assert "1 unreadable line left out: rank-00000.jsonl line 8: torn" in " ".join(text.split())
    assert (tmp_path / "run" / "report.html").exists()


def test_for_a_folder_of_runs_one_of_them_is_offered(tmp_path, capsys):
    for name in ("a", "b c"):
        write_fake_run(tmp_path / "runs" / name)
    status, _, errors = run_report(capsys, tmp_path / "runs")
    assert status == 2 and f"such as '{tmp_path}/runs/b c'" in errors and errors.count("\n") == 1


def test_large_numbers_of_steps_and_clips_can_be_read(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run", num_steps=1200, world_size=1, outcome="killed by the user")
    _, text, _ = run_report(capsys, run_dir)
    for words in ("after step 1,200", "step 1,200 of 1,200", "470 of 1,568 tokens"):
        assert words in " ".join(text.split()), text
    assert not {"1200", "1568"} & set(re.findall(r"\d+", text))
