"""Observers of a run that need no metering: the console's progress, checkpoints, and DeepSpeed's
monitors."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mats_ds.core.events import OneStepLate, RunInfo, StepEvent
from mats_ds.core.format import format_duration
from mats_ds.core.progress import BAR_FORMAT, TimeLeft
from mats_ds.distributed.collectives import gather_on_all
from mats_ds.distributed.exits import FolderLost, TrainingStopped
from mats_ds.training.checkpoints.saver import CheckpointSaver
from mats_ds.training.csv_monitor import continue_csv

logger = logging.getLogger(__name__)

GIBIBYTE = 2**30
FALLBACK_COLUMNS = 120
REFRESH_SECONDS = 1.0


@dataclass
class Console:
    """Progress on rank 0: loss, clips/s, kept tokens, memory, and how long the run still takes. A
    bar on a terminal, elsewhere a line every `log_steps`; and one every `quiet_seconds` in which
    nothing was said, so that a long step is seen to be one.

    memory_bytes: asks the recorder for the newest memory figure, (bytes, name), or None before
    there is one. On a GPU a step is shown when the next one has been launched: its loss has come by
    then.
    """

    log_steps: int
    memory_bytes: Callable[[], tuple[int, str] | None]
    stream: Any = None
    quiet_seconds: float = 60.0
    done: int = field(default=0, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)

    def on_start(self, run: RunInfo) -> None:
        self.run = run
        self.stream = self.stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self.bar = None
        if run.rank == 0 and self.is_terminal:
            width = {"dynamic_ncols": True} if _columns(self.stream) else {"ncols": FALLBACK_COLUMNS}
            shown = dict(unit="step", file=self.stream, bar_format=BAR_FORMAT, **width)
            self.bar = tqdm(total=run.total_steps, initial=run.first_step, **shown)
            # log lines scroll above the bar instead of tearing it
            self.above_bar = logging_redirect_tqdm()
            self.above_bar.__enter__()
        self.since_time, self.since_clips, self.clips = time.perf_counter(), 0, 0
        self.done, self.left = run.first_step, TimeLeft(run.total_steps, done=run.first_step)
        self.due = OneStepLate(run)
        self.step_began = self.spoke = time.monotonic()
        if run.rank == 0:
            threading.Thread(target=self._break_silence, name="mats-console", daemon=True).start()

    def on_step(self, event: StepEvent) -> None:
        self.clips += event.num_clips * self.run.world_size
        self.done, self.step_began = event.step, time.monotonic()
        self.left.seconds(event.step)  # notes the first step, which counts for nothing
        for due in self.due.take(event):
            self._show(due)

    def _show(self, event: StepEvent) -> None:
        last = event.is_last
        if self.run.rank != 0 or (event.step % self.log_steps and not last and self.bar is None):
            return
        self.spoke = time.monotonic()
        if self.bar is None:
            print(f"step {event.step:,}/{self.run.total_steps:,}  {self._state(event)}", file=self.stream, flush=True)
        else:  # once a second is enough for a reader
            if last or event.step == self.run.first_step + 1 or time.perf_counter() - self.since_time > REFRESH_SECONDS:
                self.bar.set_postfix_str(self._state(event), refresh=False)
            self.bar.update(1)

    def on_end(self, outcome: str) -> None:
        self._ended.set()
        if self.bar is not None:
            self.above_bar.__exit__(None, None, None)
            self.bar.close()

    def _state(self, event: StepEvent) -> str:
        now = time.perf_counter()
        rate = (self.clips - self.since_clips) / max(1e-9, now - self.since_time)
        self.since_time, self.since_clips = now, self.clips
        memory = self.memory_bytes()
        memory_text = f"  {memory[1]} {memory[0] / GIBIBYTE:.2f} GiB" if memory else ""
        return (
            f"loss {float(event.loss):.4f}  {rate:.1f} clips/s  kept {self.run.kept:,}/{self.run.num_tokens:,} tokens"
            f"{memory_text}  lr {event.learning_rate:.2e}  {self.left.describe(event.step)}"
        )

    def _break_silence(self) -> None:
        """Say about once in `quiet_seconds` which step is running, for as long as nothing else is
        said. It reads no figure of the device, which is busy."""
        while not self._ended.wait(max(0.01, self.spoke + self.quiet_seconds - time.monotonic())):
            now = time.monotonic()
            if now - self.spoke < self.quiet_seconds:
                continue
            self.spoke = now
            if self.done >= self.run.total_steps:  # what comes after the last step says so itself
                continue
            since = format_duration(now - self.step_began)
            # between two steps may lie a test or a checkpoint
            state = f"still running, for {since}" if self.done == self.run.first_step else f"not done yet, {since} after the last"
            text = f"step {self.done + 1:,}/{self.run.total_steps:,}  {state}; {self.left.describe(self.done)}"
            if self.bar is None:
                print(text, file=self.stream, flush=True)
            else:
                self.bar.set_postfix_str(text)


def _columns(stream: Any) -> int:
    """Width of the terminal, 0 where it does not tell (a pseudo-terminal without a size)."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


