"""Sections of the page on memory by kind, the plan, and what the run was started with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mats_ds.core.format import GIB, format_bytes
from mats_ds.reporting.budget import Budget
from mats_ds.reporting.charts import Series, draw_stack
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.memory import compare_with_plan, list_kinds
from mats_ds.reporting.run_files import INPUTS

KIND_COLOURS = {"clips": 4, "activations": 1, "cache": 7, "outside": 6}
STATIC_COLOURS = (0, 5, 2, 3, 4)


def build_memory(figures: Figures, budget: Budget) -> str:
    """The worst rank's peak memory, kind by kind: a bar as wide as the budget, and a table."""
    kinds = list_kinds(figures)
    if not kinds:
        return ""
    total = sum(size for _, _, size in kinds)
    limit = max(total, budget.memory_per_gpu_bytes)
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
        f"<td>{escape(format_bytes(size))}</td><td>{100 * size / total if total else 0:.1f}%</td></tr>"
        for kind, name, size in kinds
    )
    worst = figures.worst_rank
    if figures.memory_kinds:
        text = (
            f"Rank {worst.rank} in step {worst.peak_step}; the bar's full width is {format_bytes(limit)}. "
            "Static kinds are exact, from the engine's tensors; activations are what is left of torch's allocated peak."
        )
    else:
        text = "What the engine's tensors take for the entire run; the rest was not measured, as no GPU was used."
    return f"""<section><h2>Memory by kind</h2>
<div class="wide"><div class="kinds">{bar}</div><p class="note">{escape(text)}</p></div>
<div class="scroll"><table class="numbers named"><thead><tr><th>kind</th><th>bytes</th><th>of all</th></tr></thead>
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
        notes.insert(0, f"the planner states its memory within {100 * figures.plan.memory_error:.0f}%")
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
    return f"<section><h2>Recipe and DeepSpeed JSON</h2>{''.join(parts)}</section>\n" if parts else ""


def _difference(larger: list[float | None], smaller: list[float | None]) -> list[float | None]:
    both = zip(larger, smaller, strict=True)
    return [None if a is None or b is None else max(0.0, a - b) for a, b in both]


def card(name: str, figure: str, note: str, fraction: float | None = None) -> str:
    """A figure with a note; `fraction` draws a bar."""
    bar = ""
    if fraction is not None:
        kind = "over" if fraction > 1 else ""
        bar = f'<div class="bar {kind}"><i style="width:{100 * min(1.0, fraction):.1f}%"></i></div>'
    return f'<div class="card"><h3>{name}</h3><p class="figure">{figure}</p>{bar}<p class="note">{escape(note)}</p></div>'


def chart(name: str, note: str, svg: str | None, keys: Sequence[Series] = ()) -> str | None:
    """A chart with its legend; None where there is nothing to draw."""
    if svg is None:
        return None
    legend = "".join(f'<span><i style="background:var(--s{key.colour % 8})"></i>{escape(key.name)}</span>' for key in keys)
    legend = f'<div class="legend">{legend}</div>' if len(keys) > 1 else ""
    return f"<figure><figcaption><b>{escape(name)}</b> <span>{escape(note)}</span></figcaption>{svg}{legend}</figure>"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """A table that scrolls sideways on a narrow screen; `kind` is its CSS class."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def scale(values: Iterable[float | None], unit: float) -> list[float | None]:
    """Values in another unit."""
    return [None if value is None else value / unit for value in values]


def gib(num_bytes: int | None) -> str:
    """Bytes of a cell."""
    return "?" if num_bytes is None else format_bytes(num_bytes)


def small_unit(text: str) -> str:
    """A figure with its unit in small type."""
    figure, _, unit = text.partition(" ")
    return f"{escape(figure)} <small>{escape(unit)}</small>"


def number(value: float | None) -> str:
    """Four digits."""
    return "?" if value is None else f"{value:.4g}"


def tick(value: float) -> str:
    """A short label of an axis: 2.5e-4, 0.25, 75, 12.5k."""
    if value == 0:
        return "0"
    if abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value / 1e3:.4g}k"
