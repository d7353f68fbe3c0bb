"""The report as one JSON object: figures and verdict -> a tree for report.json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mats_ds.reporting.budget import Budget, Verdict
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.memory import Pair, compare_with_plan
from mats_ds.reporting.rank_checks import Balance
from mats_ds.reporting.ranks import RankFigures
from mats_ds.reporting.report_text import list_notes

SCHEMA = 2


def to_json(figures: Figures, budget: Budget, verdict: Verdict) -> dict[str, Any]:
    """The report for programs: plain numbers in the units of their names, null where not
    measured."""
    first_loss, last_loss = figures.losses
    info = figures.run.info
    return {
        "schema": SCHEMA,
        "passed": verdict.passed,
        "headline": verdict.headline,
        "state": verdict.state,
        "is_about_the_budget": verdict.is_about_the_budget,
        "measured": verdict.qualifier or "on the hardware of the budget",
        "caveats": list(verdict.caveats),
        "checks": [asdict(check) for check in verdict.checks],
        "budget": asdict(budget),
        "run": asdict(info),
        "parts": [asdict(part) for part in figures.run.parts],
        "outcome": None if figures.outcome is None else asdict(figures.outcome),
        "missing": list(figures.missing),
        "num_ranks": len(figures.ranks),
        "first_step": figures.span.first_step,
        "last_step": figures.span.last_step,
        "num_warmup_steps": figures.span.num_warmup_steps,
        "num_clips": figures.num_clips,
        "memory_kind": figures.memory_name,
        "peak_memory_bytes": figures.worst_rank.peak_bytes,
        "peak_memory_rank": figures.worst_rank.rank,
        "peak_memory_step": figures.worst_rank.peak_step,
        "memory_bytes_by_kind": figures.memory_kinds or None,
        "plan": None if figures.plan is None else [_pair_to_json(pair) for pair in compare_with_plan(figures)],
        "balance": None if figures.balance is None else _balance_to_json(figures.balance),
        "silent_seconds": figures.silent_seconds if figures.outcome is None else None,
        "loss_first": first_loss,
        "loss_last": last_loss,
        "result": figures.result,
        "num_steps_loss_not_finite": figures.num_not_finite,
        "clips_per_second": figures.clips_per_second,
        "step_seconds_median": figures.step_seconds,
        "step_seconds_mean": figures.mean_step_seconds,
        "phase_shares": figures.phase_fractions,
        "forward_gmacs_per_clip": info.forward_macs_per_clip / 1e9,
        "model_flops_per_second_per_rank": figures.model_flops_per_second,
        "peak_flops_per_second": None if figures.peak is None else figures.peak.flops_per_second,
        "peak_flops_source": None if figures.peak is None else figures.peak.source,
        "peak_arithmetic": None if figures.peak is None else figures.peak.arithmetic,
        "model_flops_utilization": figures.model_flops_utilization,
        "hardware_flops_utilization": figures.hardware_flops_utilization,
        "joules_per_clip": figures.joules_per_clip,
        "watts_per_card": figures.watts,
        "hours_projected": figures.hours,
        "num_bad_clips": figures.num_bad_clips,
        "num_substitutes": figures.num_substitutes,
        "bad_videos": [asdict(video) for video in figures.bad_videos],
        "ranks": [_rank_to_json(rank) for rank in figures.ranks],
        "notes": list_notes(figures),
    }


def _pair_to_json(pair: Pair) -> dict[str, Any]:
    return {"name": pair.name, "planned": pair.planned, "measured": pair.measured, "ratio": pair.ratio}


def _balance_to_json(balance: Balance) -> dict[str, Any]:
    return {
        "lost_share": balance.lost_fraction,
        "last_shares": balance.last_fractions,
        "late_seconds": balance.late_seconds,
        "worst_rank": balance.worst_rank,
        "late_rank": balance.late_rank,
        "is_beyond_chance": balance.is_beyond_chance,
        "num_steps": balance.num_steps,
    }


def _rank_to_json(rank: RankFigures) -> dict[str, Any]:
    names = (
        "rank num_records peak_bytes peak_step peak_allocated_bytes peak_reserved_bytes nvml_used_bytes peak_rss_bytes "
        "peak_active_bytes peak_inactive_bytes num_alloc_retries num_ooms num_clips num_substitutes num_bad_clips "
        "step_seconds num_superseded num_unreadable"
    )
    return {name: getattr(rank, name) for name in names.split()} | {"waiting_share": rank.waiting_fraction}
