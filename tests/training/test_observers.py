"""What a person sees of a run, and when a checkpoint is due."""

from __future__ import annotations

import io
import logging
import re
import time
from dataclasses import replace

import pytest
import torch

from mats_ds.core.events import PhaseClock, RunInfo, StepEvent
from mats_ds.training.observers import Checkpointer, Console


def make_run(**changes):
    fields = dict(
        run_dir="runs/x", rank=0, world_size=2, device="cpu", device_name="CPU", recipe_name="test", model_name="tiny",
        num_parameters=1, precision="fp32", zero_stage=2, micro_batch=3, accumulation=1, global_batch=6, total_steps=4,
        steps_per_epoch=2, first_step=0, learning_rate=1e-3, num_tokens=512, kept=153, visible=51, targets=102,
        forward_macs_per_clip=1, model_flops_per_clip=1, hardware_flops_per_clip=1,
    )  # fmt: skip
    return RunInfo(**(fields | changes))


def make_event(step, *, loss=0.5):
    clock = PhaseClock(torch.device("cpu"))
    clock.start()
    return StepEvent(
        step=step, epoch=0, loss=torch.tensor(loss), learning_rate=1e-3, grad_norm=None, num_clips=3, times=clock.stop()
    )  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(stream, **changes):
    console = Console(log_steps=2, memory_bytes=lambda: (3 << 30, "GPU reserved peak"), stream=stream)
    console.on_start(make_run(**changes))
    for step in range(1, 5):
        console.on_step(replace(make_event(step, loss=step / 10), is_last=step == 4))
    logging.getLogger("mats_ds").warning("a line in between")
    console.on_end("finished")
    return stream.getvalue()


def test_on_a_terminal_a_bar_shows_loss_speed_tokens_and_memory():
    text = watch(Terminal())
    last = text.strip().rsplit("\r", 1)[-1]
    assert "4/4" in last
    for words in ("loss 0.4000", "clips/s", "kept 153/512 tokens", "GPU reserved peak 3.00 GiB"):
        assert words in last


def test_elsewhere_a_line_now_and_then_and_at_the_end():
    lines = watch(io.StringIO()).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 2/4", "step 4/4"]
    assert "loss 0.2000" in lines[0] and "kept 153/512 tokens" in lines[0]


def test_on_a_gpu_a_step_is_shown_with_the_next_one_and_the_last_at_once():
    """Its loss has come by then: the console does not wait for it."""
    console = Console(log_steps=2, memory_bytes=lambda: None, stream=io.StringIO())
    console.on_start(make_run(device="cuda:0", total_steps=6))
    shown = []
    for step in range(1, 7):
        console.on_step(replace(make_event(step, loss=step / 10), is_last=step == 6))
        shown.append([line.split("  ")[:2] for line in console.stream.getvalue().splitlines()])
    console.on_end("finished")
    lines = [[f"step {step}/6", f"loss {step / 10:.4f}"] for step in (2, 4, 6)]
    assert shown == [[], [], lines[:1], lines[:1], lines[:2], lines]


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_large_numbers_of_steps_and_tokens_can_be_read(stream):
    console = Console(log_steps=1, memory_bytes=lambda: None, stream=stream())
    console.on_start(make_run(total_steps=200_000, first_step=11_999, num_tokens=6_272, kept=1_881))
    console.on_step(replace(make_event(12_000), is_last=True))
    console.on_end("finished")
    text = console.stream.getvalue()
    assert "12,000/200,000" in text and "kept 1,881/6,272 tokens" in text
    assert not {"12000", "200000", "6272"} & set(re.findall(r"\d+", text))


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_every_line_says_how_long_the_run_still_takes(stream):
    console = Console(log_steps=1, memory_bytes=lambda: None, stream=stream())
    console.on_start(make_run(total_steps=8))
    assert "measured after a few steps" in console.left.describe(0)
    for step in range(1, 9):
        console.on_step(replace(make_event(step), is_last=step == 8))
        if stream is io.StringIO:
            last = console.stream.getvalue().splitlines()[-1]
            assert last.endswith("measured after a few steps" if step < 4 else "done" if step == 8 else " left"), last
    console.on_end("finished")
    assert "done" in console.stream.getvalue()


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_a_long_step_is_seen_to_be_one(stream):
    """Nothing is said of a step before it ends: the console's own clock does."""
    console = Console(log_steps=1, memory_bytes=lambda: None, stream=stream(), quiet_seconds=0.02)
    console.on_start(make_run(total_steps=8, first_step=2))
    wait_for(lambda: "step 3/8  still running, for" in console.stream.getvalue())
    console.on_step(make_event(3))
    wait_for(lambda: "step 4/8  not done yet" in console.stream.getvalue())
    console.on_end("finished")


def wait_for(condition, *, most_seconds=30.0):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < most_seconds
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_only_rank_0_speaks(stream):
    assert watch(stream(), rank=1) == ""


class Saver:
    """Writes down what a CheckpointSaver is asked to do."""

    def __init__(self):
        self.saved, self.extras, self.done = [], [], []

    def check_room(self, extra):
        self.done.append("check_room")

    def poll(self):
        self.done.append("poll")

    def begin(self, step, extra):
        self.saved.append(step)
        self.extras.append(extra)

    def finish(self):
        self.done.append("finish")


@pytest.mark.parametrize(
    ("every_steps", "events", "expected"),
    [
        (2, [{}, {}, {}, {"is_last": True}], [2, 4]),
        (3, [{}, {}, {}, {"is_last": True}], [3, 4]),
        (0, [{}, {}, {}, {"is_last": True}], [4]),
        (2, [{}, {}, {}, {"is_last": True, "loss": float("nan")}], [2]),
        (2, [{}, {"loss": float("nan"), "skipped": True}, {}, {"is_last": True}], [2, 4]),
    ],
)
def test_checkpoints_are_saved_when_due_and_at_the_end_but_never_broken_weights(every_steps, events, expected):
    saver = Saver()
    checkpointer = Checkpointer(saver, every_steps=every_steps)
    checkpointer.on_start(make_run())
    for step, event in enumerate(events, start=1):
        checkpointer.on_step(replace(make_event(step, loss=event.pop("loss", 0.5)), **event))
    assert saver.saved == expected
    assert saver.done == ["check_room", *["poll"] * 4, *["finish"] * (4 in expected)]


@pytest.mark.parametrize(("outcome", "is_finished"), [("TrainingStopped: NaN", True), ("RuntimeError: gloo", False)])
def test_a_save_on_its_way_is_ended_only_where_all_ranks_stop_alike(outcome, is_finished):
    saver = Saver()
    Checkpointer(saver, every_steps=1).on_end(outcome)
    assert saver.done == ["finish"] * is_finished


def test_what_a_run_keeps_beside_the_engine_is_asked_for_when_it_is_saved():
    saver, average = Saver(), {"ema": 0}
    checkpointer = Checkpointer(saver, every_steps=1, extra=lambda: dict(average))
    checkpointer.on_start(make_run())
    for step in (1, 2):
        average["ema"] = step
        checkpointer.on_step(make_event(step, loss=0.5))
    assert saver.extras == [{"ema": 1}, {"ema": 2}]
