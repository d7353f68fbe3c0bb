"""What may go: never a whole checkpoint without a newer whole one, nothing of the user's, and
nothing for nothing."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from mats_ds.core import checkpoint_files
from mats_ds.core.checkpoint_files import find_damage
from mats_ds.training.checkpoints import pruning
from mats_ds.training.checkpoints.checkpoint import find_checkpoint
from mats_ds.training.checkpoints.pruning import CheckpointFolder, check_names, free_bytes
from mats_ds.training.checkpoints.removal import removable_bytes
from tests.training.checkpoint_content import content_of, names, rewrite, tear, write_checkpoint, write_part

GIBIBYTE = 2**30


def steps(folder):
    return [int(name.removeprefix("step-")) for name in names(folder) if re.fullmatch("step-[0-9]{8}", name)]


def save(on_disk, step):
    on_disk.publish(write_part(on_disk.path / f".step-{step:08d}.part", step), f"step-{step:08d}")


def test_the_newest_ones_are_kept_and_unfinished_ones_removed(tmp_path):
    for step in (5, 10, 15, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / ".step-00000025.part").mkdir()
    CheckpointFolder(tmp_path, keep=2).prune()
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


def test_every_so_many_steps_one_stays(tmp_path):
    for step in (3, 4, 6, 8, 9, 10, 12):
        write_checkpoint(tmp_path, step)
    tear(tmp_path / "step-00000009")  # and a torn one is none
    CheckpointFolder(tmp_path, keep=2, keep_every_steps=3).prune()
    assert steps(tmp_path) == [3, 6, 10, 12]


@pytest.mark.parametrize("how", ["truncate", "flip", "remove", "unseal"])
def test_torn_ones_do_not_count_as_kept(tmp_path, how):
    """The newest is torn and one is to be kept: that is the newest whole one, and the new one when
    it comes."""
    for step in (3, 5):
        write_checkpoint(tmp_path, step)
    tear(write_checkpoint(tmp_path, 10), how)
    CheckpointFolder(tmp_path, keep=1).prune()
    assert steps(tmp_path) == [5, 10]
    on_disk = CheckpointFolder(tmp_path, keep=1)
    save(on_disk, 9)
    assert steps(tmp_path) == [9, 10] and find_checkpoint(tmp_path).step == 9
    save(on_disk, 12)
    assert steps(tmp_path) == [12], "a torn one goes when a newer whole one is there"


def test_a_new_checkpoint_takes_the_name_of_a_torn_one(tmp_path):
    write_checkpoint(tmp_path, 5)
    tear(write_checkpoint(tmp_path, 10))
    save(CheckpointFolder(tmp_path, keep=3), 10)
    assert names(tmp_path) == ["latest", "step-00000005", "step-00000010"] and find_checkpoint(tmp_path).step == 10


def test_the_one_resumed_from_and_what_latest_names_stay(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    (tmp_path / "latest").write_text("step-00000001")
    on_disk = CheckpointFolder(tmp_path, keep=1, protected=frozenset(["step-00000002"]))
    on_disk.prune()
    assert steps(tmp_path) == [1, 2, 3]
    for step in (4, 5):
        save(on_disk, step)
    assert steps(tmp_path) == [2, 5] and (tmp_path / "latest").read_text() == "step-00000005"


def test_what_was_just_published_stays_whatever_its_number(tmp_path):
    for step in (100, 200, 300):
        write_checkpoint(tmp_path, step)
    save(CheckpointFolder(tmp_path, keep=1), 7)
    assert steps(tmp_path) == [7, 300] and (tmp_path / "latest").read_text() == "step-00000007"


def test_one_that_only_a_newer_version_reads_is_not_broken(tmp_path):
    rewrite(write_checkpoint(tmp_path, 1), format_version=2)
    for step in (2, 3):
        write_checkpoint(tmp_path, step)
    CheckpointFolder(tmp_path, keep=1).prune()
    assert steps(tmp_path) == [1, 3]


def test_a_copy_under_the_name_of_another_step_is_the_users(tmp_path):
    write_checkpoint(tmp_path, 4).rename(tmp_path / "step-00000002")
    for step in (3, 5):
        write_checkpoint(tmp_path, step)
    kept = content_of(tmp_path / "step-00000002")
    CheckpointFolder(tmp_path, keep=1).prune()
    save(CheckpointFolder(tmp_path, keep=1), 2)
    assert content_of(tmp_path / "step-00000002.kept-1") == kept


def test_one_that_cannot_be_read_now_may_be_whole(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    plain = checkpoint_files.open_regular

    def fail(path, **rest):
        if "step-00000002" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return plain(path, **rest)

    monkeypatch.setattr(checkpoint_files, "open_regular", fail)
    assert "Input/output error" in find_damage(tmp_path / "step-00000002")
    CheckpointFolder(tmp_path, keep=2).prune()
    assert steps(tmp_path) == [1, 2, 3]


def test_files_of_the_user_in_a_checkpoint_make_it_stay(tmp_path, caplog):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step-00000001" / "pytorch_model.bin").write_text("merged")
    (tmp_path / "step-00000002" / "link").symlink_to(tmp_path)
    kept = content_of(tmp_path)
    CheckpointFolder(tmp_path, keep=1).prune()
    assert content_of(tmp_path) == kept and "'pytorch_model.bin'" in caplog.text and "'link'" in caplog.text


def test_files_are_hashed_once_and_only_if_it_matters(tmp_path, monkeypatch):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    hashed, plain = [], checkpoint_files.hash_stream
    monkeypatch.setattr(checkpoint_files, "hash_stream", lambda stream: (hashed.append(stream.name), plain(stream))[1])
    on_disk = CheckpointFolder(tmp_path, keep=2)
    on_disk.prune()
    # three files of each of the two that stay
    assert len(hashed) == 6 and steps(tmp_path) == [3, 4]
    save(on_disk, 5)
    save(on_disk, 6)
    assert len(hashed) == 6 and steps(tmp_path) == [5, 6]


class Disk:
    """A disk of `num_bytes`, of which the checkpoints take what they take."""

    def __init__(self, monkeypatch, folder, num_bytes):
        self.folder, self.num_bytes = folder, num_bytes
        monkeypatch.setattr(pruning, "free_bytes", lambda folder: self.free())
        monkeypatch.setattr(pruning, "FREE_SECONDS", 0.0)

    def free(self):
        files = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return self.num_bytes - sum(path.stat().st_blocks * 512 for path in files)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step, num_bytes=100_000 * step)
    used = -Disk(monkeypatch, tmp_path, 0).free()
    return Disk(monkeypatch, tmp_path, used + 1000)


def test_the_oldest_go_and_no_more_than_must(tmp_path, disk):
    sizes = [removable_bytes(tmp_path / f"step-0000000{step}") for step in (1, 2, 3, 4)]
    CheckpointFolder(tmp_path, keep=4).make_room(1000 + sizes[0] + 1)
    assert steps(tmp_path) == [3, 4]
    CheckpointFolder(tmp_path, keep=4).make_room(disk.free())
    assert steps(tmp_path) == [3, 4]


def test_nothing_goes_for_nothing(tmp_path, disk):
    """All but the newest are too little, and so it stops with all of them there."""
    kept = content_of(tmp_path)
    with pytest.raises(OSError, match=r"it needs 5\.00 GiB and 0\.00 GiB are free, and older checkpoints hold 0\.00 GiB"):
        CheckpointFolder(tmp_path, keep=1).make_room(5 * GIBIBYTE)
    assert content_of(tmp_path) == kept


def test_little_room_and_a_torn_newest(tmp_path, disk):
    """Resumed from 3, as 4 is torn: neither the one resumed from nor the torn one goes, and 1 and 2
    do."""
    tear(tmp_path / "step-00000004")
    on_disk = CheckpointFolder(tmp_path, keep=4, protected=frozenset(["step-00000003"]))
    room = sum(removable_bytes(tmp_path / f"step-0000000{step}") for step in (1, 2))
    with pytest.raises(OSError, match="are free"):
        on_disk.make_room(disk.free() + room + 1)
    assert steps(tmp_path) == [1, 2, 3, 4]
    on_disk.make_room(disk.free() + room)
    assert steps(tmp_path) == [3, 4]


def test_a_torn_one_that_is_about_to_be_replaced_makes_room_first(tmp_path, disk):
    tear(tmp_path / "step-00000004")
    room = removable_bytes(tmp_path / "step-00000004")
    CheckpointFolder(tmp_path, keep=4).make_room(disk.free() + room, replaced="step-00000004")
    assert steps(tmp_path) == [1, 2, 3]


def test_those_for_good_and_those_with_hard_links_make_no_room(tmp_path, disk):
    for file in (tmp_path / "step-00000002").iterdir():
        os.link(file, tmp_path.parent / f"{tmp_path.name}-{file.name}")
    with pytest.raises(OSError, match="are free$"):
        CheckpointFolder(tmp_path, keep=1, keep_every_steps=1).make_room(disk.free() + 1)
    with pytest.raises(OSError, match="are free, and"):
        CheckpointFolder(tmp_path, keep=1, protected=frozenset(["step-00000003"])).make_room(disk.free() + 10**6)
    assert steps(tmp_path) == [1, 2, 3, 4]
    CheckpointFolder(tmp_path, keep=1).make_room(disk.free() + 250_000)
    assert steps(tmp_path) == [2, 4]


def test_a_disk_that_gives_nothing_back_loses_one_at_most(tmp_path, disk, monkeypatch):
    """As with snapshots: the first one that goes shows it."""
    monkeypatch.setattr(pruning, "free_bytes", lambda folder: 1000)
    with pytest.raises(OSError, match="are free$"):
        CheckpointFolder(tmp_path, keep=4).make_room(500_000)
    assert steps(tmp_path) == [2, 3, 4]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, to be filled up or made read-only; `small_disk(options)` mounts it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_disk_without_names_for_files_is_told_apart_from_a_full_one(small_disk):
    folder = small_disk("size=4m,nr_inodes=20")
    write_checkpoint(folder, 1)
    check_names(folder, 9)
    for number in range(12):
        (folder / f"note-{number}").touch()
    assert free_bytes(folder) > 1_000_000
    with pytest.raises(OSError, match=r"it needs 9 files and the disk has room for \d more \(df -i\)"):
        check_names(folder, 9)


def test_a_disk_that_became_read_only_keeps_all(small_disk, caplog):
    """The checkpoint cannot be published, and the old ones are there; where only pruning fails, the
    run goes on."""
    folder = small_disk("size=4m")
    for step in (1, 2):
        write_checkpoint(folder, step)
    part = write_part(folder / ".step-00000003.part", 3)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    kept, on_disk = content_of(folder), CheckpointFolder(folder, keep=1)
    on_disk.prune()
    assert "step-00000001 cannot be removed: [Errno 30]" in caplog.text
    with pytest.raises(OSError, match="Errno 30"):
        on_disk.publish(part, "step-00000003")
    assert content_of(folder) == kept


def test_a_checkpoint_is_saved_although_the_old_ones_cannot_be_looked_through(tmp_path, monkeypatch, caplog):
    def fail(folder):
        raise OSError(5, "Input/output error", str(folder))

    write_checkpoint(tmp_path, 1)
    monkeypatch.setattr(pruning, "list_checkpoints", fail)
    save(CheckpointFolder(tmp_path, keep=1), 2)
    assert steps(tmp_path) == [1, 2] and "step-00000002 is saved, and older checkpoints stay" in caplog.text
