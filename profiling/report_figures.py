"""What a run folder says: the records of all ranks, run.json, outcome.json and bad_clips.csv as one set of figures.

Loads neither torch nor anything that does, so that a report takes about a second.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

from report_cards import find_peak_flops
from report_ranks import CURVES, Curve, RankFigures, Span, summarize_ranks

from mats_ds.events import PHASES
from mats_ds.metering.budget import Budget, Measured, Verdict, judge
from mats_ds.metering.reader import read_records
from mats_ds.metering.run_files import Outcome, RunFile, read_outcome, read_run

# Records of step k are written when step k+1 arrives, so a run killed right after saving a checkpoint and resumed from it
# can lack the records of the steps just before the resume. That is no fault of the run.
STEPS_LOST_BY_A_KILL = 2


@dataclass(frozen=True)
class BadVideo:
    """A video that could not be read, and how often it was met."""

    path: str
    reason: str
    times: int


@dataclass
class Figures:
    """Everything that a report shows. Medians and shares leave out the warm-up steps. None: not measured or not known."""

    run_dir: Path
    run: RunFile
    outcome: Outcome | None
    span: Span
    ranks: list[RankFigures]
    missing: tuple[str, ...]
    curves: dict[str, Curve]
    throughput: Curve
    clips_per_second: float | None
    step_seconds: float | None
    mean_step_seconds: float | None
    bad_videos: list[BadVideo]

    @property
    def on_gpu(self) -> bool:
        return any(rank.on_gpu for rank in self.ranks)

    @property
    def worst_rank(self) -> RankFigures:
        return max(self.ranks, key=lambda rank: rank.peak_bytes)

    @property
    def slowest_rank(self) -> RankFigures:
        """The rank that waits longest for data."""
        return max(self.ranks, key=lambda rank: rank.waiting_share)

    @property
    def memory_name(self) -> str:
        if not self.on_gpu:
            return "host memory (RSS)"
        with_nvml = any(rank.nvml_used_bytes is not None for rank in self.ranks)
        return "GPU memory (largest of torch's reserved peak and NVML)" if with_nvml else "GPU memory (torch's reserved peak)"

    @property
    def phase_shares(self) -> dict[str, float]:
        """Parts of the step time of all ranks: each phase, and "other" (time of the host between the phases)."""
        seconds = {phase: sum(rank.phase_seconds[phase] for rank in self.ranks) for phase in PHASES}
        seconds["other"] = max(0.0, sum(rank.phase_seconds["total"] for rank in self.ranks) - sum(seconds.values()))
        whole = sum(seconds.values())
        return {phase: value / whole if whole > 0 else 0.0 for phase, value in seconds.items()}

    @property
    def num_clips(self) -> int:
        return sum(rank.num_clips for rank in self.ranks)

    @property
    def num_bad_clips(self) -> int:
        return sum(rank.num_bad_clips for rank in self.ranks)

    @property
    def num_substitutes(self) -> int:
        return sum(rank.num_substitutes for rank in self.ranks)

    @property
    def num_not_finite(self) -> int:
        """Steps whose loss was not finite, on the rank that saw most of them."""
        return max(rank.num_not_finite for rank in self.ranks)

    @property
    def losses(self) -> tuple[float | None, float | None]:
        """Mean loss of the first and of the last stretch of steps that a plot's point stands for."""
        means = [value for value in self.curves["loss"].mean() if value is not None]
        return (means[0], means[-1]) if means else (None, None)

    @property
    def last_loss_is_finite(self) -> bool:
        last = max((rank for rank in self.ranks if rank.last), key=lambda rank: rank.last.step).last
        return last.loss is None or abs(last.loss) < float("inf")

    @property
    def model_flops_per_second(self) -> float | None:
        """Useful FLOP/s of one rank: the FLOPs that the model needs, without what is computed twice."""
        if self.clips_per_second is None or not self.run.info.model_flops_per_clip:
            return None
        return self.clips_per_second * self.run.info.model_flops_per_clip / self.run.info.world_size

    @property
    def peak_flops_per_second(self) -> float | None:
        return find_peak_flops(self.run.info.device_name) if self.on_gpu else None

    @property
    def model_flops_utilization(self) -> float | None:
        """MFU: useful FLOP/s over the card's dense bf16 peak."""
        if self.model_flops_per_second is None or self.peak_flops_per_second is None:
            return None
        return self.model_flops_per_second / self.peak_flops_per_second

    @property
    def joules_per_clip(self) -> float | None:
        """Energy of the cards, from NVML's power samples."""
        num_clips = sum(rank.num_metered_clips for rank in self.ranks)
        return sum(rank.joules for rank in self.ranks) / num_clips if num_clips else None

    @property
    def hours(self) -> float | None:
        """The steps of the whole run at the mean step time; checkpoints and evaluation are not in it."""
        if self.mean_step_seconds is None:
            return None
        return self.mean_step_seconds * max(self.run.info.total_steps, self.span.last_step) / 3600

    @property
    def advice(self) -> str:
        """One sentence on the time that is spent waiting for data."""
        share, who = self.phase_shares["data"], "GPU" if self.on_gpu else "model"
        slowest = self.slowest_rank
        most = ""
        if slowest.waiting_share > max(0.05, 2 * share):  # the other ranks then wait for this one in the backward pass
            most = f" (rank {slowest.rank} most, {100 * slowest.waiting_share:.0f}%)"
        if share < 0.05 and not most:
            return f"Data loading keeps up: the {who} waits for {100 * share:.1f}% of a step."
        remedy = "give data.num_workers more cores, raise data.prefetch, or re-encode the videos with a keyframe every 12 frames"
        if share < 0.2:
            return f"The {who} waits for data during {100 * share:.0f}% of a step{most}; to win that back, {remedy}."
        return f"Data loading is the bottleneck: the {who} stands still for {100 * share:.0f}% of a step{most}; {remedy}."

    def judge(self, budget: Budget) -> Verdict:
        """The verdict on this run."""
        measured = Measured(
            num_ranks=max(self.run.info.world_size, len(self.ranks)),
            num_steps=self.span.num_steps,
            memory_bytes=self.worst_rank.peak_bytes,
            memory_rank=self.worst_rank.rank,
            on_gpu=self.on_gpu,
            missing=self.missing,
            outcome=None if self.outcome is None else self.outcome.outcome,
            last_loss_is_finite=self.last_loss_is_finite,
            hours=self.hours,
            joules_per_clip=self.joules_per_clip,
        )
        return judge(measured, budget)


