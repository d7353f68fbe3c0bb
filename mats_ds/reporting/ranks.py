"""One pass over one rank's records: peaks, sums and curves, in memory that does not grow with what
is plotted.

Curves have at most NUM_BUCKETS points; each point stands for some neighbouring steps. A few numbers
are kept of every step, because the throughput of a run is that of the slowest rank of each step.
Counts, sums and peaks are exact, of all records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mats_ds.core.events import PHASES
from mats_ds.metering.record_columns import Columns
from mats_ds.metering.record_reader import RankReader, RecordReader

NUM_BUCKETS = 240
PARALLEL_ABOVE_BYTES = 64 * 2**20
MAXIMA = ("peak_allocated_bytes", "peak_reserved_bytes", "nvml_used_bytes", "peak_rss_bytes", "peak_active_bytes",
          "peak_inactive_bytes", "num_alloc_retries", "num_ooms")  # fmt: skip
# nothing of a run is timed below: a divisor near 0 would make every rate infinite
MIN_SECONDS = 1e-6
CURVES = ("loss", "learning_rate", "grad_norm", "memory_bytes", "mfu", "activation_bytes", "clip_bytes", "peak_allocated_bytes",
          "peak_reserved_bytes", "nvml_used_bytes", "total_seconds", *(f"{phase}_seconds" for phase in PHASES))  # fmt: skip
PEAK_PARTS = ("peak_allocated_bytes", "peak_reserved_bytes", "nvml_used_bytes", "clip_bytes", "activation_bytes")
NAMES = ("step", "epoch", "unix_seconds", "num_clips", "num_substitutes", "num_bad_clips", "rss_bytes", "joules",
         "nvml_power_watts", *MAXIMA, *(name for name in CURVES if name != "memory_bytes"))  # fmt: skip


@dataclass(frozen=True)
class Span:
    """The steps of a report, which of them are warm-up (left out of times and throughput), and how
    they fall into buckets."""

    first_step: int
    last_step: int

    @property
    def num_steps(self) -> int:
        return self.last_step - self.first_step + 1

    @property
    def num_warmup_steps(self) -> int:
        """The first fifth, at most ten: they compile, allocate and fill caches."""
        return min(10, self.num_steps // 5)

    @property
    def first_timed_step(self) -> int:
        return self.first_step + self.num_warmup_steps

    @property
    def num_buckets(self) -> int:
        return min(NUM_BUCKETS, self.num_steps)

    def buckets(self, steps: np.ndarray) -> np.ndarray:
        """The bucket of each step."""
        return (steps - self.first_step) * self.num_buckets // self.num_steps

    def steps(self) -> list[float]:
        """The middle step of each bucket."""
        width = self.num_steps / self.num_buckets
        return [self.first_step - 0.5 + (index + 0.5) * width for index in range(self.num_buckets)]


class Curve:
    """Count, sum, least and greatest of the finite values in each bucket."""

    def __init__(self, num_buckets: int) -> None:
        self.num = np.zeros(num_buckets, dtype=np.int64)
        self.sum = np.zeros(num_buckets)
        self.least = np.full(num_buckets, math.inf)
        self.greatest = np.full(num_buckets, -math.inf)

    def add(self, buckets: np.ndarray, values: np.ndarray) -> None:
        """Values with the bucket of each."""
        finite = np.isfinite(values)
        if not finite.all():
            buckets, values = buckets[finite], values[finite]
        if len(values) == 0:
            return
        if buckets[0] == buckets[-1]:  # the usual case in a long run: numbers of neighbouring steps
            index = buckets[0]
            self.num[index] += len(values)
            self.sum[index] += values.sum()
            self.least[index] = min(self.least[index], values.min())
            self.greatest[index] = max(self.greatest[index], values.max())
            return
        np.add.at(self.num, buckets, 1)
        np.add.at(self.sum, buckets, values)
        np.minimum.at(self.least, buckets, values)
        np.maximum.at(self.greatest, buckets, values)

    def merge(self, other: Curve) -> None:
        self.num += other.num
        self.sum += other.sum
        self.least = np.minimum(self.least, other.least)
        self.greatest = np.maximum(self.greatest, other.greatest)

    def mean(self) -> list[float | None]:
        return self._known(self.sum / np.maximum(self.num, 1))

    def maximum(self) -> list[float | None]:
        return self._known(self.greatest)

    def minimum(self) -> list[float | None]:
        return self._known(self.least)

    def _known(self, values: np.ndarray) -> list[float | None]:
        return [value if num else None for value, num in zip(values.tolist(), self.num.tolist(), strict=True)]


@dataclass
class RankFigures:
    """Figures of one rank's records. `got` are the stretches (first, last) of steps with a record.
    Peaks are over all steps, sums over the steps after the warm-up. None: not measured. `steps`,
    `seconds`, `waits` (for data), `arrivals` (data and forward: when the rank comes to the backward
    pass, where all ranks wait for each other) and `clips` hold one entry a step after the warm-up.
    `peak_parts` are the figures of the step whose memory was largest.
    """

    rank: int
    num_records: int = 0
    got: list[tuple[int, int]] = field(default_factory=list)
    last_step: int | None = None
    last_epoch: int = 0
    first_unix_seconds: float | None = None  # the begin of the first step
    last_unix_seconds: float | None = None
    last_loss_is_finite: bool = True
    on_gpu: bool = False
    peak_bytes: int = 0
    peak_step: int = 0
    peak_parts: dict[str, int] = field(default_factory=dict)
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_active_bytes: int | None = None
    peak_inactive_bytes: int | None = None
    nvml_used_bytes: int | None = None
    peak_rss_bytes: int | None = None
    num_alloc_retries: int | None = None
    num_ooms: int | None = None
    num_clips: int = 0
    num_substitutes: int = 0
    num_bad_clips: int = 0
    num_not_finite: int = 0
    first_not_finite_step: int | None = None
    phase_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*PHASES, "total"), 0.0))
    joules: float = 0.0
    num_metered_clips: int = 0
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    waits: np.ndarray = field(default_factory=lambda: np.zeros(0))
    arrivals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    clips: np.ndarray = field(default_factory=lambda: np.zeros(0))
    curves: dict[str, Curve] = field(default_factory=dict)
    num_superseded: int = 0
    num_unreadable: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def waiting_fraction(self) -> float:
        """The fraction of the step time spent waiting for data."""
        total = max(self.phase_seconds["total"], sum(self.phase_seconds[phase] for phase in PHASES))
        return self.phase_seconds["data"] / total if total > 0 else 0.0

    @property
    def step_seconds(self) -> float | None:
        """Median over the steps after the warm-up."""
        return float(np.median(self.seconds)) if len(self.seconds) else None


def summarize_ranks(reader: RecordReader, span: Span) -> Iterator[RankFigures]:
    """The figures of every rank that has a file, one by one; large runs are read by several
    processes."""
    readers = reader.by_rank.items()
    num_bytes = sum(part.path.stat().st_size for _, part in readers)
    if len(readers) > 1 and num_bytes > PARALLEL_ABOVE_BYTES:
        with ProcessPoolExecutor() as pool:
            yield from pool.map(partial(_summarize, span=span), *zip(*readers, strict=True))
    else:
        yield from (_summarize(rank, part, span=span) for rank, part in readers)


def _summarize(rank: int, reader: RankReader, *, span: Span) -> RankFigures:
    figures = summarize_rank(rank, reader.columns(NAMES), span=span)
    figures.num_superseded = reader.num_superseded
    figures.num_unreadable, figures.unreadable = reader.num_unreadable, reader.unreadable
    return figures


def summarize_rank(rank: int, parts: Iterable[Columns], *, span: Span) -> RankFigures:
    """One pass over records in ascending steps; those outside the span are left out."""
    figures = RankFigures(rank, curves={name: Curve(span.num_buckets) for name in CURVES})
    timed: list[Columns] = []
    for part in parts:
        inside = (part.steps >= span.first_step) & (part.steps <= span.last_step)
        if not inside.all():  # a line that no writer of ours wrote
            part = part.select(inside)
        if len(part) == 0:
            continue
        _add_steps(figures, part)
        _add_memory(figures, part)
        _add_clips(figures, part)
        buckets = span.buckets(part.steps)
        for name, curve in figures.curves.items():
            curve.add(buckets, part[name])
        if part.steps[-1] >= span.first_timed_step:
            timed.append(_add_times(figures, part, first_step=span.first_timed_step))
    if timed:
        columns = map(np.concatenate, zip(*timed, strict=True))
        figures.steps, figures.seconds, figures.waits, figures.arrivals, figures.clips = columns
    return figures


def _add_steps(figures: RankFigures, part: Columns) -> None:
    figures.num_records += len(part)
    breaks = np.flatnonzero(np.diff(part.steps) != 1)
    firsts, lasts = part.steps[[0, *(breaks + 1)]].tolist(), part.steps[[*breaks, -1]].tolist()
    for first, last in zip(firsts, lasts, strict=True):
        if figures.got and first == figures.got[-1][1] + 1:
            first = figures.got.pop()[0]
        figures.got.append((first, last))
    figures.last_step = lasts[-1]
    figures.last_epoch = int(part["epoch"][-1])
    if figures.first_unix_seconds is None:
        figures.first_unix_seconds = float(part["unix_seconds"][0] - np.nan_to_num(part["total_seconds"][0]))
    figures.last_unix_seconds = float(part["unix_seconds"][-1])
    figures.last_loss_is_finite = not part.lost[-1]


def _add_memory(figures: RankFigures, part: Columns) -> None:
    """As StepRecord.device_peak_bytes and StepRecord.memory_bytes have it."""
    reserved, rss = part["peak_reserved_bytes"], part["rss_bytes"]
    on_gpu = ~np.isnan(reserved)
    host_bytes = np.where(np.nan_to_num(part["peak_rss_bytes"]) > 0, part["peak_rss_bytes"], rss)
    peaks = np.nan_to_num(np.where(on_gpu, np.fmax(reserved, part["nvml_used_bytes"]), host_bytes))
    index = int(peaks.argmax())
    if peaks[index] > figures.peak_bytes:
        figures.peak_bytes, figures.peak_step = int(peaks[index]), int(part.steps[index])
        figures.peak_parts = {name: int(part[name][index]) for name in PEAK_PARTS if not np.isnan(part[name][index])}
    figures.on_gpu = figures.on_gpu or bool(on_gpu.any())
    part.values["memory_bytes"] = np.where(on_gpu, reserved, rss)
    for name in MAXIMA:
        greatest = np.fmax.reduce(part[name])
        if not np.isnan(greatest):
            setattr(figures, name, max(int(greatest), getattr(figures, name) or 0))


def _add_clips(figures: RankFigures, part: Columns) -> None:
    figures.num_clips += int(part["num_clips"].sum())
    figures.num_substitutes += int(part["num_substitutes"].sum())
    figures.num_bad_clips += int(part["num_bad_clips"].sum())
    lost = part.steps[part.lost]
    if len(lost) and figures.first_not_finite_step is None:
        figures.first_not_finite_step = int(lost[0])
    figures.num_not_finite += len(lost)


def _add_times(figures: RankFigures, part: Columns, *, first_step: int) -> tuple[np.ndarray, ...]:
    part = part.select(part.steps >= first_step) if part.steps[0] < first_step else part
    for phase in figures.phase_seconds:
        figures.phase_seconds[phase] += float(part[f"{phase}_seconds"].sum())
    # Records of schema 1 have the power only.
    joules = np.where(np.isnan(part["joules"]), part["nvml_power_watts"] * part["total_seconds"], part["joules"])
    metered = ~np.isnan(joules)
    figures.joules += float(joules[metered].sum())
    figures.num_metered_clips += int(part["num_clips"][metered].sum())
    waits = part["data_seconds"]
    return part.steps, part["total_seconds"], waits, waits + part["forward_seconds"], part["num_clips"]
