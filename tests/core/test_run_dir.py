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
    said = describe_standing(folder)
    assert said.startswith("step 4 is saved")
    assert shlex.split(said.partition(" with ")[2]) == ["--resume", "auto", "--out", str(folder)]


def test_a_folder_that_cannot_be_looked_into_is_said_without_another_error(tmp_path, monkeypatch):
    """Its disk or its permissions may be what ended the run."""

    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(run_dir, "list_checkpoints", refuse)
    said = describe_standing(tmp_path)
    assert said == f"what is saved cannot be seen now (Permission denied); once it can, go on with --resume auto --out {tmp_path}"