def read_figures(run_dir: str | Path) -> Figures:
    """The figures of a run folder.

    Raises ValueError where it is no run folder, or holds no record at all.
    """
    run_dir = Path(run_dir)
    run, outcome, reader = read_run(run_dir), read_outcome(run_dir), read_records(run_dir)
    if reader.first_step is None or reader.last_step is None:
        how = "" if outcome is None else f"; the run ended with: {outcome.outcome.strip().splitlines()[0]}"
        raise ValueError(f"{run_dir} holds no record of any step, so there is nothing to judge{how}")
    span = Span(reader.first_step, reader.last_step)
    ranks = summarize_ranks(reader, span)
    if not any(rank.num_records for rank in ranks):
        raise ValueError(f"{run_dir} holds no readable record: {next(text for rank in ranks for text in rank.unreadable)}")
    curves = {name: Curve(span.num_buckets) for name in CURVES}
    for rank in ranks:
        for name, curve in curves.items():
            curve.merge(rank.curves[name])
    clips_by_step, seconds_by_step = _merge_steps(ranks)
    rates = {step: clips_by_step[step] / seconds for step, seconds in seconds_by_step.items() if seconds > 0}
    throughput = Curve(span.num_buckets)
    for step, rate in rates.items():
        throughput.add(span.bucket(step), [rate])
    return Figures(
        run_dir=run_dir,
        run=run,
        outcome=outcome,
        span=span,
        ranks=ranks,
        missing=_find_missing(run, outcome, span, ranks),
        curves=curves,
        throughput=throughput,
        clips_per_second=statistics.median(rates.values()) if rates else None,
        step_seconds=statistics.median(seconds_by_step.values()) if seconds_by_step else None,
        mean_step_seconds=statistics.fmean(seconds_by_step.values()) if seconds_by_step else None,
        bad_videos=_read_bad_videos(run_dir),
    )


