"""A trace and a snapshot of GPU memory of some steps of a run, as observers: --trace and
--memory_snapshot."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mats_ds.core.events import Observer, RunInfo, StepEvent
from mats_ds.core.format import format_count
from mats_ds.core.storage.files import WrongKindOfFile, refuse_wrong_kind

if TYPE_CHECKING:
    import torch

TRACES = "traces"
WARM_STEPS = 1  # the profiler's own: its first step is slower than it tells
_log = logging.getLogger(__name__)


def make_deep_dives(run_dir: Path, device: torch.device, *, trace: bool, memory_snapshot: bool, num_steps: int) -> list[Observer]:
    """The observers for what is asked for, each of `num_steps` steps; none unless asked."""
    observers: list[Observer] = []
    if trace:
        observers.append(StepTrace(run_dir, device, num_steps=num_steps))
    if memory_snapshot:
        observers.append(MemorySnapshot(run_dir, device, num_steps=num_steps))
    return observers


@dataclass
class StepTrace:
    """An observer that traces `num_steps` steps of this run, after the first `after_step`; a
    shorter run is traced sooner."""

    run_dir: Path
    device: torch.device
    num_steps: int = 3
    after_step: int = 4

    def on_start(self, run: RunInfo) -> None:
        self._rank, self._profiler, self._path = run.rank, None, None
        num_steps = run.total_steps - run.first_step
        before = max(0, min(self.after_step, num_steps - self.num_steps))
        warm = min(WARM_STEPS, before)
        self._profiler = _start(self.device, before - warm, warm, self.num_steps, self._write)

    def on_step(self, event: StepEvent) -> None:
        if self._profiler is None:
            return
        self._profiler.step()
        if self._path is not None:
            self._stop()

    def on_end(self, outcome: str) -> None:
        """A run that ends within the stretch leaves what there is."""
        self._stop()

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()  # calls _write where steps were being recorded
        if self._rank != 0:
            return
        if self._path is None:
            _log.warning("--trace: the run ended before the %s to be traced began", format_count(self.num_steps, "step"))
        else:
            _log.info("trace: %s (open it at https://ui.perfetto.dev)", self._path)

    def _write(self, profiler: Any) -> None:
        path = Path(self.run_dir) / TRACES / f"rank-{self._rank:05d}.json.gz"
        try:
            path.parent.mkdir(exist_ok=True)
            refuse_wrong_kind(path, below=self.run_dir)
            profiler.export_chrome_trace(str(path))
        except (OSError, WrongKindOfFile) as error:
            _log.warning("the trace could not be written: %s", error)
        self._path = path


def _start(device: torch.device, wait: int, warm: int, active: int, write: Any) -> Any:
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(
        activities=activities,
        schedule=schedule(wait=wait, warmup=warm, active=active, repeat=1),
        on_trace_ready=write,
        record_shapes=True,
        profile_memory=True,
    )
    profiler.start()
    return profiler


SNAPSHOTS = "memory_snapshots"
MAX_EVENTS = 100_000  # allocations and frees that are remembered, newest last: some tens of MB


def dump_snapshot(run_dir: str | Path, device: torch.device, *, rank: int, name: str = "out-of-memory") -> str:
    """Write what the allocator holds now (and how it came about, if its history was being
    recorded). Returns the file's path, "" on a CPU, which has no such allocator, and where it
    cannot be written."""
    if device.type != "cuda":
        return ""
    import torch

    path = Path(run_dir) / SNAPSHOTS / f"{name}-rank-{rank:05d}.pickle"
    try:
        path.parent.mkdir(exist_ok=True)
        refuse_wrong_kind(path, below=Path(run_dir))
        torch.cuda.memory._dump_snapshot(str(path))
    except (OSError, RuntimeError, WrongKindOfFile) as error:
        _log.warning("the allocator's state could not be written: %s", error)
        return ""
    return str(path)


@dataclass
class MemorySnapshot:
    """An observer that records every allocation of steps `after_step` + 1 to `after_step` +
    `num_steps` of this run with the lines of code that made it, and writes them as a file for each
    rank. Needs a GPU; on a CPU it says so and does nothing.
    """

    run_dir: Path
    device: torch.device
    num_steps: int = 3
    after_step: int = 2

    def on_start(self, run: RunInfo) -> None:
        self._rank, self._recording, self._num_done = run.rank, False, 0
        self._after_step = min(self.after_step, max(0, run.total_steps - run.first_step - self.num_steps))
        if self.device.type != "cuda":
            if run.rank == 0:
                _log.warning(
                    "--memory_snapshot is for GPUs: it reads torch's CUDA allocator, and this run is on the CPU, whose allocator "
                    "keeps no history; --trace shows the CPU's operations with their memory"
                )
            return
        self._begin_if_due()

    def on_step(self, event: StepEvent) -> None:
        if self.device.type != "cuda":
            return
        self._num_done += 1
        if self._num_done == self._after_step + self.num_steps:
            self._end()
        self._begin_if_due()

    def on_end(self, outcome: str) -> None:
        """A run that ends within the stretch leaves what there is: after an out-of-memory, this is
        what shows where it went."""
        self._end()

    def _begin_if_due(self) -> None:
        if self._num_done == self._after_step:
            import torch

            torch.cuda.memory._record_memory_history(max_entries=MAX_EVENTS, device=self.device)
            self._recording = True

    def _end(self) -> None:
        if not self._recording:
            return
        import torch

        path = dump_snapshot(self.run_dir, self.device, rank=self._rank, name="steps")
        torch.cuda.memory._record_memory_history(enabled=None, device=self.device)
        self._recording = False
        if path and self._rank == 0:
            _log.info("memory snapshot: %s (open it at https://pytorch.org/memory_viz)", path)
