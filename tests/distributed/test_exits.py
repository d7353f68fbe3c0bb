"""Runs that end early, on real gloo ranks: what is not finite, signals, full disks, lost and
hanging ranks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time

import pytest
import torch

from mats_ds.core.checkpoint_files import find_damage
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.training.checkpoints import checkpoint, pruning, saver
from mats_ds.training.checkpoints.checkpoint import find_checkpoint
from tests.training import test_fit
from tests.training.checkpoint_content import content_of, names, tear, write_checkpoint
from tests.training.test_fit import LossLog, train


class PoisonedModel(MaskedAutoencoder):
    """Its loss is not a number for the clip with key 70, which is in step 5, on the second of two
    ranks."""

    poison = (70,)

    def forward(self, frames_BTHWC, seed_B=None):
        is_poisoned = torch.isin(seed_B, torch.tensor(self.poison)).any()
        return super().forward(frames_BTHWC, seed_B) * torch.where(is_poisoned, float("nan"), 1.0)


class TwicePoisonedModel(PoisonedModel):
    poison = (70, 120)  # 120: step 8


class At(LossLog):
    """Does something after a step, on one rank."""

    def __init__(self, step, rank, act):
        super().__init__()
        self.step, self.rank, self.act = step, rank, act

    def on_start(self, run):
        self.is_mine = run.rank == self.rank

    def on_step(self, event):
        super().on_step(event)
        if self.is_mine and event.step == self.step:
            self.act()


def train_and_act(options, step, rank, act):
    return train(**options, log=At(step, rank, act))


def train_and_signal(options, number):
    def act():
        os.kill(os.getpid(), number)

    return train_and_act(options, 3, 1, act)


def train_options(options):
    return train(**options)


@pytest.mark.slow
def test_one_step_that_is_not_finite_is_left_out(ranks, tmp_path):
    options = {"model_class": PoisonedModel, "folder": tmp_path, "checkpoint_steps": 1, "num_steps": 7}
    for _, losses, _, outcome, _ in ranks(train_options, 2, options):
        assert outcome == "finished" and [loss == loss for loss in losses] == [True] * 4 + [False] + [True] * 2
        assert losses[5] < losses[3]  # the weights were not touched by the step between
    found = find_checkpoint(tmp_path / "checkpoints")
    assert found.step == 7


@pytest.mark.slow
def test_a_second_one_stops_all_ranks_and_names_step_and_clips(ranks, tmp_path):
    options = {"model_class": TwicePoisonedModel, "folder": tmp_path, "checkpoint_steps": 1, "num_steps": 9}
    texts = ranks(save_while_one_is_written, 2, options, expect_errors=True)
    assert len(texts) == 2
    for text in texts:
        assert "TrainingStopped: the loss of step 8 is not finite on 1 rank, and so was step 5; its clips:\n" in text
        assert "video120.mp4" in text and "lower optim.base_lr" in text
        assert "step 7 was written in full, go on with --resume auto --out" in text, "though it was being written"
    assert find_checkpoint(tmp_path / "checkpoints").step == 7


SLOW_SIGNALS = [pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, *SLOW_SIGNALS])
def test_a_signal_to_any_rank_saves_and_ends_all(ranks, tmp_path, number):
    options = {"folder": tmp_path, "num_steps": 6}
    straight = ranks(train_options, 2, {"num_steps": 6})[0][1]
    for text in ranks(train_and_signal, 2, options, number, expect_errors=True):
        assert f"TrainingInterrupted: {number.name} came to rank 1: step 4 of 6 is saved, go on with --resume auto" in text
    assert find_checkpoint(tmp_path / "checkpoints").step == 4
    for _, losses, *_ in ranks(train_options, 2, {**options, "resume": True}):
        assert losses == straight[4:]


def fail_to_write(options, rank):
    """The second checkpoint cannot be written by one rank."""
    plain, written = saver._write, []

    def write(state, path, name):
        written.append(name)
        if len(written) > (4 if rank == 0 else 1) and int(os.environ["RANK"]) == rank:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return plain(state, path, name)

    saver._write = write
    return train(**options)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_fills_up_on_one_rank_ends_all_and_keeps_what_was_saved(ranks, tmp_path, rank):
    options = {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 6}
    for text in ranks(fail_to_write, 2, options, rank, expect_errors=True):
        assert "TrainingStopped: the checkpoint of step " in text and f"rank {rank}: [Errno 28] No space left on device" in text
        assert "go on with --resume auto" in text
    checkpoints = tmp_path / "checkpoints"
    assert {find_damage(path) for path in checkpoints.glob("step-*")} == {None} and not list(checkpoints.glob(".*"))
    assert find_checkpoint(checkpoints).step in (2, 4)


def train_on_a_full_disk(options, free):
    saver.free_bytes = pruning.free_bytes = lambda folder: free
    return train(**options)


def test_without_room_for_one_checkpoint_it_does_not_begin(ranks, tmp_path):
    for text in ranks(train_on_a_full_disk, 2, {"folder": tmp_path}, 1000, expect_errors=True):
        assert "TrainingStopped: no room for a checkpoint in" in text and "0.00 GiB are free" in text


def test_a_folder_that_cannot_be_written_is_named(ranks, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for text in ranks(train_options, 2, {"folder": tmp_path / "file" / "run"}, expect_errors=True):
        assert "TrainingStopped: no room for a checkpoint in" in text and "Not a directory" in text


def die(options, rank):
    return train_and_act(options, 3, rank, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_the_others_of_a_rank_that_was_killed_end_and_say_which(ranks, tmp_path):
    began = time.monotonic()
    dead, text = ranks(die, 2, {"folder": tmp_path, "num_steps": 100_000}, 0, expect_errors=None)
    assert dead == "the process died without a word"
    assert (
        "RanksLost: rank 0 (process " in text
        and "has died (" in text
        and "no step is saved, start again with --resume auto" in text
    )
    assert time.monotonic() - began < 60


class Stuck:
    """Micro-batches that stop coming after the twentieth, on one rank."""

    def __init__(self, batches, is_stuck):
        self.batches, self.is_stuck, self.number = batches, is_stuck, 0

    def __next__(self):
        self.number += 1
        if self.is_stuck and self.number > 20:
            time.sleep(600)
        return next(self.batches)


def train_and_wait(options, stuck_rank, said):
    sys.stderr = said.with_suffix(f".{os.environ['RANK']}").open("w")
    plain = test_fit.endless_batches
    test_fit.endless_batches = lambda plan, rank, *more: Stuck(plain(plan, rank, *more), rank == stuck_rank)
    return train(**options, hang_seconds=4.0)


@pytest.mark.slow
def test_a_rank_whose_clips_do_not_come_ends_and_takes_the_others_along(ranks, tmp_path):
    began, said = time.monotonic(), tmp_path / "said.txt"
    answers = ranks(train_and_wait, 2, {"folder": tmp_path, "num_steps": 100_000}, 1, said, expect_errors=None)
    assert answers[1] == "the process died without a word" and "RanksLost" in answers[0]
    assert "stopped: rank 1 has waited " in said.with_suffix(".1").read_text()
    assert time.monotonic() - began < 90


def train_and_plan(options):
    plain, planned = saver.checkpoint_bytes, []

    def plan(engine, extra=None):
        planned.append(plain(engine, extra))
        return planned[-1]

    saver.checkpoint_bytes = plan
    train(**options)
    return planned[-1]


def test_the_planned_size_of_a_checkpoint_is_what_it_takes(ranks, tmp_path):
    [planned, _] = ranks(train_and_plan, 2, {"folder": tmp_path, "num_steps": 1})
    taken = sum(file.stat().st_size for file in (tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert planned - saver.SMALL_FILES_BYTES <= taken <= planned


def train_on_a_small_disk(options, num_checkpoints):
    """The disk has room for so many checkpoints of the planned size, and what they take is gone."""
    planned, plain = [], saver.checkpoint_bytes

    def plan(engine, extra=None):
        planned.append(plain(engine, extra))
        return planned[-1]

    def free(folder):
        used = sum(file.stat().st_blocks * 512 for file in folder.glob("step-*/*"))
        return int(num_checkpoints * (planned[-1] - saver.SMALL_FILES_BYTES)) + saver.SMALL_FILES_BYTES - used

    saver.checkpoint_bytes, pruning.free_bytes, saver.free_bytes = plan, free, free
    return train(**options)


def test_older_checkpoints_make_room_for_a_new_one(ranks, tmp_path):
    """Two are to stay and a third has no room beside them."""
    options = {"folder": tmp_path, "checkpoint_steps": 1, "num_steps": 4}
    ranks(train_on_a_small_disk, 1, options, 2.3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000003", "step-00000004"]


@pytest.mark.slow
def test_room_that_cannot_be_made_costs_nothing(ranks, tmp_path):
    """One and a half have room: the second save stops the run, and the first one is there."""
    options = {"folder": tmp_path, "checkpoint_steps": 1, "num_steps": 4}
    for text in ranks(train_on_a_small_disk, 2, options, 1.5, expect_errors=True):
        assert "TrainingStopped: no room for a checkpoint in" in text
    assert find_checkpoint(tmp_path / "checkpoints").step == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncate", "flip", "unseal"])
def test_a_torn_newest_one_costs_neither_the_one_resumed_from_nor_the_new_one(ranks, tmp_path, how):
    """One is to be kept; the run goes on from 2, as 5 is torn, and is asked to end after 4."""
    straight = ranks(train_options, 2, {"num_steps": 6})[0][1]
    folder = tmp_path / "checkpoints"
    ranks(train_options, 2, {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 2, "keep": 1})
    tear(write_checkpoint(folder, 5), how)
    options = {"folder": tmp_path, "num_steps": 6, "keep": 1, "resume": True}
    for text in ranks(train_and_signal, 2, options, signal.SIGTERM, expect_errors=True):
        assert "step 4 of 6 is saved" in text
    assert find_checkpoint(folder).step == 4 and find_damage(folder / "step-00000002") is None
    assert (folder / "latest").read_text() == "step-00000004"
    for _, losses, *_ in ranks(train_options, 2, options):
        assert losses == straight[4:]
    assert names(folder) == ["latest", "step-00000004", "step-00000006", "zero_to_fp32.py", "zero_to_torch.py"]


@pytest.mark.slow
def test_what_only_looks_like_a_checkpoint_neither_stops_a_run_nor_goes(ranks, tmp_path):
    folder = tmp_path / "checkpoints"
    ranks(train_options, 2, {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 2, "keep": 1})
    shutil.copytree(folder / "step-00000002", folder / "step-best")
    (folder / "step-00000000.log").write_text("a log")
    (folder / "step-1").mkdir()
    (folder / "step-00000009").symlink_to(folder / "step-best")
    (folder / ".step-00000001.part").mkdir()
    (folder / ".step-00000001.part" / "notes.txt").write_text("mine")
    others = ["step-best", "step-00000000.log", "step-1", "step-00000009", ".step-00000001.part"]
    kept = {name: content_of(folder / name) for name in others}
    options = {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 8, "keep": 1, "resume": True}
    for _, losses, _, outcome, _ in ranks(train_options, 2, options):
        assert outcome == "finished" and len(losses) == 6
    assert find_checkpoint(folder).step == 8 and (folder / "latest").read_text() == "step-00000008"
    assert {name: content_of(folder / name) for name in others} == kept


def test_deepspeeds_scripts_are_not_written_through_links(ranks, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "mine.py").write_text("mine")
    (tmp_path / "checkpoints" / "zero_to_fp32.py").symlink_to(tmp_path / "mine.py")
    ranks(train_options, 1, {"folder": tmp_path, "num_steps": 1})
    assert (tmp_path / "mine.py").read_text() == "mine" and find_checkpoint(tmp_path / "checkpoints").step == 1


def train_and_break(options, name):
    """The second publication of rank 0 fails after the checkpoint has its name, in what comes
    then."""
    plain, calls = getattr(checkpoint, name), []

    def fail(*arguments, **rest):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(*arguments, **rest)

    setattr(checkpoint, name, fail)
    return train(**options)


@pytest.mark.slow
def test_a_latest_that_has_no_room_neither_stops_the_run_nor_dangles(ranks, tmp_path):
    """Out of names for files, say. The checkpoint that it names stays as long as it does."""
    folder = tmp_path / "checkpoints"
    options = {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 4, "keep": 1}
    for _, _, _, outcome, _ in ranks(train_and_break, 2, options, "write_text"):
        assert outcome == "finished"
    assert (folder / "latest").read_text() == "step-00000002" and find_checkpoint(folder).step == 4
    assert find_damage(folder / "step-00000002") is None


def train_and_forbid(options):
    def act():
        plain = os.mkdir

        def refuse(path, *rest, **named):
            if ".step-" in str(path):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            plain(path, *rest, **named)

        os.mkdir = refuse

    return train(**options, log=At(3, 0, act))


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_in_mid_run_stops_all_ranks_and_keeps_what_was_saved(ranks, tmp_path):
    options = {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 6}
    for text in ranks(train_and_forbid, 2, options, expect_errors=True):
        assert "TrainingStopped: no folder for the checkpoint of step 4: [Errno 30] Read-only file system" in text
        assert "go on with --resume auto" in text
    assert find_checkpoint(tmp_path / "checkpoints").step == 2


def save_while_one_is_written(options):
    """A save is asked for at every step, and the disk takes longer than a step."""
    plain = saver._write
    saver._write = lambda *arguments: (time.sleep(0.2), plain(*arguments))[1]
    return train(**options)


@pytest.mark.slow
def test_saves_that_overlap_are_written_one_after_the_other(ranks, tmp_path):
    options = {"folder": tmp_path, "checkpoint_steps": 1, "num_steps": 5}
    for _, _, _, outcome, _ in ranks(save_while_one_is_written, 2, options):
        assert outcome == "finished"
    folder = tmp_path / "checkpoints"
    assert [name for name in names(folder) if "step" in name] == ["step-00000004", "step-00000005"]
    assert find_checkpoint(folder).step == 5
