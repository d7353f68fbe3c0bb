"""Two runs side by side as one page: what each is, the losses in one chart, figures with the ratio
of B to A, and the settings that differ."""

from __future__ import annotations

import time
from html import escape

from mats_ds.core.format import shorten
from mats_ds.reporting.compare import Compared, list_compared, list_differences
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.page.charts import Series
from mats_ds.reporting.page.headline import name_run, show_date, show_started
from mats_ds.reporting.page.learning import draw_loss_chart, smooth
from mats_ds.reporting.page.markup import KICKER, build_document, section, table

MAX_DIFFERENCES = 400
COLOURS = (0, 1)


def build_comparison(a: Figures, b: Figures) -> str:
    """The page as text."""
    names = [f"{letter}: {name_run(run)}" for letter, run in (("A", a), ("B", b))]
    heading = f"<header>\n{KICKER}\n<h1>{escape(names[0])}<br>{escape(names[1])}</h1>\n</header>\n"
    sections = [
        heading,
        section("The runs", table(["", "A", "B"], _list_facts(a, b), "words runs"), note=_warn(a, b)),
        section("Learning", _draw_losses(a, b, names)),
        section("Figures", table(["figure", "A", "B", "B / A"], map(_list_cells, list_compared(a, b)), "numbers named")),
        section("Set differently", _show_differences(list_differences(a, b))),
        f"<footer><p>written on {show_date(time.time())}</p></footer>",
    ]
    return build_document(f"A and B: {name_run(a)}, {name_run(b)}", "".join(sections))


def _list_cells(row: Compared) -> list[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    return [row.name.strip(), row.a_text, row.b_text, f"{ratio} {row.note}".strip()]


def _list_facts(a: Figures, b: Figures) -> list[list[str]]:
    facts = [
        {
            "recipe": run.run.info.recipe_name,
            "data": run.run.info.data_name or "not named",
            "ran on": f"{run.run.info.world_size} × {run.run.info.device_name}",
            "started": show_started(run.run.info.started),
            "steps": f"{run.span.last_step:,} of {run.run.info.total_steps:,}",
            "folder": str(run.run_dir),
        }
        for run in (a, b)
    ]
    return [[name, shorten(facts[0][name]), shorten(facts[1][name])] for name in facts[0]]


def _warn(a: Figures, b: Figures) -> str:
    """What keeps the figures from being compared; "" where nothing does."""
    left, right = ((run.run.info.world_size, run.run.info.device_name) for run in (a, b))
    texts = [] if left == right else ["They ran on different hardware: times, memory and energy are not of the settings alone."]
    if a.run.info.data_name != b.run.info.data_name:
        texts.append("They read different data: their losses do not compare.")
    return " ".join(texts)


def _draw_losses(a: Figures, b: Figures, names: list[str]) -> str | None:
    series, keys = [], []
    for run, name, colour in zip((a, b), names, COLOURS, strict=True):
        steps, values = run.span.steps(), run.curves["loss"].mean()
        keys.append(Series(name, smooth(values), colour, steps=steps))
        series += [keys[-1], Series(f"{name}, as recorded", values, colour, steps=steps, is_faint=True)]
    return draw_loss_chart(a.span.steps(), series, note="bold: the running means", keys=keys)


def _show_differences(lines: list[str]) -> str:
    if not lines:
        return '<p class="lead">Nothing.</p>'
    tags = {"-": "del", "+": "ins"}
    shown = [f"<{tags[line[0]]}>{escape(shorten(line))}</{tags[line[0]]}>" for line in lines[:MAX_DIFFERENCES]]
    shown += [f"and {len(lines) - MAX_DIFFERENCES:,} more"] if len(lines) > MAX_DIFFERENCES else []
    return f'<div class="sheet"><pre class="diff">{chr(10).join(shown)}</pre></div>'
