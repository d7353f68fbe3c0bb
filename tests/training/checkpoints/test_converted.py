"""The folder of a conversion: made anew, and deleted only if it bears our mark."""

from __future__ import annotations

import pytest

from mats_ds.training.checkpoints.converted import make_converted, remove_converted, remove_left_converted
from tests.training.checkpoint_content import content_of, names


def fill(folder):
    (folder / "step-00000005" / "zero" / "encoder.weight").mkdir(parents=True)
    (folder / "step-00000005" / "zero" / "encoder.weight" / "fp32.pt").write_text("a")
    (folder / "step-00000005" / "mp_rank_00_model_states.pt").write_text("b")
    (folder / "latest_universal").write_text("step-00000005")


def test_ours_goes_also_after_a_kill_and_that_of_version_0_1(tmp_path):
    fill(tmp_path / ".universal")
    fill(make_converted(tmp_path))
    make_converted(tmp_path)
    converted = make_converted(tmp_path)
    fill(converted)
    remove_converted(converted)
    assert not converted.exists() and len(names(tmp_path)) == 3
    remove_left_converted(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["mine", "mine inside", "link", "file", "no mark"])
def test_anything_else_stays(tmp_path, kind):
    folder = tmp_path / ".universal"
    if kind == "link":
        fill(tmp_path / "mine")
        folder.symlink_to(tmp_path / "mine")
    elif kind == "file":
        folder.write_text("mine")
    elif kind == "no mark":
        fill(tmp_path / ".universal-0123456789ab")
    else:
        fill(folder)
        (folder / "notes.txt" if kind == "mine" else folder / "step-00000005" / "notes.txt").write_text("mine")
    kept = content_of(tmp_path)
    remove_left_converted(tmp_path)
    assert content_of(tmp_path) == kept
    assert make_converted(tmp_path).is_dir()


def test_links_in_ours_are_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    converted = make_converted(tmp_path)
    (converted / "step-00000005").symlink_to(tmp_path / "mine")
    remove_converted(converted)
    assert names(tmp_path) == ["mine"] and names(tmp_path / "mine") == ["notes.txt"]
