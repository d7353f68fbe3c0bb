"""A run that is asked to stop says that a step is saved only where it is."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

from mats_ds.core.events import StepEvent, StepNumbers
from mats_ds.distributed.exits import TrainingInterrupted, TrainingStopped
from mats_ds.training import loop
from mats_ds.training.observers import Checkpointer


class Saver:
    def __init__(self):
        self.saved = []

    def begin(self, step, extra):
        self.saved.append(step)

    def poll(self):
        pass

    finish = poll


def interrupted_run(monkeypatch, losses):
    """On a GPU, where what the ranks agreed on is read a step later: rank 0 is asked to stop in the
    first step."""
    monkeypatch.setattr(loop, "gather_on_all", lambda value, ranks: [value])
    saver = Saver()
    fields = dict.fromkeys(StepEvent.__dataclass_fields__)

    def take_step(step):
        loss = torch.tensor(losses[step])
        agreed = loop._Agreed(float(not math.isfinite(loss)), 0.0, float(step == 0), 0.0, losses[step], 0.0, 0.0)
        event = StepEvent(**fields | {"step": step + 1, "loss": loss, "skipped": False})
        numbers = StepNumbers(torch.tensor(agreed))
        agreement = loop._Agreement(step, numbers, [loss], [(f"video{step}.mp4",)], (), False, None)
        return event, agreement

    train = loop._Loop(
        engine=SimpleNamespace(train=lambda: None),
        batches=iter(()),
        run=SimpleNamespace(device="cuda", first_step=0, total_steps=9, run_dir="run", learning_rate=1e-3),
        learning_rate=None,
        loss_of=None,
        observers=[Checkpointer(saver, every_steps=0)],
        num_videos=3,
        max_bad_fraction=0.1,
        mending="mend them",
        what_is_lost=lambda: None,
        finish_saves=lambda: None,
        watchdog=SimpleNamespace(enter=lambda phase: None, request="SIGTERM came to rank 0"),
    )
    monkeypatch.setattr(train, "take_step", take_step)
    with contextlib.suppress(TrainingInterrupted):
        train.train()
        return saver, None
    return saver, "interrupted"


def test_the_step_that_is_said_to_be_saved_is(monkeypatch):
    saver, outcome = interrupted_run(monkeypatch, [1.0, 0.9, 0.8])
    assert (saver.saved, outcome) == ([2], "interrupted")


def test_a_last_loss_that_is_not_finite_is_told_instead(monkeypatch):
    with pytest.raises(TrainingStopped, match=r"the loss of step 2 is not finite on 1 rank; its clips:\n  video1\.mp4"):
        interrupted_run(monkeypatch, [1.0, math.nan, 0.8])
