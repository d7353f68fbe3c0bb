"""Checkpoints are complete or skipped."""

from __future__ import annotations

import json
import shutil

import pytest

from mats_ds.core.checkpoint_files import find_damage
from mats_ds.training.checkpoints.checkpoint import find_checkpoint, publish, seal
from tests.training.checkpoint_content import content_of, names, rewrite, tear, write_checkpoint, write_part
from tests.training.kills import Killed, Killer


def make_checkpoint(folder, step, *, world_size=2):
    path = folder / f"step-{step:08d}"
    (path / "sub").mkdir(parents=True)
    (path / "weights.pt").write_bytes(b"w" * 1000)
    (path / "sub" / "states.pt").write_bytes(bytes(range(256)))
    seal(path, step=step, world_size=world_size)
    return path


def test_a_sealed_folder_is_whole(tmp_path):
    assert find_damage(make_checkpoint(tmp_path, 5)) is None


def damage_truncate(path):
    (path / "weights.pt").write_bytes(b"w" * 999)


def damage_flip(path):
    content = bytearray((path / "sub" / "states.pt").read_bytes())
    content[100] ^= 1
    (path / "sub" / "states.pt").write_bytes(content)


def damage_remove(path):
    (path / "weights.pt").unlink()


def damage_unseal(path):
    (path / "complete.json").unlink()


def damage_newer(path):
    content = json.loads((path / "complete.json").read_text())
    (path / "complete.json").write_text(json.dumps({**content, "format_version": 99}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_truncate, "has 999 bytes instead of 1,000"),
        (damage_flip, "checksum"),
        (damage_remove, "weights.pt is missing"),
        (damage_unseal, "never finished"),
        (damage_newer, "newer version"),
    ],
)
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, damage, reason, caplog):
    make_checkpoint(tmp_path, 5)
    damage(make_checkpoint(tmp_path, 10))
    found = find_checkpoint(tmp_path)
    assert (found.step, found.tag, found.world_size) == (5, "step-00000005", 2)
    assert reason in caplog.text


def test_when_all_are_damaged_nothing_starts_from_scratch_in_silence(tmp_path):
    damage_flip(make_checkpoint(tmp_path, 5))
    with pytest.raises(ValueError, match="of 1 checkpoint in .* none is complete"):
        find_checkpoint(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_one_checkpoint_can_be_named(tmp_path):
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path / "step-00000005").step == 5


def test_copies_links_and_files_are_no_candidates(tmp_path, caplog):
    make_checkpoint(tmp_path, 5)
    shutil.copytree(make_checkpoint(tmp_path, 10), tmp_path / "step-best")
    shutil.rmtree(tmp_path / "step-00000010")
    (tmp_path / "step-00000000.log").write_text("a log")
    (tmp_path / "step-00000012").symlink_to(tmp_path / "step-best")
    (tmp_path / "step-00000013").touch()
    assert find_checkpoint(tmp_path).step == 5
    for name in ("step-best", "step-00000000.log", "step-00000012", "step-00000013"):
        assert f"'{name}' in {tmp_path} is left alone" in caplog.text
    shutil.rmtree(tmp_path / "step-00000005")
    assert find_checkpoint(tmp_path) is None, "nor do they make a folder one of torn checkpoints"


def test_a_copy_can_be_named(tmp_path):
    make_checkpoint(tmp_path, 5).rename(tmp_path / "step-best")
    found = find_checkpoint(tmp_path / "step-best")
    assert (found.step, found.tag, found.folder) == (5, "step-best", tmp_path)


def test_a_stray_complete_json_beside_the_checkpoints_is_nothing(tmp_path):
    shutil.copy(make_checkpoint(tmp_path, 5) / "complete.json", tmp_path / "complete.json")
    assert find_checkpoint(tmp_path).tag == "step-00000005"


def publish_again(folder, step=7):
    publish(write_part(folder / f".step-{step:08d}.part", step), folder, f"step-{step:08d}")


@pytest.mark.parametrize("before", ["none", "older", "torn"])
def test_latest_never_dangles_and_half_a_checkpoint_never_has_a_name(tmp_path, monkeypatch, before):
    """A kill between any two calls that change the disk; the one of step 7 is there as a whole or
    not at all."""
    at, is_over = 0, False
    while not is_over:
        at, folder = at + 1, tmp_path / str(at)
        folder.mkdir()
        if before != "none":
            publish(write_part(folder / ".step-00000004.part", 4), folder, "step-00000004")
        if before == "torn":
            tear(write_checkpoint(folder, 7))
        with monkeypatch.context() as patched:
            Killer(patched, folder, at)
            try:
                publish_again(folder)
                is_over = True
            except Killed:
                pass
        for path in folder.glob("step-*"):
            assert find_damage(path) is None or before == "torn"
        if (folder / "latest").exists():
            latest = (folder / "latest").read_text()
            assert find_damage(folder / latest) is None and latest in ("step-00000004", "step-00000007")
        assert before == "none" or find_checkpoint(folder).step in (4, 7)
        publish_again(folder, 9)
        assert find_checkpoint(folder).step == 9 and (folder / "latest").read_text() == "step-00000009"
    assert at > 12


@pytest.mark.parametrize("kind", ["file", "link", "newer", "whole", "note"])
def test_what_has_the_name_of_a_new_checkpoint_and_is_not_ours_gets_another_name(tmp_path, caplog, kind):
    target = tmp_path / "step-00000007"
    if kind == "file":
        target.write_text("a file")
    elif kind == "link":
        target.symlink_to(tmp_path)
    else:
        write_checkpoint(tmp_path, 7, num_bytes=11)
        if kind == "newer":
            rewrite(target, format_version=2)
        if kind == "note":
            (tear(target) / "note.txt").write_text("mine")
    old = content_of(target)
    publish_again(tmp_path)
    assert find_checkpoint(tmp_path).step == 7 and content_of(tmp_path / "step-00000007.kept-1") == old
    assert "is now called step-00000007.kept-1" in caplog.text
    assert names(tmp_path) == ["latest", "step-00000007", "step-00000007.kept-1"]


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_latest_of_the_users_is_left_and_the_checkpoint_counts(tmp_path, caplog, kind):
    write_checkpoint(tmp_path, 4)
    if kind == "link":
        (tmp_path / "latest").symlink_to(tmp_path / "step-00000004" / "complete.json")
    else:
        (tmp_path / "latest").mkdir()
    old = content_of(tmp_path / "latest"), content_of(tmp_path / "step-00000004")
    publish_again(tmp_path)
    assert find_checkpoint(tmp_path).step == 7 and "step 00000007 is saved, but" in caplog.text
    assert (content_of(tmp_path / "latest"), content_of(tmp_path / "step-00000004")) == old
