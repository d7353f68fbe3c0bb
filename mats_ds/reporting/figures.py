"""The figures of a run folder: records of all ranks, run.json, plan.json, outcome.json and
bad_clips.csv in one value.

Loads neither torch nor anything that does, so that a report takes about a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from mats_ds.core.events import PHASES
from mats_ds.core.run_dir import Outcome, RunFile, read_outcome, read_run
from mats_ds.metering.device_memory import split_peak
from mats_ds.metering.peak_flops import BF16, FP32, Peak, find_peak
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.run_result import read_result
from mats_ds.planning.plan_file import Plan, read_plan
from mats_ds.reporting.budget import Budget, Measured, Verdict, first_line, judge
from mats_ds.reporting.rank_checks import Balance, describe_waiting, find_balance, find_missing, find_waiting
from mats_ds.reporting.ranks import CURVES, MIN_SECONDS, Curve, RankFigures, Span, summarize_ranks
from mats_ds.reporting.run_files import BadVideo, RunFiles, quicker_reading, read_run_files


@dataclass
class Figures:
    """Everything that a report shows. Medians and fractions leave out the warm-up steps. None: not
    measured or not known."""

    run_dir: Path
    run: RunFile
    plan: Plan | None
    outcome: Outcome | None
    span: Span
    ranks: list[RankFigures]
    missing: tuple[str, ...]
    curves: dict[str, Curve]
    throughput: Curve
    clips_per_second: float | None
    step_seconds: float | None
    mean_step_seconds: float | None
    balance: Balance | None
    files: RunFiles
    silent_seconds: float | None
    result: dict[str, Any] | None = None  # result.json of a fine-tuning

    @property
    def bad_videos(self) -> list[BadVideo]:
        return self.files.bad_videos

    @property
    def on_gpu(self) -> bool:
        return any(rank.on_gpu for rank in self.ranks)

    @property
    def worst_rank(self) -> RankFigures:
        return max(self.ranks, key=lambda rank: rank.peak_bytes)

    @property
    def slowest_rank(self) -> RankFigures:
        """The rank that waits longest for data."""
        return max(self.ranks, key=lambda rank: rank.waiting_fraction)

    @property
    def memory_name(self) -> str:
        if not self.on_gpu:
            return "host memory (RSS)"
        with_nvml = any(rank.nvml_used_bytes is not None for rank in self.ranks)
        return "GPU memory (largest of torch's reserved peak and NVML)" if with_nvml else "GPU memory (torch's reserved peak)"

    @property
    def phase_fractions(self) -> dict[str, float]:
        """Parts of the step time of all ranks: each phase, and "other" (time of the host between
        the phases)."""
        seconds = {phase: sum(rank.phase_seconds[phase] for rank in self.ranks) for phase in PHASES}
        seconds["other"] = max(0.0, sum(rank.phase_seconds["total"] for rank in self.ranks) - sum(seconds.values()))
        total = sum(seconds.values())
        return {phase: value / total if total > 0 else 0.0 for phase, value in seconds.items()}

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
        """Mean loss of the first and of the last stretch of steps that a plot's point stands
        for."""
        means = [value for value in self.curves["loss"].mean() if value is not None]
        return (means[0], means[-1]) if means else (None, None)

    @property
    def newest_rank(self) -> RankFigures:
        """The rank with the latest step."""
        return max((rank for rank in self.ranks if rank.last_step is not None), key=lambda rank: rank.last_step)

    @property
    def begin_unix_seconds(self) -> float | None:
        """When the first recorded step began."""
        return min((rank.first_unix_seconds for rank in self.ranks if rank.first_unix_seconds is not None), default=None)

    @property
    def end_unix_seconds(self) -> float | None:
        """When the last recorded step ended."""
        return max((rank.last_unix_seconds for rank in self.ranks if rank.last_unix_seconds is not None), default=None)

    @property
    def memory_kinds(self) -> dict[str, int]:
        """The worst rank's memory by kind in the step of its peak; static kinds are those of rank
        0, which differ by padding. Empty on a CPU."""
        parts = self.worst_rank.peak_parts
        if "peak_allocated_bytes" not in parts or "peak_reserved_bytes" not in parts:
            return {}
        return split_peak(
            self.run.info.static_bytes,
            peak_allocated_bytes=parts["peak_allocated_bytes"],
            peak_reserved_bytes=parts["peak_reserved_bytes"],
            clip_bytes=parts.get("clip_bytes", 0),
            used_bytes=parts.get("nvml_used_bytes"),
        )

    @property
    def model_flops_per_second(self) -> float | None:
        """Useful FLOP/s of one rank: the FLOPs that the model needs, without what is computed
        twice."""
        if self.clips_per_second is None or not self.run.info.model_flops_per_clip:
            return None
        return self.clips_per_second * self.run.info.model_flops_per_clip / self.run.info.world_size

    @property
    def peak(self) -> Peak | None:
        """The GPU's peak in the run's arithmetic, as the run recorded it, else from the table."""
        info = self.run.info
        if not self.on_gpu or info.precision not in (BF16, FP32):
            return None
        # Before there was `peak_arithmetic`, every run recorded the peak in bf16.
        recorded = info.peak_arithmetic or BF16
        if info.peak_flops and (info.peak_arithmetic or info.precision == BF16):
            return Peak(info.peak_flops, info.peak_source, recorded)
        return find_peak(info.device_name, info.precision)

    @property
    def model_flops_utilization(self) -> float | None:
        """MFU: useful FLOP/s over the GPU's dense peak in the run's arithmetic."""
        if self.model_flops_per_second is None or self.peak is None:
            return None
        return self.model_flops_per_second / self.peak.flops_per_second

    @property
    def hardware_flops_utilization(self) -> float | None:
        """HFU: as MFU, with what is computed twice."""
        info, mfu = self.run.info, self.model_flops_utilization
        return None if mfu is None else mfu * info.hardware_flops_per_clip / info.model_flops_per_clip

    @property
    def joules_per_clip(self) -> float | None:
        """Energy of the GPUs, by NVML."""
        num_clips = sum(rank.num_metered_clips for rank in self.ranks)
        return sum(rank.joules for rank in self.ranks) / num_clips if num_clips else None

    @property
    def watts(self) -> float | None:
        """Mean power of a GPU over the steps."""
        metered = [rank for rank in self.ranks if rank.num_metered_clips]
        seconds = sum(rank.phase_seconds["total"] for rank in metered)
        return sum(rank.joules for rank in metered) / seconds if seconds >= MIN_SECONDS else None

    @property
    def hours(self) -> float | None:
        """All steps of the run at the mean step time; checkpoints and evaluation are not in it."""
        if self.mean_step_seconds is None:
            return None
        return self.mean_step_seconds * max(self.run.info.total_steps, self.span.last_step) / 3600

    @property
    def advice(self) -> str:
        """One sentence on the time that is spent waiting for data."""
        waiting = find_waiting(self.ranks, fraction=self.phase_fractions["data"])
        return describe_waiting(waiting, who="GPU" if self.on_gpu else "model", remedy=quicker_reading(self.files.recipe))

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
            outcome_rank=0 if self.outcome is None else self.outcome.rank,
            last_step=self.newest_rank.last_step,
            silent_seconds=self.silent_seconds,
            step_seconds=self.step_seconds,
            last_loss_is_finite=self.newest_rank.last_loss_is_finite,
            hours=self.hours,
            joules_per_clip=self.joules_per_clip,
            device_name=self.run.info.device_name,
            device_memory_bytes=self.run.info.device_memory_bytes,
        )
        return judge(measured, budget)


def read_figures(run_dir: str | Path) -> Figures:
    """The figures of a run folder.

    Raises ValueError where it is no run folder, or holds no record at all.
    """
    run_dir = Path(run_dir)
    run, outcome, reader = read_run(run_dir), read_outcome(run_dir), read_records(run_dir)
    if reader.first_step is None or reader.last_step is None:
        how = "" if outcome is None else f"; the run ended with: {first_line(outcome.outcome)}"
        raise ValueError(f"{run_dir} holds no record of any step, so there is nothing to judge{how}")
    span = Span(reader.first_step, reader.last_step)
    curves = {name: Curve(span.num_buckets) for name in CURVES}
    ranks = _collect_ranks(summarize_ranks(reader, span), curves)
    if not any(rank.num_records for rank in ranks):
        why = next((text for rank in ranks for text in rank.unreadable), "the files have changed while they were read")
        raise ValueError(f"{run_dir} holds no readable record: {why}")
    steps, clips, seconds = _merge_steps(ranks)
    timed = seconds >= MIN_SECONDS
    rates = clips[timed] / seconds[timed]
    throughput = Curve(span.num_buckets)
    throughput.add(span.buckets(steps[timed]), rates)
    last_seconds = [rank.last_unix_seconds for rank in ranks if rank.last_unix_seconds is not None]
    return Figures(
        run_dir=run_dir,
        run=run,
        plan=read_plan(run_dir),
        outcome=outcome,
        span=span,
        ranks=ranks,
        missing=find_missing(run, outcome, span, ranks),
        curves=curves,
        throughput=throughput,
        clips_per_second=float(np.median(rates)) if len(rates) else None,
        step_seconds=float(np.median(seconds)) if len(seconds) else None,
        mean_step_seconds=float(seconds.mean()) if len(seconds) else None,
        balance=find_balance(ranks),
        files=read_run_files(run_dir),
        silent_seconds=max(0.0, time.time() - max(last_seconds)) if last_seconds else None,
        result=read_result(run_dir),
    )


def _collect_ranks(all_ranks: Iterable[RankFigures], curves: dict[str, Curve]) -> list[RankFigures]:
    """The ranks in a list, their curves added up in `curves`. Only the worst rank keeps all of its
    own, the others that of their memory: of thousands of ranks they would be the largest part of
    the report."""
    ranks: list[RankFigures] = []
    worst = None
    for rank in all_ranks:
        for name, curve in curves.items():
            curve.merge(rank.curves[name])
        ranks.append(rank)
        if worst is None or rank.peak_bytes > worst.peak_bytes:
            worst, rank = rank, worst
        if rank is not None:
            rank.curves = {"memory_bytes": rank.curves["memory_bytes"]}
    return ranks


def _merge_steps(ranks: list[RankFigures]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps after the warm-up; clips of all ranks and seconds of the slowest rank in each."""
    steps = reduce(np.union1d, [rank.steps for rank in ranks])
    clips, seconds = np.zeros(len(steps)), np.zeros(len(steps))
    for rank in ranks:
        indices = np.searchsorted(steps, rank.steps)
        clips[indices] += rank.clips
        seconds[indices] = np.maximum(seconds[indices], rank.seconds)
    return steps, clips, seconds