def _merge_steps(ranks: list[RankFigures]) -> tuple[dict[int, int], dict[int, float]]:
    """Clips of all ranks, and seconds of the slowest rank, by step."""
    clips: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for rank in ranks:
        for step, step_clips, step_seconds in zip(rank.steps, rank.clips, rank.seconds, strict=True):
            clips[step] = clips.get(step, 0) + step_clips
            seconds[step] = max(seconds.get(step, 0.0), step_seconds)
    return clips, seconds


def _find_missing(run: RunFile, outcome: Outcome | None, span: Span, ranks: list[RankFigures]) -> tuple[str, ...]:
    """Which ranks lack which steps, in words."""
    last_steps = [rank.last.step for rank in ranks if rank.last]
    # While a run goes on its ranks are a step or two apart; once it has ended every rank owes the last step.
    last_step = min(last_steps) if outcome is None else max(span.last_step, outcome.last_step or 0)
    owed = _steps_owed(run, last_step)
    got = {rank.rank: rank.got for rank in ranks}
    missing = []
    for rank in sorted(owed):
        gaps = _subtract(owed[rank], got.get(rank, []))
        if not got.get(rank):
            missing.append(f"rank {rank} has no records")
        elif gaps:
            missing.append(f"rank {rank} lacks {_name_steps(gaps)}")
    return tuple(missing)


def _steps_owed(run: RunFile, last_step: int) -> dict[int, list[tuple[int, int]]]:
    """The stretches of steps of which each rank must have a record; a resumed run may have another number of ranks."""
    owed: dict[int, list[tuple[int, int]]] = {}
    for place, part in enumerate(run.parts):
        later = [other.first_step for other in run.parts[place + 1 :]]
        end_step = min([last_step, *(first - 1 - STEPS_LOST_BY_A_KILL for first in later)])
        if part.first_step <= end_step:
            for rank in range(part.world_size):
                owed.setdefault(rank, []).append((part.first_step, end_step))
    return owed


def _subtract(owed: list[tuple[int, int]], got: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of `owed` that `got` (ascending) does not cover."""
    gaps = []
    for first, last in owed:
        for got_first, got_last in got:
            if got_last < first or got_first > last:
                continue
            if got_first > first:
                gaps.append((first, got_first - 1))
            first = got_last + 1
        if first <= last:
            gaps.append((first, last))
    return gaps


def _name_steps(gaps: list[tuple[int, int]]) -> str:
    num = sum(last - first + 1 for first, last in gaps)
    names = [str(first) if first == last else f"{first} to {last}" for first, last in gaps[:5]]
    more = f" and {len(gaps) - 5} more stretches" if len(gaps) > 5 else ""
    return f"{num} step{'s' if num > 1 else ''}: {', '.join(names)}{more}"


def _read_bad_videos(run_dir: Path) -> list[BadVideo]:
    path = run_dir / "bad_clips.csv"
    if not path.exists():
        return []
    times: dict[tuple[str, str], int] = {}
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.reader(line.replace("\0", "") for line in file):
            if len(row) == 5 and row[0] != "rank":
                times[row[2], row[4]] = times.get((row[2], row[4]), 0) + 1
    return [BadVideo(video, reason, num) for (video, reason), num in times.items()]
