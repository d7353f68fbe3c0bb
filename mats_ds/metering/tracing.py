"""A trace of a few steps by torch's profiler: every operation and kernel on a time line, as a file for each rank.

A `.json.gz` is opened at https://ui.perfetto.dev or chrome://tracing, which read it in the browser.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mats_ds.core.files import WrongKindOfFile, refuse_wrong_kind
from mats_ds.events import RunInfo, StepEvent

if TYPE_CHECKING:
    import torch

FOLDER = "traces"
WARM_STEPS = 1  # the profiler's own: its first step is slower than it tells
_log = logging.getLogger(__name__)


@dataclass
class StepTrace:
    """An observer that traces `num_steps` steps of this run, after the first `after_step`; a shorter run is traced sooner."""

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
            _log.warning("--trace: the run ended before the %d steps that were to be traced began", self.num_steps)
        else:
            _log.info("trace: %s (open it at https://ui.perfetto.dev)", self._path)

    def _write(self, profiler: Any) -> None:
        path = Path(self.run_dir) / FOLDER / f"rank-{self._rank:05d}.json.gz"
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
