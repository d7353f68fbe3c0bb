"""Runs that end early, on real gloo ranks: what is not finite, signals, full disks, lost and hanging ranks."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

import pytest
import torch

from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.training import saving
from mats_ds.training.checkpoint import find_checkpoint, what_is_broken
from tests.training import test_fit
from tests.training.test_fit import LossLog, train


class PoisonedModel(MaskedAutoencoder):
    """Its loss is not a number for the clip with key 70, which is in step 5, on the second of two ranks."""

    poison = (70,)

    def forward(self, frames_BTHWC, key_B=None):
        is_poisoned = torch.isin(key_B, torch.tensor(self.poison)).any()
        return super().forward(frames_BTHWC, key_B) * torch.where(is_poisoned, float("nan"), 1.0)


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


def test_one_step_that_is_not_finite_is_left_out(ranks, tmp_path):
    options = {"model_class": PoisonedModel, "folder": tmp_path, "checkpoint_steps": 1, "num_steps": 7}
    for _, losses, _, outcome, _ in ranks(train_options, 2, options):
        assert outcome == "finished" and [loss == loss for loss in losses] == [True] * 4 + [False] + [True] * 2
        assert losses[5] < losses[3]  # the weights were not touched by the step between
    found = find_checkpoint(tmp_path / "checkpoints")
    assert found.step == 7


def test_a_second_one_stops_all_ranks_and_names_step_and_clips(ranks, tmp_path):
    options = {"model_class": TwicePoisonedModel, "folder": tmp_path, "checkpoint_steps": 1, "num_steps": 9}
    texts = ranks(train_options, 2, options, expect_errors=True)
    assert len(texts) == 2
    for text in texts:
        assert "TrainingStopped: the loss of step 8 is not finite on 1 rank(s), and so was step 5; its clips:\n" in text
        assert "video120.mp4" in text and "resume from the last checkpoint with a lower optim.base_lr" in text
    assert find_checkpoint(tmp_path / "checkpoints").step == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
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
    plain, written = saving._write, []

    def write(state, path, name):
        written.append(name)
        if len(written) > (4 if rank == 0 else 1) and int(os.environ["RANK"]) == rank:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return plain(state, path, name)

    saving._write = write
    return train(**options)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_fills_up_on_one_rank_ends_all_and_keeps_what_was_saved(ranks, tmp_path, rank):
    options = {"folder": tmp_path, "checkpoint_steps": 2, "num_steps": 6}
    for text in ranks(fail_to_write, 2, options, rank, expect_errors=True):
        assert "TrainingStopped: the checkpoint of step " in text and f"rank {rank}: [Errno 28] No space left on device" in text
        assert "go on with --resume auto" in text
    checkpoints = tmp_path / "checkpoints"
    assert {what_is_broken(path) for path in checkpoints.glob("step-*")} == {None} and not list(checkpoints.glob(".*"))
    assert find_checkpoint(checkpoints).step in (2, 4)


def train_on_a_full_disk(options, free):
    saving.free_bytes = lambda folder: free
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
    assert "RanksLost: rank 0 (process " in text and "has died (" in text and "go on with --resume auto" in text
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


def test_a_rank_whose_clips_do_not_come_ends_and_takes_the_others_along(ranks, tmp_path):
    began, said = time.monotonic(), tmp_path / "said.txt"
    answers = ranks(train_and_wait, 2, {"folder": tmp_path, "num_steps": 100_000}, 1, said, expect_errors=None)
    assert answers[1] == "the process died without a word" and "RanksLost" in answers[0]
    assert "stopped: rank 1 has waited " in said.with_suffix(".1").read_text()
    assert time.monotonic() - began < 90


def train_and_plan(options):
    plain, planned = saving.checkpoint_bytes, []

    def plan(engine, extra=None):
        planned.append(plain(engine, extra))
        return planned[-1]

    saving.checkpoint_bytes = plan
    train(**options)
    return planned[-1]


def test_the_planned_size_of_a_checkpoint_is_what_it_takes(ranks, tmp_path):
    [planned, _] = ranks(train_and_plan, 2, {"folder": tmp_path, "num_steps": 1})
    taken = sum(file.stat().st_size for file in (tmp_path / "checkpoints" / "step-00000001").iterdir())
    assert planned - saving.SMALL_FILES_BYTES <= taken <= planned


def train_with_room_for_one(options):
    saving.free_bytes = lambda folder: 0 if sum(1 for _ in folder.glob("step-*")) > 1 else 10**12
    plain, kept = saving.prune, []

    def prune(folder, *, keep, keep_every_steps):
        kept.append(keep)
        plain(folder, keep=keep, keep_every_steps=keep_every_steps)

    saving.prune = prune
    train(**options)
    return kept


def test_older_checkpoints_make_room_for_a_new_one(ranks, tmp_path):
    [kept] = ranks(train_with_room_for_one, 1, {"folder": tmp_path, "checkpoint_steps": 1, "num_steps": 3})
    assert kept == [2, 2, 2, 1, 2]  # after each save as always, and before the third one down to one
    assert find_checkpoint(tmp_path / "checkpoints").step == 3
