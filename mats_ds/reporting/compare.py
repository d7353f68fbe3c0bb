"""Two runs side by side: figures of A and of B, with the ratio of B to A, and the settings that
differ."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from mats_ds.core.events import PHASES
from mats_ds.core.format import HOUR, format_bytes, format_count, format_duration, format_figure, format_flops, ratio_of, shorten
from mats_ds.core.text import clean_line
from mats_ds.metering.chance import MIN_STEPS, differ_beyond_chance
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.memory import list_kinds
from mats_ds.reporting.run_files import INPUTS

NAME_WIDTH, VALUE_WIDTH = 38, 20
MAX_DIFFERENCES = 40
MAX_LINES = 2_000


@dataclass(frozen=True)
class Compared:
    """One figure of both runs, as numbers and as text. None: not measured. note: on a difference
    that may be chance."""

    name: str
    a: float | None
    b: float | None
    a_text: str
    b_text: str
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """B over A."""
        return ratio_of(self.b, self.a)


def list_compared(a: Figures, b: Figures) -> list[Compared]:
    """Every figure that one of the two runs has."""
    of_a_step = _doubt(a, b, "total_seconds")
    rows = [
        _compare("peak memory of the worst rank", a.worst_rank.peak_bytes, b.worst_rank.peak_bytes, format_bytes),
        *_compare_kinds(a, b),
        _compare("clips a second", a.clips_per_second, b.clips_per_second, note=of_a_step),
        _compare("step, s", a.step_seconds, b.step_seconds, note=of_a_step),
        *(_compare(f"  {name}, s", _mean(a, name), _mean(b, name), note=_doubt(a, b, f"{name}_seconds")) for name in PHASES),
        _compare(
            "waiting for data, fraction", a.phase_fractions["data"], b.phase_fractions["data"], note=_doubt(a, b, "data_seconds")
        ),
        _compare(
            "waiting for the last rank, fraction", a.balance and a.balance.lost_fraction, b.balance and b.balance.lost_fraction
        ),
        _compare("MFU", a.model_flops_utilization, b.model_flops_utilization, note=of_a_step),
        _compare("model FLOP/s a rank", a.model_flops_per_second, b.model_flops_per_second, _format_rate, note=of_a_step),
        _compare("joules a clip", a.joules_per_clip, b.joules_per_clip),
        _compare("the whole run", a.hours, b.hours, lambda hours: format_duration(HOUR * hours), note=of_a_step),
        _compare("last loss", a.losses[1], b.losses[1]),
        *(_compare(name, *(getattr(run.run.info, key) for run in (a, b)), show) for name, (key, show) in _COUNTS.items()),
        _compare("unreadable videos", len(a.bad_videos), len(b.bad_videos)),
    ]
    return [row for row in rows if row.a is not None or row.b is not None]


def list_differences(a: Figures, b: Figures) -> list[str]:
    """Lines that only A's ("-") or only B's ("+") recipe, DeepSpeed JSON, GPU and versions have."""
    pairs = [[_lines_of(run.files.inputs.get(name, "")) for run in (a, b)] for name in INPUTS]
    lines = [line for pair in pairs for line in _diff(*pair)]
    texts = [[f"{name} {version}" for name, version in _describe_setting(run).items()] for run in (a, b)]
    return lines + _diff(*texts)


def compare_runs(a: Figures, b: Figures) -> dict[str, Any]:
    """The comparison for programs."""
    rows = [
        {"name": row.name.strip(), "a": row.a, "b": row.b, "ratio": row.ratio, "note": row.note} for row in list_compared(a, b)
    ]
    return {"a": str(a.run_dir), "b": str(b.run_dir), "figures": rows, "differences": list_differences(a, b)}


def format_comparison(a: Figures, b: Figures) -> str:
    """The comparison for a console."""
    named = (("A", a), ("B", b))
    lines = [*(f"{letter}: {shorten(figures.run.info.recipe_name)}, {figures.run_dir}" for letter, figures in named)]
    lines += [*(f"{letter}: {text}" for letter, figures in named for text in figures.files.left_out), ""]
    lines.append(f"{'':{NAME_WIDTH}}{'A':>{VALUE_WIDTH}}{'B':>{VALUE_WIDTH}}   B / A")
    for row in list_compared(a, b):
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        columns = f"{row.name:{NAME_WIDTH}}{row.a_text:>{VALUE_WIDTH}}{row.b_text:>{VALUE_WIDTH}}"
        lines.append(f"{columns}   {ratio} {row.note}".rstrip())
    differences = list_differences(a, b)
    shown = [f"  {line}" for line in differences[:MAX_DIFFERENCES]]
    if len(differences) > MAX_DIFFERENCES:
        shown.append(f"  and {len(differences) - MAX_DIFFERENCES:,} more")
    return "\n".join(map(clean_line, [*lines, "", "set differently:", *(shown or ["  nothing"])]))


def _format_rate(flops_per_second: float) -> str:
    return f"{format_flops(flops_per_second)}/s"


def _format_macs(macs: float) -> str:
    return f"{format_figure(macs / 1e9)} GMAC"


_COUNTS = {  # name: (field of RunInfo, how it is shown)
    "forward MACs of a clip": ("forward_macs_per_clip", _format_macs),
    "model FLOPs of a clip": ("model_flops_per_clip", format_flops),
    "hardware FLOPs of a clip": ("hardware_flops_per_clip", format_flops),
    "tokens kept": ("kept", format_figure),
    "ranks": ("world_size", format_figure),
    "micro-batch": ("micro_batch", format_figure),
    "clips a step": ("global_batch", format_figure),
    "parameters": ("num_parameters", format_figure),
}


def _compare_kinds(a: Figures, b: Figures) -> list[Compared]:
    of_a, of_b = ({name: size for _, name, size in list_kinds(figures)} for figures in (a, b))
    return [_compare(f"  {name}", of_a.get(name), of_b.get(name), format_bytes) for name in dict.fromkeys((*of_a, *of_b))]


def _compare(name: str, a: float | None, b: float | None, show=format_figure, *, note: str = "") -> Compared:
    texts = ("-" if value is None else show(value) for value in (a, b))
    return Compared(name, a, b, *texts, note="" if a is None or b is None else note)


def _doubt(a: Figures, b: Figures, name: str) -> str:
    """A note where the times of two runs differ by no more than chance, or were too few."""
    differ = differ_beyond_chance(*(_timed_curve(figures, name) for figures in (a, b)))
    if differ is None:
        return f"(fewer than {MIN_STEPS} steps: may be chance)"
    return "" if differ else "(may be chance)"


def _timed_curve(figures: Figures, name: str) -> list[float]:
    """Means of neighbouring steps after the warm-up, in their order."""
    curve, span = figures.curves[name].mean(), figures.span
    first = math.ceil(span.num_warmup_steps * span.num_buckets / span.num_steps)
    return [value for value in curve[first:] if value is not None]


def _mean(figures: Figures, phase: str) -> float | None:
    num_steps = sum(len(rank.steps) for rank in figures.ranks)
    return sum(rank.phase_seconds[phase] for rank in figures.ranks) / num_steps if num_steps else None


def _describe_setting(figures: Figures) -> dict[str, str]:
    info = figures.run.info
    return {"GPU": info.device_name, "precision": info.precision, "ZeRO stage": str(info.zero_stage), **info.versions}


def _diff(a: list[str], b: list[str]) -> list[str]:
    """Lines that differ, "-" for A and "+" for B; replaced lines in pairs where they are equally
    many. Linear where ndiff, which searches for similar lines, takes hours for some thousand.
    """
    lines = []
    for kind, a_start, a_stop, b_start, b_stop in difflib.SequenceMatcher(None, a, b, autojunk=True).get_opcodes():
        if kind == "equal":
            continue
        removed, added = [f"- {line}" for line in a[a_start:a_stop]], [f"+ {line}" for line in b[b_start:b_stop]]
        alike = len(removed) == len(added)
        lines += [line for pair in zip(removed, added, strict=True) for line in pair] if alike else removed + added
    return lines


def _lines_of(text: str) -> list[str]:
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"(and {format_count(len(lines) - MAX_LINES, 'more line')}, which are not compared)"]
    return [shorten(line) for line in lines]
