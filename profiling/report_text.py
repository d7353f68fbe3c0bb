"""A report in words (label and text, for the console and the page alike) and in JSON (for machines)."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any, NamedTuple

from report_figures import Figures

from mats_ds.metering.budget import Budget, Verdict, format_bytes
from mats_ds.metering.records import SCHEMA

WIDTH = 110
LABEL_WIDTH = 18
NUM_LISTED_VIDEOS = 5


class Row(NamedTuple):
    """One line of a report."""

    label: str
    text: str


def format_report(figures: Figures, verdict: Verdict) -> str:
    """The whole report for a console; its first line is the verdict."""
    lines = [f"{'PASS' if verdict.passed else 'FAIL'}: {verdict.headline}", ""]
    for line in verdict.lines:
        lines += textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent=" " * 13)
    lines.append("")
    for row in describe(figures):
        lines += textwrap.wrap(
            f"{row.label:{LABEL_WIDTH}}{row.text}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * (LABEL_WIDTH + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def describe(figures: Figures) -> list[Row]:
    """What the run did and what it cost, one row a subject."""
    info = figures.run.info
    ranks, clips = count(info.world_size, "rank"), count(info.micro_batch, "clip")
    batch = f"{ranks} x {clips} x {info.accumulation} accumulated = {info.global_batch} a step"
    length = f"step {figures.span.last_step} of {info.total_steps}, epoch {_last_epoch(figures)}; {figures.num_clips} clips"
    if figures.hours is not None:
        length += f"; {_format_hours(figures.hours)} for the whole run at this pace"
    rows = [
        Row("run", f"{info.recipe_name} on {info.world_size} x {info.device_name}, data {info.data_name or 'not named'}"),
        Row("model", f"{info.model_name}, {info.num_parameters / 1e6:.1f} M parameters, {info.precision}; {batch}"),
        Row("length", length),
        Row("loss", describe_loss(figures)),
        Row("memory", _describe_memory(figures)),
        Row("clips a second", _describe_throughput(figures)),
        Row("step time", _describe_step(figures)),
        Row("waiting for data", figures.advice),
        Row("tokens of a clip", describe_tokens(figures)),
        Row("forward pass", _describe_forward(figures)),
        Row("training", _describe_training(figures)),
        Row("achieved", describe_achieved(figures)),
        Row(f"ZeRO stage {info.zero_stage}", _describe_static(figures)),
        Row("bad videos", describe_bad_videos(figures)),
        Row("versions", ", ".join(f"{name} {version}" for name, version in info.versions.items()) or "not recorded"),
    ]
    if figures.joules_per_clip is not None:
        rows.insert(-3, Row("energy", f"{figures.joules_per_clip:.1f} J a clip, of the cards alone"))
    return rows + [Row("note", text) for text in list_notes(figures)]


def describe_loss(figures: Figures) -> str:
    first, last = figures.losses
    width = round(figures.span.num_steps / figures.span.num_buckets)
    text = "no finite loss was recorded"
    if first is not None and last is not None:
        text = f"{first:.4g} -> {last:.4g}" + (f" (means of the first and last {width} steps)" if width > 1 else "")
    if figures.num_not_finite:
        step = min(rank.first_not_finite_step for rank in figures.ranks if rank.first_not_finite_step is not None)
        text += f"; not finite on {count(figures.num_not_finite, 'step')}, first at step {step}"
    return text


def describe_tokens(figures: Figures) -> str:
    info = figures.run.info
    share = 100 * info.kept / info.num_tokens if info.num_tokens else 0.0
    return f"{info.kept} of {info.num_tokens} kept ({share:.1f}%): {info.visible} visible, {info.targets} targets"


def describe_achieved(figures: Figures) -> str:
    if figures.model_flops_per_second is None:
        return "not known: no step was timed, or the model's FLOPs were not recorded"
    text = f"{format_flops(figures.model_flops_per_second)}/s of model FLOPs a rank"
    name, peak = figures.run.info.device_name, figures.peak_flops_per_second
    if figures.model_flops_utilization is not None and peak is not None:
        return f"{text}, {100 * figures.model_flops_utilization:.1f}% of the dense bf16 peak of {format_flops(peak)}/s (MFU)"
    return f"{text}; no MFU, as {f'the peak of {name} is not known here' if figures.on_gpu else 'this was a run on a CPU'}"


def describe_bad_videos(figures: Figures) -> str:
    if not figures.bad_videos and not figures.num_bad_clips:
        return "none"
    named = [f"{video.path} ({video.reason})" for video in figures.bad_videos[:NUM_LISTED_VIDEOS]]
    more = len(figures.bad_videos) - len(named)
    text = (
        f"{count(len(figures.bad_videos), 'video')} unreadable, {count(figures.num_substitutes, 'clip')} replaced by a substitute"
    )
    return f"{text}: {'; '.join(named)}" + (f"; and {more} more in bad_clips.csv" if more > 0 else "")


def list_notes(figures: Figures) -> list[str]:
    """What a reader should know of how the records were read."""
    notes = []
    num_superseded = sum(rank.num_superseded for rank in figures.ranks)
    num_unreadable = sum(rank.num_unreadable for rank in figures.ranks)
    if len(figures.run.parts) > 1:
        firsts = ", ".join(str(part.first_step) for part in figures.run.parts[1:])
        again = f"; {count(num_superseded, 'older record')} of steps done again left out" if num_superseded else ""
        notes.append(f"resumed at step {firsts}{again}")
    if num_unreadable:
        named = [text for rank in figures.ranks for text in rank.unreadable][:3]
        notes.append(f"{count(num_unreadable, 'unreadable line')} left out: {'; '.join(named)}")
    num_ooms = max((rank.num_ooms or 0 for rank in figures.ranks), default=0)
    num_retries = max((rank.num_alloc_retries or 0 for rank in figures.ranks), default=0)
    if num_ooms or num_retries:
        notes.append(
            f"the allocator had to retry {num_retries} times and ran out of memory {num_ooms} times on one rank: "
            "memory is too tight, lower the micro-batch or recompute more blocks"
        )
    return notes


def to_json(figures: Figures, budget: Budget, verdict: Verdict) -> dict[str, Any]:
    """The report for machines: plain numbers in the units that their names tell, null where not measured."""
    first_loss, last_loss = figures.losses
    info = figures.run.info
    return {
        "schema": SCHEMA,
        "passed": verdict.passed,
        "headline": verdict.headline,
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
        "loss_first": first_loss,
        "loss_last": last_loss,
        "num_steps_loss_not_finite": figures.num_not_finite,
        "clips_per_second": figures.clips_per_second,
        "step_seconds_median": figures.step_seconds,
        "step_seconds_mean": figures.mean_step_seconds,
        "phase_shares": figures.phase_shares,
        "forward_gmacs_per_clip": info.forward_macs_per_clip / 1e9,
        "model_flops_per_second_per_rank": figures.model_flops_per_second,
        "peak_flops_per_second": figures.peak_flops_per_second,
        "model_flops_utilization": figures.model_flops_utilization,
        "joules_per_clip": figures.joules_per_clip,
        "hours_projected": figures.hours,
        "num_bad_clips": figures.num_bad_clips,
        "num_substitutes": figures.num_substitutes,
        "bad_videos": [asdict(video) for video in figures.bad_videos],
        "ranks": [_rank_to_json(rank) for rank in figures.ranks],
        "notes": list_notes(figures),
    }


def _rank_to_json(rank: Any) -> dict[str, Any]:
    names = (
        "rank num_records peak_bytes peak_step peak_allocated_bytes peak_reserved_bytes nvml_used_bytes peak_rss_bytes "
        "num_alloc_retries num_ooms num_clips num_substitutes num_bad_clips waiting_share num_superseded num_unreadable"
    )
    return {name: getattr(rank, name) for name in names.split()}


def _describe_memory(figures: Figures) -> str:
    worst = figures.worst_rank
    text = (
        f"rank {worst.rank} peaked at {format_bytes(worst.peak_bytes)} in step {worst.peak_step}; this is {figures.memory_name}"
    )
    if not figures.on_gpu:
        return f"{text} of the process with its libraries, as no GPU was there"
    allocated, reserved = worst.peak_allocated_bytes or 0, worst.peak_reserved_bytes or 0
    parts = [f"torch allocated {format_bytes(allocated)}, reserved {format_bytes(reserved)}"]
    if worst.nvml_used_bytes is not None:
        parts.append(f"device {format_bytes(worst.nvml_used_bytes)} by NVML, every process on it counted")
    return f"{text}: {', '.join(parts)}"


def _describe_throughput(figures: Figures) -> str:
    if figures.clips_per_second is None:
        return "not known: no step was timed"
    skipped = figures.span.num_warmup_steps
    without = f", without the first {count(skipped, 'step')}" if skipped else ""
    return f"{figures.clips_per_second:.4g} on all ranks together (median{without})"


def _describe_step(figures: Figures) -> str:
    if figures.step_seconds is None:
        return "not known: no step was timed"
    shares = ", ".join(f"{phase} {100 * share:.1f}%" for phase, share in figures.phase_shares.items())
    return f"{figures.step_seconds:.4g} s (median of the slowest rank): {shares}"


def _describe_forward(figures: Figures) -> str:
    macs = figures.run.info.forward_macs_per_clip
    return f"{macs / 1e9:.4g} GMAC a clip (what papers call GFLOPs), {format_flops(2 * macs)} counting additions too"


def _describe_training(figures: Figures) -> str:
    info = figures.run.info
    model, hardware = info.model_flops_per_clip, info.hardware_flops_per_clip
    again = f", {100 * (hardware / model - 1):.0f}% more, computed twice to save memory" if model and hardware > model else ""
    return f"{format_flops(model)} of model FLOPs a clip (forward and backward); hardware {format_flops(hardware)}{again}"


def _describe_static(figures: Figures) -> str:
    sizes = figures.run.info.static_bytes
    if not sizes:
        return "static bytes were not recorded"
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    return f"{format_bytes(sum(sizes.values()))} a rank are static: {parts}"


def _last_epoch(figures: Figures) -> int:
    return max(rank.last.epoch for rank in figures.ranks if rank.last)


def _format_hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"


def format_flops(flops: float) -> str:
    """FLOPs for people: "120 GFLOP", "3.25 TFLOP"."""
    return f"{flops / 1e12:.4g} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.4g} GFLOP"


def count(number: int, noun: str) -> str:
    """ "1 step", "3 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
