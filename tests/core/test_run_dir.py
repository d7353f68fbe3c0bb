"""What a run says of what is saved, and how to go on."""

from __future__ import annotations

import shlex

import pytest

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
