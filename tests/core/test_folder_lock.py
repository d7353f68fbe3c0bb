"""A folder has one writer; a second process is told who it is, and a crash blocks nobody."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mats_ds.core import folder_lock, processes
from mats_ds.core.folder_lock import LOCK_FILE, admit_ranks, hold_folder, join_hold, release_all_folders, release_folder
from mats_ds.core.processes import identify_process

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys; from pathlib import Path; from mats_ds.core.folder_lock import *
hold_folder(Path(sys.argv[1]), command='b')
"""
WAIT = "\nprint('held', flush=True); sys.stdin.read()"
JOIN = """
import sys; from pathlib import Path; from mats_ds.core.folder_lock import *
join_hold(Path(sys.argv[1]), rank=3); print('held', flush=True); sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def nothing_is_held_afterwards():
    yield
    release_all_folders()


@pytest.fixture
def elsewhere():
    """`elsewhere(code, folder)`: a process that has run this code, and is waiting."""
    started = []

    def start(code, folder):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, cwd=ROOT, **pipes)
        started.append(process)
        assert process.stdout.readline() == "held\n", process.communicate()[1]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def try_elsewhere(folder):
    return subprocess.run([sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True, cwd=ROOT)


def test_a_second_process_is_refused_with_who_holds_it(tmp_path):
    hold_folder(tmp_path, command="prepare transcode")
    hold_folder(tmp_path, command="prepare transcode")
    done = try_elsewhere(tmp_path)
    assert done.returncode == 1
    assert f"prepare transcode on host {os.uname().nodename}, process {os.getpid()}, since 20" in done.stderr
    release_folder(tmp_path)
    assert try_elsewhere(tmp_path).returncode == 0 and os.listdir(tmp_path) == []


def test_another_name_of_a_held_folder_does_not_end_the_hold(tmp_path):
    """A second descriptor of the locked file would, when it is closed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    hold_folder(tmp_path / "folder", command="a")
    hold_folder(tmp_path / "link", command="a")
    assert try_elsewhere(tmp_path / "folder").returncode == 1


def test_a_killed_holder_blocks_nobody(tmp_path, elsewhere):
    holder = elsewhere(HOLD + WAIT, tmp_path)
    with pytest.raises(ValueError, match=f"b on host .*, process {holder.pid}, since"):
        hold_folder(tmp_path, command="c")
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    hold_folder(tmp_path, command="c")
    release_folder(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [lambda path, mine: path.symlink_to(mine), lambda path, mine: path.hardlink_to(mine)])
def test_the_lock_of_somebody_else_is_left_as_it_is(tmp_path, make):
    """A link, or a file that another program wrote."""
    (tmp_path / "mine").write_text("mine")
    make(tmp_path / LOCK_FILE, tmp_path / "mine")
    with pytest.raises(ValueError, match="remove it"):
        hold_folder(tmp_path, command="a")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / LOCK_FILE).exists()


def test_a_child_neither_keeps_the_hold_nor_ends_it(tmp_path):
    hold_folder(tmp_path, command="a")
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=release_folder, args=(tmp_path,))
    child.start()
    child.join()
    assert try_elsewhere(tmp_path).returncode == 1, "the child's end gave the lock up"
    orphan = fork.Process(target=signal.pause)
    orphan.start()
    release_folder(tmp_path)
    try:
        assert try_elsewhere(tmp_path).returncode == 0, "the child kept the lock"
    finally:
        orphan.kill()
        orphan.join()


def try_at_once(folder, start, answers):
    start.wait()
    try:
        hold_folder(folder, command="racer")
        answers.put("held")
    except ValueError as error:
        answers.put(str(error))
    start.wait()  # the winner lives until all have asked


