"""One pass over one rank's records: peaks, sums and curves, in memory that does not grow with what is plotted.

Curves have at most NUM_BUCKETS points; each point stands for a stretch of steps. Step times are kept one by one (two
numbers a step), because the throughput of a run is that of the slowest rank of each step.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

from mats_ds.events import PHASES
from mats_ds.metering.reader import RankReader, RecordReader
from mats_ds.metering.records import StepRecord

NUM_BUCKETS = 240
PARALLEL_ABOVE_BYTES = 64 * 2**20
CHUNK = 1024
MAXIMA = ("peak_allocated_bytes", "peak_reserved_bytes", "nvml_used_bytes", "peak_rss_bytes", "num_alloc_retries", "num_ooms")


@dataclass(frozen=True)
class Span:
    """The steps of a report, which of them are warm-up (left out of times and throughput), and how they fall into buckets."""

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
    def num_buckets(self) -> int:
        return min(NUM_BUCKETS, self.num_steps)

    def bucket(self, step: int) -> int:
        return (step - self.first_step) * self.num_buckets // self.num_steps

    def steps(self) -> list[float]:
        """The middle step of each bucket."""
        width = self.num_steps / self.num_buckets
        return [self.first_step - 0.5 + (place + 0.5) * width for place in range(self.num_buckets)]


class Curve:
    """Count, sum, least and greatest of the finite values in each bucket."""

    def __init__(self, num_buckets: int) -> None:
        self.num = [0] * num_buckets
        self.sum = [0.0] * num_buckets
        self.least = [math.inf] * num_buckets
        self.greatest = [-math.inf] * num_buckets

    def add(self, bucket: int, values: Iterable[float | None]) -> None:
        known = [value for value in values if value is not None]
        if not math.isfinite(sum(known)):
            known = [value for value in known if math.isfinite(value)]
        if known:
            self.num[bucket] += len(known)
            self.sum[bucket] += sum(known)
            self.least[bucket] = min(self.least[bucket], min(known))
            self.greatest[bucket] = max(self.greatest[bucket], max(known))

    def merge(self, other: Curve) -> None:
        self.num = [mine + its for mine, its in zip(self.num, other.num, strict=True)]
        self.sum = [mine + its for mine, its in zip(self.sum, other.sum, strict=True)]
        self.least = [min(pair) for pair in zip(self.least, other.least, strict=True)]
        self.greatest = [max(pair) for pair in zip(self.greatest, other.greatest, strict=True)]

    def mean(self) -> list[float | None]:
        return [total / num if num else None for total, num in zip(self.sum, self.num, strict=True)]

    def maximum(self) -> list[float | None]:
        return [value if num else None for value, num in zip(self.greatest, self.num, strict=True)]

    def minimum(self) -> list[float | None]:
        return [value if num else None for value, num in zip(self.least, self.num, strict=True)]


CURVES = ("loss", "learning_rate", "grad_norm", "memory_bytes", "total_seconds", *(f"{phase}_seconds" for phase in PHASES))


@dataclass
class RankFigures:
    """What one rank's records say. `got` are the stretches (first, last) of steps with a record. Peaks are over all steps,
    sums over the steps after the warm-up. None: not measured. `steps`, `seconds`, `clips` hold one entry a step."""

    rank: int
    num_records: int = 0
    got: list[tuple[int, int]] = field(default_factory=list)
    first: StepRecord | None = None
    last: StepRecord | None = None
    on_gpu: bool = False
    peak_bytes: int = 0
    peak_step: int = 0
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
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
    steps: array = field(default_factory=lambda: array("q"))
    seconds: array = field(default_factory=lambda: array("d"))
    clips: array = field(default_factory=lambda: array("q"))
    curves: dict[str, Curve] = field(default_factory=dict)
    num_superseded: int = 0
    num_unreadable: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def waiting_share(self) -> float:
        """Part of the step spent waiting for data."""
        whole = max(self.phase_seconds["total"], sum(self.phase_seconds[phase] for phase in PHASES))
        return self.phase_seconds["data"] / whole if whole > 0 else 0.0


def summarize_ranks(reader: RecordReader, span: Span) -> list[RankFigures]:
    """The figures of every rank that has a file; large runs are read by several processes."""
    readers = reader.by_rank.items()
    num_bytes = sum(each.path.stat().st_size for _, each in readers)
    if len(readers) > 1 and num_bytes > PARALLEL_ABOVE_BYTES:
        with ProcessPoolExecutor() as pool:
            return list(pool.map(partial(_summarize, span=span), *zip(*readers, strict=True)))
    return [_summarize(rank, each, span=span) for rank, each in readers]


def _summarize(rank: int, reader: RankReader, *, span: Span) -> RankFigures:
    figures = summarize_rank(rank, reader, span=span)
    figures.num_superseded = reader.num_superseded
    figures.num_unreadable, figures.unreadable = reader.num_unreadable, reader.unreadable
    return figures


def summarize_rank(rank: int, records: Iterable[StepRecord], *, span: Span) -> RankFigures:
    """One pass over records in ascending steps; those outside the span are left out."""
    figures = RankFigures(rank, curves={name: Curve(span.num_buckets) for name in CURVES})
    first_timed_step = span.first_step + span.num_warmup_steps
    for bucket, chunk in _chunk(records, span):
        figures.first = figures.first or chunk[0]
        figures.last = chunk[-1]
        figures.num_records += len(chunk)
        for name, curve in figures.curves.items():
            curve.add(bucket, map(attrgetter(name), chunk))
        _add_steps(figures, chunk)
        _add_memory(figures, chunk)
        _add_clips(figures, chunk)
        _add_times(figures, [record for record in chunk if record.step >= first_timed_step])
    return figures


def _chunk(records: Iterable[StepRecord], span: Span) -> Iterator[tuple[int, list[StepRecord]]]:
    """Records of the same bucket together, at most CHUNK of them: sums over lists are several times faster than one by one."""
    chunk: list[StepRecord] = []
    chunk_bucket = 0
    for record in records:
        if not span.first_step <= record.step <= span.last_step:  # a line that no writer of ours wrote
            continue
        bucket = span.bucket(record.step)
        if chunk and (bucket != chunk_bucket or len(chunk) == CHUNK):
            yield chunk_bucket, chunk
            chunk = []
        chunk_bucket = bucket
        chunk.append(record)
    if chunk:
        yield chunk_bucket, chunk


def _add_steps(figures: RankFigures, chunk: list[StepRecord]) -> None:
    for record in chunk:
        if figures.got and record.step == figures.got[-1][1] + 1:
            figures.got[-1] = (figures.got[-1][0], record.step)
        else:
            figures.got.append((record.step, record.step))


def _add_memory(figures: RankFigures, chunk: list[StepRecord]) -> None:
    peak = max(chunk, key=attrgetter("device_peak_bytes"))
    if peak.device_peak_bytes > figures.peak_bytes:
        figures.peak_bytes, figures.peak_step = peak.device_peak_bytes, peak.step
    figures.on_gpu = figures.on_gpu or peak.peak_reserved_bytes is not None
    for name in MAXIMA:
        known = [value for value in map(attrgetter(name), chunk) if value is not None]
        if known:
            setattr(figures, name, max(*known, getattr(figures, name) or 0))


def _add_clips(figures: RankFigures, chunk: list[StepRecord]) -> None:
    figures.num_clips += sum(record.num_clips for record in chunk)
    figures.num_substitutes += sum(record.num_substitutes for record in chunk)
    figures.num_bad_clips += sum(record.num_bad_clips for record in chunk)
    steps = [record.step for record in chunk if record.loss is not None and not math.isfinite(record.loss)]
    if steps and figures.first_not_finite_step is None:
        figures.first_not_finite_step = steps[0]
    figures.num_not_finite += len(steps)


def _add_times(figures: RankFigures, chunk: list[StepRecord]) -> None:
    for phase in figures.phase_seconds:
        figures.phase_seconds[phase] += sum(map(attrgetter(f"{phase}_seconds"), chunk))
    figures.steps.extend(map(attrgetter("step"), chunk))
    figures.seconds.extend(map(attrgetter("total_seconds"), chunk))
    figures.clips.extend(map(attrgetter("num_clips"), chunk))
    metered = [record for record in chunk if record.nvml_power_watts is not None]
    figures.joules += sum(record.nvml_power_watts * record.total_seconds for record in metered)
    figures.num_metered_clips += sum(record.num_clips for record in metered)
