"""Two runs in one new folder: one has it, the other is told; nothing that a crash leaves behind is in the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from mats_ds.training import run_folder
from mats_ds.training.run_claim import CLAIM, claim_new_run

fork = multiprocessing.get_context("fork")


def hold(folder, claimed):
    claim_new_run(folder, resume=False)
    claimed.set()
    signal.pause()


def try_to_claim(folder, resume, answers):
    try:
        claim_new_run(folder, resume=resume)
        answers.put("claimed")
    except ValueError as error:
        answers.put(str(error))


def ask(folder, *, resume=False):
    """What another process is told."""
    answers = fork.Queue()
    process = fork.Process(target=try_to_claim, args=(folder, resume, answers))
    process.start()
    answer = answers.get(timeout=60)
    process.join()
    return answer


@pytest.fixture
def holder(tmp_path):
    """A process that has claimed tmp_path."""
    claimed = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, claimed))
    process.start()
    assert claimed.wait(timeout=60)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("resume", [False, True])
def test_the_second_of_two_is_refused_and_told_who_is_there(tmp_path, holder, resume):
    told = ask(tmp_path, resume=resume)
    assert f"another run is starting in {tmp_path}" in told and f"process {holder.pid}," in told and "--out" in told


def test_a_killed_run_blocks_nobody(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / CLAIM).is_file()
    assert ask(tmp_path) == "claimed" and ask(tmp_path, resume=True) == "claimed"


def test_a_folder_with_a_run_is_gone_on_with_or_refused(tmp_path, holder):
    (tmp_path / "run.json").write_text("{}")
    assert ask(tmp_path, resume=True) == "claimed"
    assert "holds a run already: add --resume auto" in ask(tmp_path)


def test_one_process_may_start_and_go_on(tmp_path):
    claim_new_run(tmp_path, resume=False)
    claim_new_run(tmp_path, resume=True)


def race(folder, start, answers):
    start.wait()
    try_to_claim(folder, False, answers)
    start.wait()  # the winner lives until all have asked


def test_of_many_at_the_same_moment_one_wins(tmp_path):
    start, answers = fork.Barrier(6), fork.Queue()
    racers = [fork.Process(target=race, args=(tmp_path, start, answers)) for _ in range(6)]
    for process in racers:
        process.start()
    told = [answers.get(timeout=60) for _ in racers]
    for process in racers:
        process.join()
    assert told.count("claimed") == 1 and sum("another run is starting" in text for text in told) == 5


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "RUNS", tmp_path / "runs")
    names = [run_folder._make_new("ssv2-20260101-000000").name for _ in range(3)]
    assert names == ["ssv2-20260101-000000", "ssv2-20260101-000000-2", "ssv2-20260101-000000-3"]


def test_a_program_that_ends_leaves_nothing_behind(tmp_path):
    code = "import sys, pathlib; from mats_ds.training.run_claim import *; claim_new_run(pathlib.Path(sys.argv[1]), resume=False)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []
