"""How long a run lasts at a stated or measured share of a card's arithmetic: FLOPs, peak, MFU -> seconds a step, hours.

MFU counts model FLOPs, what the model needs, against the dense peak of the cards in the run's precision (fp32: of the
ordinary cores, as torch multiplies unless it is told to use TF32). Stalls for data, checkpoints and tests are
not in it.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mats_ds.core.files import refuse_wrong_kind
from mats_ds.metering.flops import StepFlops
from mats_ds.metering.peaks import BF16, find_peak
from mats_ds.metering.reader import RankReader
from mats_ds.metering.records import RECORDS_FOLDER
from mats_ds.metering.run_files import RUN_FILE, read_run

ASSUMED_MFU = 0.35  # no run of this trainer has been timed on a GPU: an assumption, not a measurement
SECONDS_PER_HOUR = 3600
# Training clips of the data sets that the recipes are for. Kinetics-400 and Something-Something V2: VideoMAE's DATASET.md lists
# about 240 k and 169 k; UCF101 split 1: 9 537; HMDB51 split 1: 3 570.
KNOWN_CLIPS = {"k400": 240_000, "ssv2": 169_000, "ucf101": 9_537, "hmdb51": 3_570}


@dataclass(frozen=True)
class TimePlan:
    """None: not known for this card or precision."""

    num_clips: int
    clips_per_step: int
    total_steps: int
    steps_per_epoch: int
    mfu: float
    step_seconds: float | None = None

    @property
    def hours(self) -> float | None:
        return None if self.step_seconds is None else self.total_steps * self.step_seconds / SECONDS_PER_HOUR

    @property
    def clips_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.clips_per_step / self.step_seconds


def plan_time(
    flops: StepFlops,
    *,
    device_name: str,
    world_size: int,
    clips_per_step: int,
    num_clips: int,
    epochs: float,
    steps: int | None,
    max_steps: int | None = None,
    mfu: float = ASSUMED_MFU,
    precision: str = BF16,
) -> TimePlan:
    """A run of `epochs` over `num_clips`, or of `steps`, in "bf16" or "fp32", ended early after `max_steps`. The time is None
    for a card that peaks.py does not list in it.
    """
    steps_per_epoch = max(1, num_clips // clips_per_step)
    total = steps if steps is not None else max(1, math.ceil(epochs * steps_per_epoch))
    total = min(total, max_steps or total)
    peak = find_peak(device_name, precision)
    seconds = None
    if peak is not None:
        seconds = flops.training_flops * clips_per_step / (peak.flops_per_second * world_size * mfu)
    return TimePlan(num_clips, clips_per_step, total, steps_per_epoch, mfu, seconds)


def measured_mfu(run_dir: str | Path) -> float:
    """The median MFU of a run's first rank, its first fifth of steps apart. Raises ValueError where none was recorded."""
    path = Path(run_dir) / RECORDS_FOLDER / "rank-00000.jsonl"
    refuse_wrong_kind(path, below=Path(run_dir))
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run folder: it has no {RECORDS_FOLDER}/rank-00000.jsonl")
    info = read_run(run_dir).info if os.path.lexists(Path(run_dir) / RUN_FILE) else None
    if info is not None and info.precision != BF16 and not info.peak_arithmetic:
        raise ValueError(
            f"{run_dir} ran in {info.precision} and recorded its MFU of the bf16 peak, as it did then: state one with --mfu"
        )
    figures = [record.mfu for record in RankReader(path)]
    known = [mfu for mfu in figures[len(figures) // 5 :] if mfu]
    if not known:
        raise ValueError(f"{run_dir} recorded no MFU (a CPU, or a card whose peak is not known): state one with --mfu")
    mfu = median(known)
    if mfu > 1:
        raise ValueError(f"{run_dir} recorded an MFU of {mfu:.3g}, which is above 1: state one with --mfu")
    return mfu
