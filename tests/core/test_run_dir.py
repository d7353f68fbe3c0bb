"""What a run says of what is saved, and how to go on."""

from __future__ import annotations

import shlex

import pytest

from mats_ds.core import run_dir
from mats_ds.core.run_dir import describe_standing
from tests.training.checkpoint_content import tear, write_checkpoint


@pytest.mark.parametrize("name", ["run", "my run [1]"])
def test_the_newest_whole_checkpoint_is_named_or_that_there_is_none(tmp_path, name):
    folder = tmp_path / name
    assert describe_standing(folder).startswith("no step is saved")
    write_checkpoint(folder / "checkpoints", 4)
    tear(write_checkpoint(folder / "checkpoints", 8), "unseal")
    tear(write_checkpoint(folder / "checkpoints", 6), "truncate")
    said = describe_standing(folder)
    assert said.startswith("step 4 was written in full")
    assert shlex.split(said.partition(" with ")[2]) == ["--resume", "auto", "--out", str(folder)]


def test_a_checkpoint_of_the_right_size_was_written_whatever_its_bytes_are_now(tmp_path):
    tear(write_checkpoint(tmp_path / "checkpoints", 8), "flip")
    assert describe_standing(tmp_path).startswith("step 8 was written in full, go on with --resume auto")


def test_where_no_checkpoint_is_whole_another_folder_is_offered(tmp_path):
    tear(write_checkpoint(tmp_path / "checkpoints", 8), "truncate")
    said = describe_standing(tmp_path)
    assert str(tmp_path / "checkpoints") in said and "another --out" in said and "--resume" not in said


def test_a_folder_that_cannot_be_looked_into_is_said_without_another_error(tmp_path, monkeypatch):
    """Its disk or its permissions may be what ended the run."""

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(run_dir, "list_checkpoints", refuse)
    said = describe_standing(tmp_path)
    assert said == f"what is saved cannot be seen now (Permission denied); once it can, go on with --resume auto --out {tmp_path}"
