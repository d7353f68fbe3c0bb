"""A folder has one writer; a second process is told who it is, and a crash blocks nobody."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mats_ds.core.storage import folder_lock
from mats_ds.core.storage.folder_lock import (
    LOCK_FILE,
    admit_ranks,
    hold_folder,
    join_hold,
    lock_until_closed,
    release_all_folders,
    release_folder,
)

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys; from pathlib import Path; from mats_ds.core.storage.folder_lock import *
hold_folder(Path(sys.argv[1]), command='b')
"""
WAIT = "\nprint('held', flush=True); sys.stdin.read()"
JOIN = """
import sys; from pathlib import Path; from mats_ds.core.storage.folder_lock import *
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
    """The first rank is killed, another one still writes: the folder is given to nobody until that
    one has ended."""
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


def test_a_folder_that_cannot_be_locked_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", fail)
    with pytest.raises(OSError, match="Input/output error"):
        hold_folder(tmp_path, command="a")


def test_an_open_file_is_locked_until_it_is_closed(tmp_path, monkeypatch):
    with (tmp_path / "a").open("a") as mine, (tmp_path / "a").open("a") as other:
        assert lock_until_closed(mine) and not lock_until_closed(other)
        mine.close()
        assert lock_until_closed(other, waits=True)

        def fail(file, operation):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(folder_lock.fcntl, "flock", fail)
        assert lock_until_closed(other)
