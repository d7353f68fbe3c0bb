"""The observer that writes a run's records: run.json, records/rank-*.jsonl, bad_clips.csv, outcome.json.

It never makes the host wait for a busy device: memory is read when a step's event arrives (the allocator's figures are on
the host), but loss, gradient norm and phase times of step k are asked for when step k+1 arrives and step k is long done.
So `latest` is one step behind until the run ends.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mats_ds.clips import BadClip
from mats_ds.events import RunInfo, StepEvent
from mats_ds.metering.memory import DeviceMeter, MemoryReading
from mats_ds.metering.records import SCHEMA, RecordWriter, StepRecord
from mats_ds.metering.run_files import Outcome, write_outcome, write_run

if TYPE_CHECKING:
    import torch

BAD_CLIPS_FILE = "bad_clips.csv"
BAD_CLIPS_COLUMNS = ("rank", "step", "path", "sample", "reason")
_log = logging.getLogger(__name__)


class _Pending(NamedTuple):
    """A step whose device figures are not asked for yet."""

    event: StepEvent
    memory: MemoryReading
    unix_seconds: float
    num_bad_clips_total: int


class Recorder:
    """Writes one StepRecord per step of this rank. `latest` is the newest one written, None before the second step.

    List it before an observer that saves checkpoints: a run killed right after a save then loses the record of one step at
    most. A step's memory peak is everything since the step before was recorded, checkpoints and evaluation in between included.
    """

    def __init__(self, run_dir: str | Path, device: torch.device, *, nvml_interval_seconds: float = 1.0) -> None:
        self.latest: StepRecord | None = None
        self._run_dir = Path(run_dir)
        self._meter = DeviceMeter(device, nvml_interval_seconds=nvml_interval_seconds)
        self._run: RunInfo | None = None
        self._writer: RecordWriter | None = None
        self._pending: _Pending | None = None
        self._num_bad_clips_total = 0

    def on_start(self, run: RunInfo) -> None:
        """Open this rank's file; rank 0 writes run.json."""
        self._run = run
        self._run_dir.mkdir(parents=True, exist_ok=True)
        if run.rank == 0:
            write_run(self._run_dir, run)
            with open(self._run_dir / BAD_CLIPS_FILE, "a", encoding="utf-8") as file:
                if file.tell() == 0:
                    file.write(",".join(BAD_CLIPS_COLUMNS) + "\n")
        self._writer = RecordWriter(self._run_dir, rank=run.rank)
        self._num_bad_clips_total = _count_bad_clips(self._run_dir, rank=run.rank, up_to_step=run.first_step)
        self._meter.reset_peak()

    def on_step(self, event: StepEvent) -> None:
        """Read this step's memory, write the record of the step before."""
        assert self._run is not None, "on_start comes before on_step"
        memory = self._meter.read()
        self._meter.reset_peak()
        if event.bad_clips:
            self._num_bad_clips_total += len(event.bad_clips)
            _append_bad_clips(self._run_dir, event.bad_clips, rank=self._run.rank, step=event.step)
        self._write_pending()
        self._pending = _Pending(event, memory, time.time(), self._num_bad_clips_total)

    def on_end(self, outcome: str) -> None:
        """Write the last step's record, close the file; rank 0 writes outcome.json."""
        assert self._run is not None, "on_start comes before on_end"
        try:
            self._write_pending()
        except RuntimeError as error:  # a device that failed cannot tell the last step's loss; the outcome still counts
            _log.warning("the last step could not be recorded: %s", error)
        self._writer.close()
        if self._run.rank == 0:
            last_step = None if self.latest is None else self.latest.step
            write_outcome(self._run_dir, Outcome(outcome, last_step, time.time()))

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self.latest = _build_record(pending, self._run)
            self._writer.append(self.latest)


def _build_record(pending: _Pending, run: RunInfo) -> StepRecord:
    """The record of a finished step: here the device is asked."""
    event, memory = pending.event, pending.memory
    seconds = event.times.seconds()
    total_seconds = seconds["total"]
    return StepRecord(
        schema=SCHEMA,
        step=event.step,
        epoch=event.epoch,
        rank=run.rank,
        unix_seconds=pending.unix_seconds,
        loss=float(event.loss),
        learning_rate=float(event.learning_rate),
        grad_norm=None if event.grad_norm is None else float(event.grad_norm),
        num_clips=event.num_clips,
        num_substitutes=event.num_substitutes,
        num_bad_clips=len(event.bad_clips),
        num_bad_clips_total=pending.num_bad_clips_total,
        data_seconds=seconds["data"],
        forward_seconds=seconds["forward"],
        backward_seconds=seconds["backward"],
        optimizer_seconds=seconds["optimizer"],
        total_seconds=total_seconds,
        clips_per_second=event.num_clips / total_seconds if total_seconds > 0 else 0.0,
        kept=run.kept,
        visible=run.visible,
        targets=run.targets,
        num_tokens=run.num_tokens,
        model_flops=event.num_clips * run.model_flops_per_clip,
        hardware_flops=event.num_clips * run.hardware_flops_per_clip,
        **vars(memory),
    )


def _append_bad_clips(run_dir: Path, clips: Iterable[BadClip], *, rank: int, step: int) -> None:
    """All ranks of a machine append to one file, each call with a single write, so that lines never mix."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((rank, step, clip.path, clip.sample, clip.reason) for clip in clips)
    file = os.open(run_dir / BAD_CLIPS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, text.getvalue().encode())
    finally:
        os.close(file)


def _count_bad_clips(run_dir: Path, *, rank: int, up_to_step: int) -> int:
    """Bad clips that this rank met before a resume; those of steps that are done again will be met again."""
    path = run_dir / BAD_CLIPS_FILE
    if not path.exists():
        return 0
    with open(path, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row[:1] == [str(rank)] and len(row) == len(BAD_CLIPS_COLUMNS)]
    return sum(row[1].isdigit() and int(row[1]) <= up_to_step for row in rows)
