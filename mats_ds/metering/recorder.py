"""The observer that writes a run's records: run.json, records/rank-*.jsonl, bad_clips.csv,
outcome.json.

It never makes the host wait for a busy device: memory is read when a step's event arrives (the
allocator's figures are on the host), but loss, gradient norm and phase times of step k are read
when step k+1 arrives and step k is long done. So `latest` is one step behind until the run ends.
Where memory runs out, the allocator's state and one line on what to lower are written beside the
records.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mats_ds.core.cli import is_out_of_memory
from mats_ds.core.clips import BadClip
from mats_ds.core.events import RunInfo, StepEvent
from mats_ds.core.run_dir import FINISHED, SCHEMA, Outcome, write_outcome, write_run
from mats_ds.core.storage.files import append_text, format_csv, open_regular, open_to_append
from mats_ds.metering.device_memory import DeviceMeter, MemoryReading, left_for_activations, split_peak
from mats_ds.metering.out_of_memory import advise_on_memory
from mats_ds.metering.peak_flops import arithmetic_of, choose_peak
from mats_ds.metering.profiler import dump_snapshot
from mats_ds.metering.step_record import RecordWriter, StepRecord

if TYPE_CHECKING:
    import torch

BAD_CLIPS_FILE = "bad_clips.csv"
MAX_DIGITS = 20  # of a step: int() refuses numbers of thousands
BAD_CLIPS_COLUMNS = ("rank", "step", "path", "sample", "reason")
_log = logging.getLogger(__name__)


class _Pending(NamedTuple):
    """A step whose device figures have not been read yet."""

    event: StepEvent
    memory: MemoryReading
    joules: float | None
    unix_seconds: float
    num_bad_clips_total: int


class Recorder:
    """Writes one StepRecord per step of this rank. `latest` is the newest one written, None before
    the second step.

    List it before an observer that saves checkpoints: a run killed right after a save then loses
    the record of one step at most. A step's memory peak is everything since the step before was
    recorded, checkpoints and evaluation in between included.
    """

    def __init__(self, run_dir: str | Path, device: torch.device, *, nvml_interval_seconds: float = 1.0) -> None:
        self.latest: StepRecord | None = None
        self._run_dir = Path(run_dir)
        self._device = device
        self._meter = DeviceMeter(device, nvml_interval_seconds=nvml_interval_seconds)
        self._run: RunInfo | None = None
        self._writer: RecordWriter | None = None
        self._pending: _Pending | None = None
        self._joules_before: float | None = None
        self._num_bad_clips_total = 0

    def memory(self) -> tuple[int, str] | None:
        """The newest memory figure, (bytes, what it is); None before there is one."""
        return (self.latest.memory_bytes, self.latest.memory_name) if self.latest else None

    def what_is_lost(self) -> str | None:
        """The reason that records no longer reach the run folder (it was deleted or moved away);
        None while they do."""
        return None if self._writer is None else self._writer.what_is_lost()

    def on_start(self, run: RunInfo) -> None:
        """Open this rank's file; rank 0 writes run.json. The run folder must be there."""
        self._run = run = _add_gpu(run, self._device)
        if run.rank == 0:
            write_run(self._run_dir, run)
            with open_to_append(self._run_dir / BAD_CLIPS_FILE) as file:
                if os.fstat(file.fileno()).st_size == 0:
                    append_text(file, ",".join(BAD_CLIPS_COLUMNS) + "\n")
        self._writer = RecordWriter(self._run_dir, rank=run.rank)
        self._num_bad_clips_total = _count_bad_clips(self._run_dir, rank=run.rank, up_to_step=run.first_step)
        self._joules_before = self._meter.read_joules()
        self._meter.reset_peak()

    def on_step(self, event: StepEvent) -> None:
        """Read this step's memory and energy, write the record of the step before."""
        assert self._run is not None, "on_start comes before on_step"
        memory, joules = self._meter.read(), self._meter.read_joules()
        self._meter.reset_peak()
        if event.bad_clips:
            self._num_bad_clips_total += len(event.bad_clips)
            _append_bad_clips(self._run_dir, event.bad_clips, rank=self._run.rank, step=event.step)
        self._write_pending()
        spent = None if joules is None or self._joules_before is None else joules - self._joules_before
        self._joules_before = joules
        self._pending = _Pending(event, memory, spent, time.time(), self._num_bad_clips_total)
        if event.is_last:  # its checkpoint is published before another step comes
            self._write_pending()

    def on_end(self, outcome: str) -> None:
        """Write the last step's record, close the file; rank 0, and every rank that failed, writes
        its outcome.

        Raises OSError where the folder of a finished run is gone.
        """
        assert self._run is not None, "on_start comes before on_end"
        rank, advice, snapshot = self._run.rank, "", ""
        if lost := self.what_is_lost():  # a folder of that name is another run's by now
            self._writer.close()
            self._meter.close()
            if outcome == FINISHED:
                raise FileNotFoundError(lost)
            return
        if is_out_of_memory(outcome):
            snapshot = dump_snapshot(self._run_dir, self._device, rank=rank)
            advice = advise_on_memory(self._run, _last_peak(self._run, self._pending))
        try:
            self._write_pending()
        except RuntimeError as error:  # a failed device has no loss of the last step; the outcome still counts
            _log.warning("the last step could not be recorded: %s", error)
        finally:
            self._writer.close()
            self._meter.close()
        if rank == 0 or outcome != FINISHED:
            last_step = None if self.latest is None else self.latest.step
            write_outcome(self._run_dir, Outcome(outcome, last_step, time.time(), rank, advice, snapshot))
        if advice:
            where = f"; the allocator's state is in {snapshot}" if snapshot else ""
            _log.error("rank %d ran out of memory after step %s: %s%s", rank, self.latest and self.latest.step, advice, where)

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self.latest = _build_record(pending, self._run)
            self._writer.append(self.latest)


