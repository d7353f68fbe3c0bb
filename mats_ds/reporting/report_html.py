"""The report as one self-contained page: no network, no script; charts are inline SVG. What a
reader asks first comes first: which run, the verdict, whether it learns, memory, time, ranks.

Every text that comes from a file of the run is escaped, here or in `page/`, where it enters the
page. Control characters, and marks that turn the direction of what follows, are shown as escapes.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mats_ds.core.format import shorten
from mats_ds.core.storage.files import write_text
from mats_ds.reporting.budget import Budget, Verdict
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.memory import compare_with_plan
from mats_ds.reporting.page.cards import build_cards
from mats_ds.reporting.page.headline import build_banner, build_header, show_date, title_of
from mats_ds.reporting.page.learning import build_learning
from mats_ds.reporting.page.markup import build_document, section, table
from mats_ds.reporting.page.memory_section import build_memory
from mats_ds.reporting.page.time_section import build_ranks, build_time
from mats_ds.reporting.report_text import describe
from mats_ds.reporting.run_files import INPUTS

NUM_LISTED_VIDEOS = 100
MAX_COMMAND = 2_000


def write_html(path: Path, figures: Figures, budget: Budget, verdict: Verdict) -> None:
    """Write the page, all of it or nothing."""
    write_text(path, build_page(figures, budget, verdict), errors="backslashreplace")


def build_page(figures: Figures, budget: Budget, verdict: Verdict) -> str:
    """The page as text."""
    sections = [
        build_header(figures, verdict),
        build_banner(figures, budget, verdict),
        build_cards(figures, budget),
        build_learning(figures),
        _reconstruction(figures.files.picture),
        build_memory(figures, budget),
        build_time(figures),
        build_ranks(figures),
        _plan(figures),
        _facts(figures),
        _bad_videos(figures),
        _inputs(figures.files.inputs),
        _footer(figures),
    ]
    return build_document(title_of(figures, verdict), "".join(sections))


def _reconstruction(picture: bytes | None) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture).decode("ascii")
    figure = f"""<figure class="wide"><img alt="Frames, motion, kept tokens and reconstruction of a clip"
src="data:image/png;base64,{data}"><figcaption>Each column shows what its heading names.</figcaption></figure>"""
    return section("What the model sees and reconstructs", figure)


def _plan(figures: Figures) -> str:
    """Planned beside measured; empty without a plan."""
    if figures.plan is None:
        return ""
    pairs = compare_with_plan(figures)
    rows = [[pair.name, pair.planned_text, pair.measured_text, pair.ratio_text] for pair in pairs]
    notes = list(figures.plan.assumptions)
    if figures.plan.memory_error is not None:
        notes.insert(0, f"the planner states its memory within {100 * figures.plan.memory_error:.0f}%")
    text = f'<p class="note">{escape("; ".join(notes))}</p>' if notes else ""
    return section("Planned and measured", table(["figure", "planned", "measured", "ratio"], rows, "numbers named"), text)


def _facts(figures: Figures) -> str:
    rows = "".join(
        f"<dt>{escape(row.label)}</dt><dd>{escape(row.text).replace('-&gt;', '&rarr;')}</dd>" for row in describe(figures)
    )
    return section("Details of the run", f'<dl class="details">{rows}</dl>')


def _bad_videos(figures: Figures) -> str:
    if not figures.bad_videos:
        return ""
    rows = [[video.path, video.reason, str(video.times)] for video in figures.bad_videos[:NUM_LISTED_VIDEOS]]
    more = len(figures.bad_videos) - len(rows)
    rest = f'<p class="note">{more} more are in bad_clips.csv.</p>' if more > 0 else ""
    return section("Unreadable videos", table(["video", "reason", "times"], rows, "words"), rest)


def _inputs(inputs: Mapping[str, str]) -> str:
    """Recipe and DeepSpeed JSON as the run used them, folded."""
    parts = [
        f"<details><summary>{title}</summary><pre>{escape(inputs[name])}</pre></details>"
        for name, title in INPUTS.items()
        if name in inputs
    ]
    return section("Recipe and DeepSpeed JSON", *parts)


def _footer(figures: Figures) -> str:
    command = escape(shorten(figures.run.info.command, MAX_COMMAND))
    where = escape(str(figures.run_dir))
    return f"<footer><p>{where}</p><p><code>{command}</code></p><p>report written on {show_date(time.time())}</p></footer>"
