"""The report as rows of label and text, for the console and the page."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import NamedTuple

from mats_ds.core.clips import DAMAGED
from mats_ds.core.format import HOUR, format_bytes, format_count, format_duration, format_figure, format_flops, shorten
from mats_ds.core.text import clean_line
from mats_ds.metering.out_of_memory import plan_command
from mats_ds.metering.peak_flops import MEASURED
from mats_ds.reporting.budget import Verdict
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.memory import compare_with_plan, list_kinds

WIDTH = 110
LABEL_WIDTH = 18
NUM_LISTED_VIDEOS, NUM_LISTED_PARTS = 5, 20
NOTABLE_DEVIATION = 0.05  # measured from planned: the bound that a plan is tested to


class Row(NamedTuple):
    """One line of a report."""

    label: str
    text: str


def format_report(figures: Figures, verdict: Verdict) -> str:
    """The report for a console; its first line is the verdict."""
    lines = [clean_line(f"{'PASS' if verdict.passed else 'FAIL'}: {verdict.headline}"), ""]
    for line in verdict.lines:
        lines += textwrap.wrap(clean_line(line), WIDTH, initial_indent="  ", subsequent_indent=" " * 13)
    lines.append("")
    for row in describe(figures):
        lines += textwrap.wrap(
            clean_line(f"{row.label:{LABEL_WIDTH}}{row.text}"),
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * (LABEL_WIDTH + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def describe(figures: Figures) -> list[Row]:
    """All rows of the report, one a subject."""
    info = figures.run.info
    ranks, clips = format_count(info.world_size, "rank"), format_count(info.micro_batch, "clip")
    batch = f"{ranks} x {clips} x {info.accumulation} accumulated = {info.global_batch:,} a step"
    length = f"step {figures.span.last_step:,} of {info.total_steps:,}, epoch {_last_epoch(figures)}"
    length += f"; {format_count(figures.num_clips, 'clip')}"
    if figures.hours is not None:
        length += f"; {format_duration(HOUR * figures.hours)} for the entire run at this speed"
    name, gpu, model = (shorten(text) for text in (info.recipe_name, info.device_name, info.model_name))
    rows = [
        Row("run", f"{name} on {info.world_size} x {gpu}, data {shorten(info.data_name) or 'not named'}"),
        Row("model", f"{model}, {info.num_parameters / 1e6:.1f} M parameters, {shorten(info.precision)}; {batch}"),
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
        Row("memory by kind", _describe_kinds(figures)),
        Row("bad videos", describe_bad_videos(figures)),
        Row("versions", ", ".join(f"{name} {shorten(version)}" for name, version in info.versions.items()) or "not recorded"),
    ]
    if figures.joules_per_clip is not None:
        rows.insert(-3, Row("energy", describe_energy(figures)))
    if figures.balance is not None:
        rows.insert(8, Row("balance", figures.balance.text))
    if figures.plan is not None:
        rows.insert(-2, Row("planned", _describe_plan(figures)))
    if figures.result is not None:
        rows.insert(4, Row("accuracy", "; ".join(figures.result["words"])))
    return rows + [Row("note", text) for text in list_notes(figures)]


def describe_loss(figures: Figures) -> str:
    first, last = figures.losses
    width = round(figures.span.num_steps / figures.span.num_buckets)
    text = "no finite loss was recorded"
    if first is not None and last is not None:
        text = f"{format_figure(first)} -> {format_figure(last)}" + (
            f" (means of the first and last {width:,} steps)" if width > 1 else ""
        )
    if figures.num_not_finite:
        step = min(rank.first_not_finite_step for rank in figures.ranks if rank.first_not_finite_step is not None)
        text += f"; not finite on {format_count(figures.num_not_finite, 'step')}, first at step {step:,}"
    return text


def describe_tokens(figures: Figures) -> str:
    info = figures.run.info
    percent = 100 * info.kept / info.num_tokens if info.num_tokens else 0.0
    kept = f"{info.kept:,} of {format_count(info.num_tokens, 'token')} kept ({percent:.1f}%)"
    return f"{kept}: {info.visible:,} visible, {format_count(info.targets, 'target')}"


def describe_achieved(figures: Figures) -> str:
    if figures.model_flops_per_second is None:
        return "not known: no step was timed, or the model's FLOPs were not recorded"
    text = f"{format_flops(figures.model_flops_per_second)}/s of model FLOPs a rank"
    mfu, hfu, peak = figures.model_flops_utilization, figures.hardware_flops_utilization, figures.peak
    if mfu is None or hfu is None or peak is None:
        name = figures.run.info.device_name
        return f"{text}; no MFU, as {f'the peak of {name} is not known here' if figures.on_gpu else 'this was a run on a CPU'}"
    how = peak.arithmetic
    whose = f"{how} rate of one large product, measured on this GPU," if peak.source == MEASURED else f"dense {how} peak"
    again = f"; {100 * hfu:.1f}% with what is computed twice (HFU)" if hfu > mfu else ""
    return f"{text}, {100 * mfu:.1f}% of the {whose} of {format_flops(peak.flops_per_second)}/s (MFU){again}"


def describe_energy(figures: Figures) -> str:
    text = f"{format_figure(figures.joules_per_clip, 3)} J a clip, of the GPUs alone"
    return text if figures.watts is None else f"{text}, {figures.watts:.0f} W a GPU on average"


def describe_bad_videos(figures: Figures) -> str:
    if not figures.bad_videos and not figures.num_bad_clips:
        return "none"
    named = [f"{shorten(video.path)} ({shorten(video.reason)})" for video in figures.bad_videos[:NUM_LISTED_VIDEOS]]
    more = len(figures.bad_videos) - len(named)
    num_damaged = sum(video.reason.startswith(DAMAGED) for video in figures.bad_videos)
    counts = {"unreadable": len(figures.bad_videos) - num_damaged, DAMAGED.rstrip(": "): num_damaged}
    text = ", ".join(f"{format_count(number, 'video')} {kind}" for kind, number in counts.items() if number or not num_damaged)
    text += f"; {format_count(figures.num_substitutes, 'clip')} replaced by a substitute"
    return f"{text}: {'; '.join(named)}" + (f"; and {more:,} more in bad_clips.csv" if more > 0 else "")


def list_notes(figures: Figures) -> list[str]:
    """Notes on how the records were read."""
    notes = []
    num_superseded = sum(rank.num_superseded for rank in figures.ranks)
    num_unreadable = sum(rank.num_unreadable for rank in figures.ranks)
    if len(figures.run.parts) > 1:
        parts = figures.run.parts[1:]
        firsts = ", ".join(f"{part.first_step:,}" for part in parts[-NUM_LISTED_PARTS:])
        firsts = firsts if len(parts) <= NUM_LISTED_PARTS else f"{firsts} (the last of {len(parts)})"
        again = f"; {format_count(num_superseded, 'older record')} of repeated steps left out" if num_superseded else ""
        notes.append(f"resumed at step {firsts}{again}")
    if num_unreadable:
        named = [text for rank in figures.ranks for text in rank.unreadable][:3]
        notes.append(f"{format_count(num_unreadable, 'unreadable line')} left out: {'; '.join(named)}")
    notes += figures.files.left_out
    if figures.outcome is not None and figures.outcome.advice:
        where = f"; the allocator's state is in {shorten(figures.outcome.snapshot)}" if figures.outcome.snapshot else ""
        notes.append(f"rank {figures.outcome.rank} ran out of memory: {shorten(figures.outcome.advice)}{where}")
    num_ooms = max((rank.num_ooms or 0 for rank in figures.ranks), default=0)
    num_retries = max((rank.num_alloc_retries or 0 for rank in figures.ranks), default=0)
    if num_ooms or num_retries:
        notes.append(
            f"the allocator had to retry {format_count(num_retries, 'time')} and ran out of memory "
            f"{format_count(num_ooms, 'time')} on one rank: "
            f"memory is too tight; the largest micro-batch that fits, with other levels of recomputation, says "
            f"`{plan_command(replace(figures.run.info, run_dir=str(figures.run_dir)))}`"
        )
    return notes


def _describe_memory(figures: Figures) -> str:
    worst = figures.worst_rank
    text = (
        f"rank {worst.rank} peaked at {format_bytes(worst.peak_bytes)} in step {worst.peak_step:,}; this is {figures.memory_name}"
    )
    if not figures.on_gpu:
        return f"{text} of the process with its libraries, as no GPU was used"
    allocated, reserved = worst.peak_allocated_bytes or 0, worst.peak_reserved_bytes or 0
    parts = [f"torch allocated {format_bytes(allocated)}, reserved {format_bytes(reserved)}"]
    if worst.nvml_used_bytes is not None:
        parts.append(f"device {format_bytes(worst.nvml_used_bytes)} by NVML, every process on it counted")
    return f"{text}: {', '.join(parts)}"


def _describe_throughput(figures: Figures) -> str:
    if figures.clips_per_second is None:
        return "not known: no step was timed"
    skipped = figures.span.num_warmup_steps
    without = f", without the first {'step' if skipped == 1 else format_count(skipped, 'step')}" if skipped else ""
    return f"{format_figure(figures.clips_per_second)} on all ranks together (median{without})"


def _describe_step(figures: Figures) -> str:
    if figures.step_seconds is None:
        return "not known: no step was timed"
    fractions = ", ".join(f"{phase} {100 * fraction:.1f}%" for phase, fraction in figures.phase_fractions.items())
    return f"{format_figure(figures.step_seconds)} s (median of the slowest rank): {fractions}"


def _describe_forward(figures: Figures) -> str:
    macs = figures.run.info.forward_macs_per_clip
    return f"{format_figure(macs / 1e9)} GMAC a clip (what papers call GFLOPs), {format_flops(2 * macs)} counting additions too"


def _describe_training(figures: Figures) -> str:
    info = figures.run.info
    model, hardware = info.model_flops_per_clip, info.hardware_flops_per_clip
    again = f", {100 * (hardware / model - 1):.0f}% more, computed twice to save memory" if model and hardware > model else ""
    return f"{format_flops(model)} of model FLOPs a clip (forward and backward); hardware {format_flops(hardware)}{again}"


def _describe_kinds(figures: Figures) -> str:
    kinds = list_kinds(figures)
    if not kinds:
        return "static bytes were not recorded"
    parts = ", ".join(f"{name} {format_bytes(size)}" for _, name, size in kinds)
    if not figures.memory_kinds:
        static = format_bytes(sum(size for _, _, size in kinds))
        return f"{static} a rank are static under ZeRO stage {figures.run.info.zero_stage}: {parts}"
    return f"rank {figures.worst_rank.rank} at its peak, ZeRO stage {figures.run.info.zero_stage}: {parts}"


def _describe_plan(figures: Figures) -> str:
    """The peak, and the figures that deviate from the plan; the page has all of them."""
    peak, *others = [pair for pair in compare_with_plan(figures) if pair.ratio is not None] or [None]
    if peak is None:
        return "nothing of the plan could be measured"
    shown = [peak, *(pair for pair in others if abs(pair.ratio - 1) > NOTABLE_DEVIATION)]
    texts = [f"{pair.name} {pair.planned_text}, measured {pair.measured_text} ({pair.ratio_text} x)" for pair in shown]
    return "; ".join(texts) + (f"; {len(others) + 1 - len(shown)} more within {100 * NOTABLE_DEVIATION:.0f}%" if others else "")


def _last_epoch(figures: Figures) -> int:
    return max(rank.last_epoch for rank in figures.ranks)
