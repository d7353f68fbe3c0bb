"""A folder has one writer; a second process is told who it is, and a crash blocks nobody."""

import os
import subprocess
import sys

import pytest

from mats_ds.core.folder_lock import hold_folder, release_folder

HOLD = """
import sys; from pathlib import Path; from mats_ds.core.folder_lock import hold_folder
hold_folder(Path(sys.argv[1]), command='b')
"""


def try_elsewhere(folder):
    return subprocess.run([sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True)


def test_a_second_process_is_refused_with_who_holds_it(tmp_path):
    hold_folder(tmp_path, command="prepare transcode")
    hold_folder(tmp_path, command="prepare transcode")
    done = try_elsewhere(tmp_path)
    assert done.returncode == 1
    assert "prepare transcode" in done.stderr and f"process {os.getpid()}" in done.stderr and "host" in done.stderr
    release_folder(tmp_path)
    assert try_elsewhere(tmp_path).returncode == 0 and os.listdir(tmp_path) == []


def test_a_killed_holder_blocks_nobody(tmp_path):
    code = HOLD + "\nimport os; os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert (tmp_path / ".lock").exists()
    hold_folder(tmp_path, command="c")
    release_folder(tmp_path)


def test_the_lock_is_no_link(tmp_path):
    (tmp_path / "private").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "private")
    with pytest.raises((ValueError, OSError)):
        hold_folder(tmp_path, command="a")
    assert (tmp_path / "private").read_text() == "mine"
