"""Only what a save has written is deleted, file by file."""

from __future__ import annotations

import contextlib
import os

import pytest

from mats_ds.training.checkpoints.removal import foreign_names, remove_checkpoint, remove_unfinished
from tests.training.checkpoint_content import STATES, WEIGHTS, content_of, names, tear, write_checkpoint, write_part
from tests.training.kills import Killed, Killer


@pytest.mark.parametrize("name", [".step-00000005.part", ".step-00000005.0123456789ab.part"])
@pytest.mark.parametrize("state", ["empty", "begun", "sealed"])
def test_what_a_killed_save_left_goes(tmp_path, name, state):
    part = write_part(tmp_path / name, 5)
    if state != "sealed":
        (part / "complete.json").unlink()
        (part / ".complete.json.0123456789ab.part").write_text("{")
    if state == "empty":
        for path in part.iterdir():
            path.unlink()
    (tmp_path / ".latest.0123456789ab.part").write_text("step-0000")
    (tmp_path / ".latest.part").write_text("step-00000005")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", [".step-best.part", ".step-5.part", ".step-00000005.mine.part", ".step-00000005.part.txt", "step-00000005.part"]
)
def test_parts_of_other_names_stay(tmp_path, name):
    write_part(tmp_path / name, 5)
    kept = content_of(tmp_path)
    remove_unfinished(tmp_path)
    assert content_of(tmp_path) == kept


@pytest.mark.parametrize("what", ["file", "folder", "link", "link to a part", "hidden", "latest"])
def test_parts_with_something_else_in_them_stay_as_they_are(tmp_path, what):
    part = write_part(tmp_path / ".step-00000005.part", 5)
    if what == "file":
        (part / "notes.txt").write_text("mine")
    elif what == "folder":
        (part / "results").mkdir()
    elif what == "link":
        (part / WEIGHTS).unlink()
        (part / WEIGHTS).symlink_to(part / STATES.format(0))
    elif what == "link to a part":
        part.rename(tmp_path / "mine")
        part.symlink_to(tmp_path / "mine")
    elif what == "hidden":
        (part / ".git").mkdir()
    else:
        (part / "notes.txt").write_text("mine")
        (tmp_path / ".latest.0123456789ab.part").write_text("my own notes")
        (tmp_path / ".latest.part").symlink_to(part / WEIGHTS)
    kept = content_of(tmp_path)
    remove_unfinished(tmp_path)
    assert content_of(tmp_path) == kept


def test_a_removal_that_was_killed_is_ended_by_the_next(tmp_path, monkeypatch):
    at, is_over = 0, False
    while not is_over:
        at, folder = at + 1, tmp_path / str(at)
        checkpoint = write_checkpoint(folder, 5)
        with monkeypatch.context() as patched:
            Killer(patched, folder, at)
            with contextlib.suppress(Killed):
                is_over = remove_checkpoint(checkpoint)
        assert not checkpoint.exists() or (at == 1 and foreign_names(checkpoint) == [])
        remove_unfinished(folder)
        assert names(folder) == (["step-00000005"] if at == 1 else [])
    assert at > 5


def test_a_torn_one_goes_as_well(tmp_path):
    for step, how in enumerate(["truncate", "flip", "remove", "unseal"], start=1):
        assert remove_checkpoint(tear(write_checkpoint(tmp_path, step), how))
    assert names(tmp_path) == []


def test_what_the_disk_does_not_let_go_is_said(tmp_path, monkeypatch, caplog):
    def refuse(path, *rest, **named):
        raise PermissionError(13, "Permission denied", str(path))

    checkpoint = write_checkpoint(tmp_path, 5)
    monkeypatch.setattr(os, "rename", refuse)
    assert not remove_checkpoint(checkpoint)
    assert "step-00000005 cannot be removed: [Errno 13] Permission denied" in caplog.text


def test_a_folder_that_cannot_be_looked_into_stays(tmp_path, monkeypatch):
    part = write_part(tmp_path / ".step-00000005.0123456789ab.part", 5)
    scan = os.scandir

    def refuse(path):
        if os.fspath(path) == os.fspath(part):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        remove_unfinished(tmp_path)
    assert "complete.json" in names(part)