@dataclass
class Checkpointer:
    """Saves every `every_steps` steps (0: only at the end) while training goes on, and after the
    last one; never a loss that is not finite, unless its step was skipped.

    `extra()` is stored in the checkpoint beside the engine. List it after observers whose state
    that is. what_is_lost(): why what this rank writes is lost, or None: a folder that is gone is
    not made again for a checkpoint.
    """

    saver: CheckpointSaver
    every_steps: int
    extra: Callable[[], Mapping[str, Any]] = dict
    what_is_lost: Callable[[], str | None] | None = None

    def on_start(self, run: RunInfo) -> None:
        """Raises TrainingStopped where not even one checkpoint has room."""
        self.run = run
        self.saver.check_room(self.extra())

    def on_step(self, event: StepEvent) -> None:
        self.saver.poll()
        due = self.every_steps and event.step % self.every_steps == 0
        # The loss is the same on all ranks, so they decide alike; it is looked at, and waited for,
        # only when a save is due.
        if (due or event.is_last) and (event.skipped or math.isfinite(float(event.loss))):
            self._check_folder(event.step)
            self.saver.begin(event.step, self.extra())
            if event.is_last:
                self.saver.finish()

    def _check_folder(self, step: int) -> None:
        """Raises FolderLost on all ranks where one of them has lost it."""
        if self.what_is_lost is None:
            return
        if why := next(filter(None, gather_on_all(self.what_is_lost(), self.run)), None):
            raise FolderLost(why, step=step)

    def on_end(self, outcome: str) -> None:
        """Publish what is on its way where all ranks stopped alike; a rank that failed alone
        cannot."""
        # not FolderLost: it could only make half a folder
        if outcome.startswith(TrainingStopped.__name__):
            self.saver.finish()


@dataclass
class Monitor:
    """Adds this trainer's figures to the monitors that the DeepSpeed JSON switches on (tensorboard,
    wandb, csv_monitor, comet).
    """

    engine: Any
    every_steps: int
    memory_bytes: Callable[[], tuple[int, str] | None]

    def on_start(self, run: RunInfo) -> None:
        self.run, self.due = run, OneStepLate(run)
        self.clips = run.first_step * run.global_batch
        if run.first_step and run.rank == 0 and self.engine.monitor.csv_monitor is not None:
            continue_csv(self.engine.monitor.csv_monitor, clips=self.clips)

    def on_step(self, event: StepEvent) -> None:
        for due in self.due.take(event):
            self._write(due)

    def _write(self, event: StepEvent) -> None:
        self.clips += event.num_clips * self.run.world_size
        if event.step % self.every_steps or not self.engine.monitor.enabled or self.run.rank != 0:
            return
        figures = {"mats/loss": float(event.loss), "mats/learning_rate": event.learning_rate}
        if event.grad_norm is not None:
            figures["mats/grad_norm"] = float(event.grad_norm)
        seconds = event.times.seconds()
        if seconds["total"] > 0:
            figures["mats/clips_per_second"] = event.num_clips * self.run.world_size / seconds["total"]
            figures["mats/waiting_for_data_share"] = seconds["data"] / seconds["total"]
        memory = self.memory_bytes()
        if memory:
            figures["mats/memory_gib"] = memory[0] / GIBIBYTE
        self.engine.monitor.write_events([(name, value, self.clips) for name, value in figures.items()])

    def on_end(self, outcome: str) -> None:
        """DeepSpeed's writers flush on their own."""