def test_of_many_at_the_same_moment_one_wins(tmp_path):
    fork = multiprocessing.get_context("fork")
    start, answers = fork.Barrier(6), fork.Queue()
    racers = [fork.Process(target=try_at_once, args=(tmp_path, start, answers)) for _ in range(6)]
    for racer in racers:
        racer.start()
    told = [answers.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert told.count("held") == 1 and sum("is in use by " in text for text in told) == 5


def test_a_folder_that_is_gone_or_replaced_is_not_touched_at_the_end(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    hold_folder(folder, command="a")
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    (folder / LOCK_FILE).write_text("of the next run")
    release_all_folders()
    assert (folder / LOCK_FILE).read_text() == "of the next run"


def test_a_run_is_over_when_its_last_rank_is_gone(tmp_path, elsewhere, monkeypatch):
    """The first rank is killed, another one still writes: the folder is given to nobody until that one has ended."""
    first = elsewhere(HOLD + "admit_ranks(Path(sys.argv[1]))" + WAIT, tmp_path)
    third = elsewhere(JOIN, tmp_path)
    first.kill()
    first.wait()
    monkeypatch.setattr(folder_lock, "RANKS_END_SECONDS", 0.3)
    with pytest.raises(ValueError, match=f"still in use by ranks of b on host .*, process {first.pid}, .*they have not"):
        hold_folder(tmp_path, command="c")
    monkeypatch.setattr(folder_lock, "RANKS_END_SECONDS", 60.0)
    threading.Timer(0.3, third.kill).start()
    hold_folder(tmp_path, command="c")  # waits for it
    assert third.wait() == -signal.SIGKILL


def test_the_last_rank_to_end_takes_the_file_away(tmp_path, elsewhere):
    hold_folder(tmp_path, command="a")
    admit_ranks(tmp_path)
    other = elsewhere(JOIN, tmp_path)
    assert try_elsewhere(tmp_path).returncode == 1
    release_folder(tmp_path)
    assert (tmp_path / LOCK_FILE).exists()
    other.communicate("", timeout=60)
    assert os.listdir(tmp_path) == []


def test_to_join_a_folder_that_nobody_holds_is_nothing(tmp_path):
    join_hold(tmp_path, rank=1)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    monkeypatch.setattr(folder_lock, "CLAIM_SECONDS", 0.01)


def leave_lock(folder, **changes):
    """The file that a process of these properties would have left."""
    identity = replace(identify_process(), **changes)
    (folder / LOCK_FILE).write_text(json.dumps({"command": "pretrain", "since": "2026-01-02 03:04:05", **vars(identity)}))
    return identity


ENDED = {"process": 2**22 + 1, "start_ticks": 5}  # above the largest process number of Linux


@pytest.mark.parametrize(
    "changes", [ENDED, {"start_ticks": 1}, {"boot": "of the boot before", "process": 1}], ids=["dead", "recycled", "rebooted"]
)
def test_without_locks_a_holder_that_is_gone_is_passed_over(tmp_path, no_locks, changes):
    leave_lock(tmp_path, **changes)
    hold_folder(tmp_path, command="a")
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    release_folder(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [ENDED | {"host": "beta"}, ENDED | {"machine": "another of that name"}, ENDED | {"namespace": "pid:[1]"}],
    ids=["host", "machine", "container"],
)
def test_without_locks_a_holder_that_cannot_be_seen_from_here_is_believed(tmp_path, no_locks, changes):
    held_by = leave_lock(tmp_path, **changes)
    before = (tmp_path / LOCK_FILE).read_text()
    with pytest.raises(ValueError) as refusal:
        hold_folder(tmp_path, command="a")
    assert f"on host {held_by.host}, process {2**22 + 1}, since 2026-01-02 03:04:05" in str(refusal.value)
    assert "remove" in str(refusal.value) and str(tmp_path / LOCK_FILE) in str(refusal.value)
    assert (tmp_path / LOCK_FILE).read_text() == before


def test_without_locks_a_live_holder_is_believed(tmp_path, no_locks, elsewhere):
    waiting = elsewhere("import sys; print('held', flush=True); sys.stdin.read()", tmp_path)
    leave_lock(tmp_path, process=waiting.pid, start_ticks=processes.read_start_ticks(waiting.pid))
    with pytest.raises(ValueError, match=f"process {waiting.pid}"):
        hold_folder(tmp_path, command="a")


def test_what_the_file_says_is_printed_as_plain_text(tmp_path, no_locks):
    leave_lock(tmp_path, host="\x1b[2Jbeta\n", **ENDED)
    with pytest.raises(ValueError, match=r"host \?\[2Jbeta\?, process"):
        hold_folder(tmp_path, command="a")


def test_a_folder_that_cannot_be_locked_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", fail)
    with pytest.raises(OSError, match="Input/output error"):
        hold_folder(tmp_path, command="a")
