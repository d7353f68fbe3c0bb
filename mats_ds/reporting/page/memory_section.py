"""The section on memory: the worst rank's peak by kind, scaled to what was used, and memory over
the steps."""

from __future__ import annotations

from html import escape

from mats_ds.core.format import format_bytes
from mats_ds.metering.device_memory import OUTSIDE
from mats_ds.reporting.budget import Budget
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.memory import list_peak_kinds
from mats_ds.reporting.page.charts import Limit, Series, draw_lines, draw_stack
from mats_ds.reporting.page.markup import chart, charts, choose_unit, scale, section, tick
from mats_ds.reporting.ranks import RankFigures

KIND_COLOURS = {"clips": 8, "activations": 1, "cache": 7, "outside": 6}
STATIC_COLOURS = (0, 5, 2, 3, 4)
NUM_DRAWN_RANKS = 64
NEAR = 0.4  # of the budget: with less in use, a bar to scale would hide the kinds
USED_WIDTH, OUTSIDE_WIDTH = 80, 14  # percent of the bar: left of the budget's break, and after that of `OUTSIDE`
LARGE = 0.5  # of what is used: more outside of torch would hide the kinds inside
BREAK = '<span class="break"></span>'
Kinds = list[tuple[str, str, int]]


def build_memory(figures: Figures, budget: Budget) -> str:
    """Bar, table and charts; empty where nothing was recorded."""
    kinds = [(kind, name, size) for kind, name, size in list_peak_kinds(figures) if size]
    drawn = [each for each in (_draw_ranks(figures, budget), draw_memory_over_steps(figures)) if each]
    if not kinds:
        return section("Memory", charts(*drawn))
    beside = f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""
    return section("Memory", _draw_kinds(figures, budget, kinds), f'<div class="split">{_list_kinds(kinds)}{beside}</div>')


def _draw_kinds(figures: Figures, budget: Budget, kinds: Kinds) -> str:
    """The bar of the kinds, and the budget as a line in it: where it is far off, beyond a break."""
    total, limit = sum(size for _, _, size in kinds), budget.memory_per_gpu_bytes
    words = ", ".join(f"{name} {format_bytes(size)}" for _, name, size in kinds)
    bar = f'<div class="kinds" role="img" aria-label="{escape(f"Memory by kind: {words}")}">'
    used, name, at = f"{format_bytes(total)} used", f"budget {format_bytes(limit)}", 100.0
    if figures.on_gpu:
        used += f", {100 * total / limit:.1f}% of the budget"
    if figures.on_gpu and total >= NEAR * limit:
        full = max(total, limit)
        inside, at = _segments(kinds, kinds, width=100 * total / full), 100 * limit / full
        name += ": exceeded" if total > limit else ""
    else:
        inside = _draw_broken(kinds, with_rest=figures.on_gpu)
        name = (
            f"// not to scale // {name}" if figures.on_gpu else f"no line for the budget: its {format_bytes(limit)} are of a GPU"
        )
    line = f'<span class="budget" style="left:{at:.2f}%"></span>' if figures.on_gpu else ""
    kind = "limit" if figures.on_gpu else "note"
    ends = f'<p class="ends"><span>{escape(used)}</span><span class="{kind}">{escape(name)}</span></p>'
    heading = f"<h3>By kind, rank {figures.worst_rank.rank} at its peak</h3>"
    return f'<div class="wide">{heading}{bar}{inside}{line}</div>{ends}<p class="note">{escape(_explain(figures))}</p></div>'


def _draw_broken(kinds: Kinds, *, with_rest: bool) -> str:
    """What was used, scaled to itself; what is outside of torch, where it is most of it, after a
    break of its own; `with_rest`: then the free memory up to the budget, after another."""
    outside = [each for each in kinds if each[0] == OUTSIDE]
    shown = [each for each in kinds if each[0] != OUTSIDE]
    total = sum(size for _, _, size in kinds)
    if not shown or not outside or outside[0][2] < LARGE * total:
        shown, outside = kinds, []
    rest = f'{BREAK}<span class="free"></span>' if with_rest else ""
    width = (USED_WIDTH if rest else 100) - (OUTSIDE_WIDTH if outside else 0)
    beyond = f"{BREAK}{_segments(outside, kinds, width=OUTSIDE_WIDTH)}" if outside else ""
    return f"{_segments(shown, kinds, width=width)}{beyond}{rest}"


def _segments(shown: Kinds, kinds: Kinds, *, width: float) -> str:
    """Some of the kinds side by side, in `width` percent of the bar."""
    colours, total = choose_colours(kinds), sum(size for _, _, size in shown)
    parts = "".join(
        f'<i style="flex-grow:{max(1, round(1e4 * size / total))};background:var(--s{colours[kind]})" title="{escape(name)}"></i>'
        for kind, name, size in shown
    )
    return f'<div class="used" style="width:{width:.2f}%">{parts}</div>'


