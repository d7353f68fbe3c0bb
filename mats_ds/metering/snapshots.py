"""The allocator's state as a file: after an out-of-memory, and of a stretch of steps where a person asks for it.

A `.pickle` is opened at https://pytorch.org/memory_viz, which reads it in the browser and sends it nowhere.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mats_ds.core.files import WrongKindOfFile, refuse_wrong_kind
from mats_ds.events import RunInfo, StepEvent

if TYPE_CHECKING:
    import torch

FOLDER = "memory_snapshots"
MAX_EVENTS = 100_000  # allocations and frees that are remembered, newest last: some tens of MB
_log = logging.getLogger(__name__)


def dump_snapshot(run_dir: str | Path, device: torch.device, *, rank: int, name: str = "out-of-memory") -> str:
    """Write what the allocator holds now (and how it came about, if its history was being recorded). Returns the file's path,
    "" on a CPU, which has no such allocator, and where it cannot be written."""
    if device.type != "cuda":
        return ""
    import torch

    path = Path(run_dir) / FOLDER / f"{name}-rank-{rank:05d}.pickle"
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
    """An observer that records every allocation of steps `after_step` + 1 to `after_step` + `num_steps` of this run with
    the lines of code that made it, and writes them as a file for each rank. Needs a GPU; on a CPU it says so and does nothing.
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
        """A run that ends within the stretch leaves what there is: after an out-of-memory, this is what shows where it went."""
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
