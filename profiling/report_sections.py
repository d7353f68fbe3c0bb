"""Sections of the page on memory by kind, the plan, and what the run was started with."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from report_beside import INPUTS
from report_blocks import chart, scale, table, tick
from report_figures import Figures
from report_memory import compare_with_plan, list_kinds
from report_svg import Series, draw_stack

from mats_ds.metering.budget import GIB, Budget, format_bytes

KIND_COLOURS = {"clips": 4, "activations": 1, "cache": 7, "outside": 6}
STATIC_COLOURS = (0, 5, 2, 3, 4)


def build_memory(figures: Figures, budget: Budget) -> str:
    """Where the worst rank's peak went, kind by kind: a bar as wide as the budget, and a table."""
    kinds = list_kinds(figures)
    if not kinds:
        return ""
    whole = sum(size for _, _, size in kinds)
    limit = max(whole, budget.memory_per_gpu_bytes)
    colours, static = {}, 0
    for kind, _, _ in kinds:
        colours[kind] = KIND_COLOURS.get(kind, STATIC_COLOURS[static % len(STATIC_COLOURS)])
        static += kind not in KIND_COLOURS
    bar = "".join(
        f'<i style="width:{100 * size / limit:.2f}%;background:var(--s{colours[kind]})" title="{escape(name)}"></i>'
        for kind, name, size in kinds
    )
    rows = "".join(
        f'<tr><td><i class="key" style="background:var(--s{colours[kind]})"></i>{escape(name)}</td>'
        f"<td>{escape(format_bytes(size))}</td><td>{100 * size / whole if whole else 0:.1f}%</td></tr>"
        for kind, name, size in kinds
    )
    worst = figures.worst_rank
    if figures.memory_kinds:
        text = (
            f"Rank {worst.rank} in step {worst.peak_step}; the bar's full width is {format_bytes(limit)}. "
            "Static kinds are exact, from the engine's tensors; activations are what is left of torch's allocated peak."
        )
    else:
        text = "What the engine's tensors take for the whole run; the rest was not measured, as no GPU was there."
    return f"""<section><h2>Memory by kind</h2>
<div class="wide"><div class="kinds">{bar}</div><p class="note">{escape(text)}</p></div>
<div class="scroll"><table class="numbers named"><thead><tr><th>kind</th><th>bytes</th><th>share</th></tr></thead>
<tbody>{rows}</tbody></table></div></section>
"""


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
    layers = [Series(layer.name, scale(layer.values, GIB), layer.colour) for layer in layers if any(layer.values)]
    note = f"largest of each stretch, rank {figures.worst_rank.rank}"
    return chart(
        "Memory by kind, GiB", note, draw_stack(figures.span.steps(), layers, title="Memory by kind", label=tick), layers
    )


def build_plan(figures: Figures) -> str:
    """Planned beside measured; empty without a plan."""
    if figures.plan is None:
        return ""
    pairs = compare_with_plan(figures)
    rows = [[pair.name, pair.planned_text, pair.measured_text, pair.ratio_text] for pair in pairs]
    notes = list(figures.plan.assumptions)
    if figures.plan.memory_error is not None:
        notes.insert(0, f"the planner states its memory to within {100 * figures.plan.memory_error:.0f}%")
    text = f'<p class="note">{escape("; ".join(notes))}</p>' if notes else ""
    names = ["", "planned", "measured", "ratio"]
    return f"<section><h2>Planned and measured</h2>{table(names, rows, 'numbers named')}{text}</section>\n"


def build_inputs(inputs: Mapping[str, str]) -> str:
    """Recipe and DeepSpeed JSON as the run used them, folded."""
    parts = [
        f"<details><summary>{title}</summary><pre>{escape(inputs[name])}</pre></details>"
        for name, title in INPUTS.items()
        if name in inputs
    ]
    return f"<section><h2>What it was started with</h2>{''.join(parts)}</section>\n" if parts else ""


def _difference(larger: list[float | None], smaller: list[float | None]) -> list[float | None]:
    both = zip(larger, smaller, strict=True)
    return [None if a is None or b is None else max(0.0, a - b) for a, b in both]