def _add_gpu(run: RunInfo, device: torch.device) -> RunInfo:
    """The run with its GPU's memory and peak arithmetic."""
    if device.type != "cuda":
        return run
    import torch

    peak = choose_peak(device, run.device_name, arithmetic_of(run.precision, device))
    return replace(
        run,
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory,
        peak_flops=None if peak is None else peak.flops_per_second,
        peak_source="" if peak is None else peak.source,
        peak_arithmetic="" if peak is None else peak.arithmetic,
    )


def _last_peak(run: RunInfo, pending: _Pending | None) -> dict[str, int]:
    """Memory by kind at the last step's peak; empty before the first step and on a CPU."""
    if pending is None or pending.memory.peak_allocated_bytes is None:
        return {}
    return split_peak(
        run.static_bytes,
        peak_allocated_bytes=pending.memory.peak_allocated_bytes,
        peak_reserved_bytes=pending.memory.peak_reserved_bytes,
        clip_bytes=pending.event.clip_bytes or 0,
        used_bytes=pending.memory.nvml_used_bytes,
    )


def _build_record(pending: _Pending, run: RunInfo) -> StepRecord:
    """The record of a finished step; reads the device."""
    event, memory = pending.event, pending.memory
    seconds = event.times.seconds()
    total_seconds = seconds["total"]
    model_flops, hardware_flops = (event.num_clips * flops for flops in (run.model_flops_per_clip, run.hardware_flops_per_clip))
    flops_at_peak = (run.peak_flops or 0.0) * total_seconds
    activation_bytes = None
    if memory.peak_allocated_bytes is not None:
        activation_bytes = left_for_activations(
            run.static_bytes, peak_allocated_bytes=memory.peak_allocated_bytes, clip_bytes=event.clip_bytes or 0
        )
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
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        clip_bytes=event.clip_bytes,
        activation_bytes=activation_bytes,
        joules=pending.joules,
        mfu=model_flops / flops_at_peak if flops_at_peak > 0 else None,
        hfu=hardware_flops / flops_at_peak if flops_at_peak > 0 else None,
        **vars(memory),
    )


def _append_bad_clips(run_dir: Path, clips: Iterable[BadClip], *, rank: int, step: int) -> None:
    """All ranks of a machine append to one file, each call with a single write, so that lines never
    mix."""
    text = format_csv((rank, step, clip.path, clip.sample, clip.reason) for clip in clips)
    with open_to_append(run_dir / BAD_CLIPS_FILE) as file:
        append_text(file, text)


def _count_bad_clips(run_dir: Path, *, rank: int, up_to_step: int) -> int:
    """Bad clips that this rank met before a resume; those of repeated steps will be met again."""
    try:
        with open_regular(run_dir / BAD_CLIPS_FILE) as stream:
            rows = list(csv.reader(io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")))
    except FileNotFoundError:
        return 0
    except csv.Error as error:
        _log.warning("%s cannot be read, so unreadable clips are counted from here on: %s", run_dir / BAD_CLIPS_FILE, error)
        return 0
    mine = [row for row in rows if row[:1] == [str(rank)] and len(row) == len(BAD_CLIPS_COLUMNS)]
    return sum(row[1].isdecimal() and len(row[1]) < MAX_DIGITS and int(row[1]) <= up_to_step for row in mine)