def _list_kinds(kinds: Kinds) -> str:
    """The kinds as a table, with a bar each."""
    colours, total = choose_colours(kinds), sum(size for _, _, size in kinds)
    largest = max((size for kind, _, size in kinds if kind != OUTSIDE), default=total)
    rows = "".join(
        f'<tr role="row" style="--key:var(--s{colours[kind]})"><td role="cell"><i class="key"></i>{escape(name)}'
        f'<div class="meter"><i style="width:{min(100, 100 * size / largest):.1f}%"></i></div></td>'
        f'<td role="cell">{escape(format_bytes(size))}</td><td role="cell">{100 * size / total:.1f}%</td></tr>'
        for kind, name, size in kinds
    )
    heads = "".join(f'<th role="columnheader" scope="col">{name}</th>' for name in ("kind", "bytes", "of all"))
    return (
        f'<div class="wide"><table role="table" class="kinds-table"><thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{rows}</tbody></table></div>'
    )


def _explain(figures: Figures) -> str:
    worst = figures.worst_rank
    if figures.memory_kinds:
        return (
            f"In step {worst.peak_step:,}. Static kinds are exact, from the engine's tensors; activations are what is left of "
            "torch's allocated peak."
        )
    if figures.on_gpu:
        return "What the engine's tensors take for the entire run; the rest was not recorded by kind."
    return (
        "Host memory of the process, as no GPU was used. Static kinds are exact, from the engine's tensors, and activations "
        "measured where they are listed; other is the rest of the resident memory, cut off at // where it would hide them."
    )


def choose_colours(kinds: Kinds) -> dict[str, int]:
    """The number of each kind's colour."""
    colours, static = {}, 0
    for kind, _, _ in kinds:
        colours[kind] = KIND_COLOURS.get(kind, STATIC_COLOURS[static % len(STATIC_COLOURS)])
        static += kind not in KIND_COLOURS
    return colours


def _draw_ranks(figures: Figures, budget: Budget) -> str | None:
    drawn = pick_ranks(figures, NUM_DRAWN_RANKS)
    peaks = [rank.curves["memory_bytes"].maximum() for rank in drawn]
    unit, size = choose_unit(max((value for peak in peaks for value in peak if value is not None), default=None))
    series = [Series(f"rank {rank.rank}", scale(peak, size), rank.rank) for rank, peak in zip(drawn, peaks, strict=True)]
    limit = Limit(f"budget {format_bytes(budget.memory_per_gpu_bytes)}", budget.memory_per_gpu_bytes / size)
    whose = "each rank" if len(drawn) == len(figures.ranks) else f"the {len(drawn)} ranks with the largest peaks"
    note = f"torch's reserved peak of each step, {whose}" if figures.on_gpu else f"host RSS of {whose}"
    svg = draw_lines(figures.span.steps(), series, title="Memory", label=tick, limit=limit if figures.on_gpu else None)
    return chart(f"Memory of a rank, {unit}", note, svg, series)


def draw_memory_over_steps(figures: Figures) -> str | None:
    """The worst rank's peaks by kind over the steps; None where no allocator was metered."""
    curves = figures.worst_rank.curves
    names = ("peak_allocated_bytes", "activation_bytes", "clip_bytes", "peak_reserved_bytes", "nvml_used_bytes")
    allocated, activations, clips, reserved, used = (curves[name].maximum() for name in names)
    if not any(value is not None for value in activations):
        return None
    static = [
        None if a is None else max(0.0, a - (b or 0) - (c or 0)) for a, b, c in zip(allocated, activations, clips, strict=True)
    ]
    layers = [
        Series("static", static, 0),
        Series("clips", clips, KIND_COLOURS["clips"]),
        Series("activations", activations, KIND_COLOURS["activations"]),
        Series("cache", _difference(reserved, allocated), KIND_COLOURS["cache"]),
        Series("outside torch", _difference(used, reserved), KIND_COLOURS["outside"]),
    ]
    unit, size = choose_unit(max(value for value in (*reserved, *used) if value is not None))
    layers = [Series(layer.name, scale(layer.values, size), layer.colour) for layer in layers if any(layer.values)]
    note = f"largest of each stretch, rank {figures.worst_rank.rank}"
    svg = draw_stack(figures.span.steps(), layers, title="Memory by kind", label=tick)
    return chart(f"Memory by kind over the steps, {unit}", note, svg, layers)


def pick_ranks(figures: Figures, most: int) -> list[RankFigures]:
    """All ranks, or as many of them as a page can show: those with the largest peaks."""
    picked = sorted(figures.ranks, key=lambda rank: -rank.peak_bytes)[:most]
    return sorted(picked, key=lambda rank: rank.rank)


def _difference(larger: list[float | None], smaller: list[float | None]) -> list[float | None]:
    both = zip(larger, smaller, strict=True)
    return [None if a is None or b is None else max(0.0, a - b) for a, b in both]
