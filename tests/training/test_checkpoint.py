"""Checkpoints are whole or passed over."""

from __future__ import annotations

import json

import pytest

from mats_ds.training.checkpoint import find_checkpoint, seal, what_is_broken


def make_checkpoint(folder, step, *, world_size=2):
    path = folder / f"step-{step:08d}"
    (path / "sub").mkdir(parents=True)
    (path / "weights.pt").write_bytes(b"w" * 1000)
    (path / "sub" / "states.pt").write_bytes(bytes(range(256)))
    seal(path, step=step, world_size=world_size)
    return path


def test_a_sealed_folder_is_whole(tmp_path):
    assert what_is_broken(make_checkpoint(tmp_path, 5)) is None


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
        (damage_truncate, "has 999 bytes instead of 1000"),
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
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        find_checkpoint(tmp_path)


def test_no_checkpoint_at_all(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_one_checkpoint_can_be_named(tmp_path):
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path / "step-00000005").step == 5
