"""Random folders, and a kill between any two calls that change the disk: a whole checkpoint, once
published, is followed by a newer whole one before it goes, and what is not ours stays byte for
byte."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil

import pytest

from mats_ds.core.checkpoint_files import find_damage
from mats_ds.training.checkpoints import pruning
from mats_ds.training.checkpoints.checkpoint import find_checkpoint
from mats_ds.training.checkpoints.pruning import CheckpointFolder
from tests.training.checkpoint_content import content_of, names, tear, write_checkpoint, write_part
from tests.training.kills import Killed, Killer

FOREIGN = [
    "step-best", "step-1", "step-000000012", "step-0000001x", "step-00000000.log", "step-", "step-٠٠٠٠٠٠١٢", ".step-best.part",
    ".step-1.part", "notes.txt", "STEP-00000003", " step-00000003", "step-00000003 ", ".latest.mine.part",
]  # fmt: skip


def make_folder(folder, chance):
    """Whole and torn checkpoints, and what is not ours. Returns (names that are not ours, the one
    resumed from)."""
    folder.mkdir()
    numbers = sorted(chance.sample(range(1, 30), chance.randint(1, 7)))
    for step in numbers:
        checkpoint = write_checkpoint(folder, step)
        if chance.random() < 0.4:
            tear(checkpoint, chance.choice(["truncate", "flip", "remove", "unseal"]))
        if chance.random() < 0.1:
            (checkpoint / "mine.txt").write_text("mine")
        when = chance.choice([0, 10**9, 4 * 10**9])  # a clock that jumped
        os.utime(checkpoint, (when, when))
    foreign = chance.sample(FOREIGN, 5)
    for name in foreign:
        kind = chance.choice(["copy", "file", "link", "folder"])
        if kind == "copy":
            shutil.copytree(folder / f"step-{numbers[-1]:08d}", folder / name)
        elif kind == "file":
            (folder / name).write_text(name)
        elif kind == "link":
            (folder / name).symlink_to(folder / f"step-{numbers[0]:08d}")
        else:
            (folder / name).mkdir()
            (folder / name / "mine").write_text("mine")
    used = {f"step-{step:08d}" for step in numbers}
    name = f"step-{chance.choice([step for step in range(1, 30) if f'step-{step:08d}' not in used]):08d}"
    (folder / name).symlink_to(folder / f"step-{numbers[-1]:08d}") if chance.random() < 0.5 else (folder / name).write_text("a")
    part = write_part(folder / ".step-00000044.part", 44)
    if chance.random() < 0.5:
        (part / "mine.txt").write_text("mine")
        foreign.append(part.name)
    whole = [step for step in numbers if find_damage(folder / f"step-{step:08d}") is None]
    return [*foreign, name], max(whole, default=None)


def whole_steps(folder):
    found = [path for path in folder.iterdir() if re.fullmatch("step-[0-9]{8}", path.name)]
    return {int(path.name[5:]) for path in found if not path.is_symlink() and path.is_dir() and find_damage(path) is None}


def check(folder, foreign, before, resumed):
    """What has to hold at any moment. before: the steps that were whole. Returns those that are."""
    now = whole_steps(folder)
    for gone in before - now:
        assert any(newer > gone for newer in now), f"step {gone} went and nothing newer is whole: {sorted(now)}"
    assert resumed is None or resumed in now
    if before:
        assert find_checkpoint(folder).step == max(now) >= max(before)
    if (folder / "latest").exists():
        assert (folder / (folder / "latest").read_text()).is_dir()
    assert {name: content_of(folder / name) for name in foreign} == foreign
    return now


def live(folder, chance, *, resumed):
    """A run: it saves, makes room, saves. Yields after each."""
    on_disk = CheckpointFolder(
        folder,
        keep=chance.choice([1, 2, 3]),
        keep_every_steps=chance.choice([0, 0, 4]),
        protected=frozenset() if resumed is None else frozenset([f"step-{resumed:08d}"]),
    )
    step = (resumed or 0) + chance.randint(1, 4)
    taken = {path.name for path in folder.iterdir() if path.is_symlink() or path.is_file()}
    for _ in range(2):
        while f"step-{step:08d}" in taken:  # its own test
            step += 1
        with contextlib.suppress(OSError):
            on_disk.make_room(pruning.free_bytes(folder) + chance.choice([-1, 1, 9000, 10**9]))
        yield None
        part = folder / f".step-{step:08d}.{chance.randrange(16**12):012x}.part"
        on_disk.publish(write_part(part, step), f"step-{step:08d}")
        yield step
        step += chance.randint(1, 5)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, *range(2, 7)))])
def test_a_whole_checkpoint_is_followed_by_a_newer_one_before_it_goes(tmp_path, monkeypatch, seed):
    """Random folders, and a kill between any two calls that change the disk; then the next
    start."""
    chance = random.Random(seed)
    template = tmp_path / "template"
    names_of_others, resumed = make_folder(template, chance)
    monkeypatch.setattr(pruning, "FREE_SECONDS", 0.0)
    num_calls, at = None, None
    while num_calls is None or at <= num_calls:
        folder = tmp_path / f"run-{at}"
        shutil.copytree(template, folder, symlinks=True)
        for link in [path for path in folder.iterdir() if path.is_symlink()]:
            target = folder / os.path.basename(os.readlink(link))
            link.unlink()
            link.symlink_to(target)
        foreign = {name: content_of(folder / name) for name in names_of_others}
        chance.seed(seed)
        before, published = whole_steps(folder), set()
        with monkeypatch.context() as patched:
            killer = Killer(patched, folder, at)
            try:
                for step in live(folder, chance, resumed=resumed):
                    published |= {step} - {None}
            except Killed:
                pass
        now = check(folder, foreign, before | published, resumed)
        CheckpointFolder(folder, keep=1).prune()  # the next start cleans up
        check(folder, foreign, now, None)
        left = set(names(folder)) - set(foreign) - {"latest"}
        assert all(re.fullmatch("step-[0-9]{8}", name) for name in left), left
        if at is None:
            num_calls, at = killer.num_calls, 0
            assert num_calls > 30
        at += 1
        shutil.rmtree(folder)
