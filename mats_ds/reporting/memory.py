"""Memory by kind, and a plan beside what was measured: figures -> rows for console, page and
report.json."""

from __future__ import annotations

from dataclasses import dataclass

from mats_ds.core.format import HOUR, format_bytes, format_duration, format_figure, format_flops, ratio_of
from mats_ds.metering.device_memory import ACTIVATIONS, KIND_NAMES, OUTSIDE, name_kind, on_device
from mats_ds.planning.plan_file import Plan, read_measured_saved_bytes
from mats_ds.reporting.figures import Figures


@dataclass(frozen=True)
class Pair:
    """One planned figure and its measured counterpart, as numbers and as text. None: not planned,
    or not measured."""

    name: str
    planned: float | None
    measured: float | None
    planned_text: str
    measured_text: str

    @property
    def ratio(self) -> float | None:
        """Measured over planned."""
        return ratio_of(self.measured, self.planned)

    @property
    def ratio_text(self) -> str:
        return "" if self.ratio is None else f"{self.ratio:.2f}"


def list_kinds(figures: Figures) -> list[tuple[str, str, int]]:
    """(kind, its name for people, bytes) of the worst rank's peak, static kinds first; on a CPU the
    static kinds alone."""
    kinds = figures.memory_kinds or on_device(figures.run.info.static_bytes)
    return [(kind, name_kind(kind), kinds[kind]) for kind in _in_order(kinds)]


def list_peak_kinds(figures: Figures) -> list[tuple[str, str, int]]:
    """As `list_kinds`, of everything that was in use: on a CPU also what the process holds beside
    the static kinds. Activations there are what a micro-batch was measured to keep for its backward
    pass, where it was."""
    kinds = list_kinds(figures)
    if figures.on_gpu or not kinds:
        return kinds
    left = figures.worst_rank.peak_bytes - sum(size for _, _, size in kinds)
    try:
        kept = min(left, read_measured_saved_bytes(figures.run_dir) or 0)
    except ValueError:
        kept = 0
    if kept > 0:
        kinds.append((ACTIVATIONS, "activations kept for backward", kept))
    rest = left - max(0, kept)
    return [*kinds, (OUTSIDE, "other: Python, libraries, temporaries", rest)] if rest > 0 else kinds


def compare_with_plan(figures: Figures) -> list[Pair]:
    """Planned against measured; empty where the run folder has no plan."""
    plan, info = figures.plan, figures.run.info
    if plan is None:
        return []
    measured_kinds = figures.memory_kinds
    measured_peak = figures.worst_rank.peak_bytes if figures.on_gpu else None
    pairs = [_pair("peak memory of a GPU", plan.peak_bytes, measured_peak, format_bytes)]
    for kind in _in_order({**plan.bytes_by_kind, **measured_kinds}):
        measured = measured_kinds.get(kind, info.static_bytes.get(kind))
        pairs.append(_pair(name_kind(kind), plan.bytes_by_kind.get(kind), measured, format_bytes))
    kept = None if plan.saved_bytes is None else read_measured_saved_bytes(figures.run_dir)
    return pairs + [
        *([_pair("kept for backward by a micro-batch", plan.saved_bytes, kept, format_bytes)] if plan.saved_bytes else []),
        _pair("model FLOPs of a clip", plan.model_flops_per_clip, info.model_flops_per_clip, format_flops),
        _pair("hardware FLOPs of a clip", plan.hardware_flops_per_clip, info.hardware_flops_per_clip, format_flops),
        *(pair for pair in _time_pairs(plan, figures) if pair.planned is not None),
    ]


def _time_pairs(plan: Plan, figures: Figures) -> list[Pair]:
    return [
        _pair("clips a second", plan.clips_per_second, figures.clips_per_second, format_figure),
        _pair("step", plan.step_seconds, figures.step_seconds, lambda value: f"{format_figure(value)} s"),
        _pair("MFU", plan.mfu, figures.model_flops_utilization, lambda value: f"{100 * value:.1f}%"),
        _pair("the whole run", plan.hours, figures.hours, lambda hours: format_duration(HOUR * hours)),
        _pair("energy of a clip", plan.joules_per_clip, figures.joules_per_clip, lambda value: f"{value:.1f} J"),
    ]


def _pair(name, planned, measured, show) -> Pair:
    return Pair(name, planned, measured, *("not known" if value is None else show(value) for value in (planned, measured)))


def _in_order(kinds: dict[str, int]) -> list[str]:
    order = list(KIND_NAMES)
    # of an older run: before the measured kinds
    unknown = [kind for kind in kinds if kind not in order]
    index = order.index("clips")
    return [kind for kind in (*order[:index], *unknown, *order[index:]) if kind in kinds]
