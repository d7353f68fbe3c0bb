"""What a lock file says of its holder, and whom it keeps out by itself where a filesystem has no
locks."""

import errno
import json
import os
from dataclasses import replace

import pytest

from mats_ds.core.processes import identify_process, read_start_ticks
from mats_ds.core.storage import folder_lock, lock_file
from mats_ds.core.storage.folder_lock import LOCK_FILE, hold_folder, release_all_folders, release_folder


@pytest.fixture(autouse=True)
def nothing_is_held_afterwards():
    yield
    release_all_folders()


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    monkeypatch.setattr(lock_file, "CLAIM_SECONDS", 0.01)


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


def test_without_locks_a_live_holder_is_believed(tmp_path, no_locks):
    parent = os.getppid()
    leave_lock(tmp_path, process=parent, start_ticks=read_start_ticks(parent))
    with pytest.raises(ValueError, match=f"process {parent}, .*stop that one first"):
        hold_folder(tmp_path, command="a")


def test_what_the_file_says_is_printed_as_plain_text(tmp_path, no_locks):
    leave_lock(tmp_path, host="\x1b[2Jbeta\n", **ENDED)
    with pytest.raises(ValueError, match=r"host \\x1b\[2Jbeta\\n, process"):
        hold_folder(tmp_path, command="a")
