"""The report as one self-contained page: no network, no script; charts are inline SVG, the style is
report.css.

Every text that comes from a file of the run is escaped here, where it enters the page. Control
characters, and marks that turn the direction of what follows, are shown as escapes.
"""

from __future__ import annotations

import base64
import time
from html import escape
from pathlib import Path

from mats_ds.core.events import PHASES
from mats_ds.core.format import GIB, format_bytes, format_count, format_flops, shorten
from mats_ds.core.storage.files import write_text
from mats_ds.core.text import clean_page
from mats_ds.reporting.budget import Budget, Check, Verdict
from mats_ds.reporting.charts import Limit, Series, draw_lines, draw_stack
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.html_sections import (
    build_inputs,
    build_memory,
    build_plan,
    card,
    chart,
    draw_memory_over_steps,
    gib,
    number,
    scale,
    small_unit,
    table,
    tick,
)
from mats_ds.reporting.rank_checks import NOTABLE_FRACTION
from mats_ds.reporting.ranks import RankFigures
from mats_ds.reporting.report_text import describe, describe_energy, describe_tokens

STYLE = Path(__file__).with_name("report.css")
GENERATOR = '<meta name="generator" content="mats_ds report">'
KICKER = '<p class="kicker">mats_ds run report</p>'
NUM_LISTED_VIDEOS = 100
NUM_DRAWN_RANKS, NUM_LISTED_RANKS = 64, 256
MAX_COMMAND = 2_000
PHASE_COLOURS = {"data": 3, "forward": 0, "backward": 1, "optimizer": 2, "other": 7}


def write_html(path: Path, figures: Figures, budget: Budget, verdict: Verdict) -> None:
    """Write the page, all of it or nothing."""
    write_text(path, build_page(figures, budget, verdict), errors="backslashreplace")


def build_page(figures: Figures, budget: Budget, verdict: Verdict) -> str:
    """The page as text."""
    info = figures.run.info
    name = escape(shorten(info.recipe_name))
    where = f"{escape(shorten(info.model_name))} on {info.world_size} &times; {escape(shorten(info.device_name))}"
    command = escape(shorten(info.command, MAX_COMMAND))
    word = "PASS" if verdict.passed else "FAIL"
    sections = [
        _banner(figures, budget, verdict),
        _cards(figures, budget),
        _charts(figures, budget),
        build_memory(figures, budget),
        build_plan(figures),
        _reconstruction(figures.files.picture),
        _ranks(figures),
        _facts(figures),
        _bad_videos(figures),
        build_inputs(figures.files.inputs),
    ]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{word}: {name}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<header>
{KICKER}
<h1>{name}</h1>
<p class="sub">{where}, started {escape(shorten(info.started) or "at an unknown time")}</p>
</header>
{"".join(section for section in sections if section)}
<footer>{escape(str(figures.run_dir))} &middot; {command} &middot; written {time.strftime("%Y-%m-%d %H:%M")}</footer>
</main>
</body>
</html>
"""
    return clean_page(page)  # HTML has no control characters, not even as references


def _banner(figures: Figures, budget: Budget, verdict: Verdict) -> str:
    word, kind = ("PASS", "pass") if verdict.passed else ("FAIL", "fail")
    checks = "".join(_check(check) for check in verdict.checks)
    advice = "" if figures.outcome is None else shorten(figures.outcome.advice)
    advice = f'<p class="advice"><b>What would help:</b> {escape(advice)}</p>' if advice else ""
    what = "GPU memory" if figures.on_gpu else "host memory: no GPU was used"
    return f"""<section class="verdict {kind}">
<p class="word">{word}</p>
<div><p class="against">Judged against the budget <b>{escape(budget.name)}</b>, by {what}</p>
<ul>{checks}</ul>{advice}</div>
</section>
"""


def _check(check: Check) -> str:
    kind, mark = {True: ("ok", "&#10003;"), False: ("bad", "&#10007;"), None: ("open", "&ndash;")}[check.passed]
    return (
        f'<li class="{kind}"><span class="mark">{mark}</span><b>{escape(check.name)}</b> <span>{escape(check.text)}</span></li>'
    )


def _cards(figures: Figures, budget: Budget) -> str:
    info, worst = figures.run.info, figures.worst_rank
    fraction = worst.peak_bytes / budget.memory_per_gpu_bytes
    first, last = figures.losses
    waiting = figures.phase_fractions["data"]
    utilization = figures.model_flops_utilization
    why_not = "peak of the GPU not known, no MFU" if figures.on_gpu else "no MFU on a CPU"
    mfu = why_not if utilization is None else f"{100 * utilization:.1f}% of the peak (MFU)"
    achieved = figures.model_flops_per_second
    num_steps = format_count(figures.span.num_steps, "step")
    cards = [
        card(
            "Peak memory",
            format_bytes(worst.peak_bytes),
            f"{100 * fraction:.1f}% of {format_bytes(budget.memory_per_gpu_bytes)}",
            fraction,
        ),
        card("Clips a second", number(figures.clips_per_second), "median of the steps, all ranks together"),
        card("Step", f"{number(figures.step_seconds)} s", f"{num_steps}, median of the slowest rank"),
        card("Waiting for data", f"{100 * waiting:.1f}%", "of the time of a step", waiting),
        card("Loss", number(last), f"from {number(first)}" + (", not always finite" if figures.num_not_finite else "")),
        card("Tokens kept", f"{info.kept} <small>of {info.num_tokens}</small>", describe_tokens(figures).partition(": ")[2]),
        card("Forward pass", f"{info.forward_macs_per_clip / 1e9:.4g} <small>GMAC</small>", "a clip; papers call it GFLOPs"),
        card(
            "Achieved",
            "?" if achieved is None else small_unit(f"{format_flops(achieved)}/s"),
            f"a rank; {mfu}",
        ),
        *_cards_of_some_runs(figures),
    ]
    columns = next((columns for columns in (5, 4, 3) if len(cards) % columns == 0), 4)
    return f'<section class="cards by{columns}">{"".join(cards)}</section>\n'


def _cards_of_some_runs(figures: Figures) -> list[str]:
    """Energy where the driver reports it, balance where there are several ranks."""
    cards = []
    if figures.joules_per_clip is not None:
        figure, _, note = describe_energy(figures).partition(" a clip, ")
        cards.append(card("Energy of a clip", small_unit(figure), note))
    if figures.balance is not None:
        fraction = figures.balance.lost_fraction
        late = "no single rank is to blame" if figures.balance.late_rank is None else f"rank {figures.balance.late_rank} is late"
        note = f"of a step; {late}" if fraction >= NOTABLE_FRACTION else "of a step: well balanced"
        cards.append(card("Waiting for the last rank", f"{100 * fraction:.1f}%", note, fraction))
    return cards


def _charts(figures: Figures, budget: Budget) -> str:
    steps, curves = figures.span.steps(), figures.curves
    loss = Series("mean", curves["loss"].mean(), 0, curves["loss"].minimum(), curves["loss"].maximum())
    drawn = _pick_ranks(figures, NUM_DRAWN_RANKS)
    memory = [Series(f"rank {rank.rank}", scale(rank.curves["memory_bytes"].maximum(), GIB), rank.rank) for rank in drawn]
    limit = Limit(f"budget {budget.memory_per_gpu_bytes / GIB:.1f} GiB", budget.memory_per_gpu_bytes / GIB)
    throughput = Series("all ranks", figures.throughput.mean(), 2, figures.throughput.minimum(), figures.throughput.maximum())
    phases = [Series(phase, curves[f"{phase}_seconds"].mean(), PHASE_COLOURS[phase]) for phase in PHASES]
    phases.append(Series("other", _other_seconds(figures), PHASE_COLOURS["other"]))
    rate, norm = Series("learning rate", curves["learning_rate"].mean(), 4), Series("norm", curves["grad_norm"].mean(), 5)
    mfu = Series("MFU", scale(curves["mfu"].mean(), 0.01), 6)
    whose = "each rank" if len(drawn) == len(figures.ranks) else f"the {len(drawn)} ranks with the largest peaks"
    memory_kind = f"torch's reserved peak of each step, {whose}" if figures.on_gpu else f"host RSS of {whose}"
    charts = [
        chart("Loss", "mean and range", draw_lines(steps, [loss], title="Loss", label=tick, from_zero=False)),
        chart("Memory, GiB", memory_kind, draw_lines(steps, memory, title="Memory", label=tick, limit=limit), memory),
        chart("Time of a step, s", "mean over ranks", draw_stack(steps, phases, title="Step time", label=tick), phases),
        draw_memory_over_steps(figures),
        chart("Clips a second", "all ranks", draw_lines(steps, [throughput], title="Throughput", label=tick)),
        chart("MFU, %", "mean over ranks, of each step", draw_lines(steps, [mfu], title="MFU", label=tick)),
        chart("Learning rate", "", draw_lines(steps, [rate], title="Learning rate", label=tick)),
        chart("Gradient norm", "mean", draw_lines(steps, [norm], title="Gradient norm", label=tick)),
    ]
    return f'<section class="charts">{"".join(chart for chart in charts if chart)}</section>\n'


def _other_seconds(figures: Figures) -> list[float | None]:
    totals = figures.curves["total_seconds"].mean()
    parts = [figures.curves[f"{phase}_seconds"].mean() for phase in PHASES]
    known = [sum(part[index] or 0.0 for part in parts) for index in range(len(totals))]
    return [None if total is None else max(0.0, total - spent) for total, spent in zip(totals, known, strict=True)]


def _reconstruction(picture: bytes | None) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture).decode("ascii")
    return f"""<section><h2>What the model sees and reconstructs</h2>
<figure class="wide"><img alt="Frames, motion, kept tokens and reconstruction of a clip" src="data:image/png;base64,{data}">
<figcaption>Each column shows what its heading names.</figcaption></figure></section>
"""


def _ranks(figures: Figures) -> str:
    names = ["rank", "steps", "peak"]
    if figures.on_gpu:
        names += ["allocated", "reserved", "NVML", "fragments", "retries, OOMs"]
    names += ["host RSS", "step, s", "waiting"]
    if figures.balance is not None:
        names += ["arrives", "last in"]
    listed = _pick_ranks(figures, NUM_LISTED_RANKS)
    rows = [[*_rank_row(rank, figures), str(rank.num_bad_clips)] for rank in listed]
    more = len(figures.ranks) - len(listed)
    rest = f'<p class="note">{more} more, with smaller peaks, are in report.json.</p>' if more else ""
    text = "" if figures.balance is None else f'<p class="note">{escape(figures.balance.text)}</p>'
    return f"<section><h2>Ranks</h2>{table([*names, 'bad'], rows, 'numbers')}{rest}{text}</section>\n"


def _pick_ranks(figures: Figures, most: int) -> list[RankFigures]:
    """All ranks, or as many of them as a page can show: those with the largest peaks."""
    picked = sorted(figures.ranks, key=lambda rank: -rank.peak_bytes)[:most]
    return sorted(picked, key=lambda rank: rank.rank)


def _rank_row(rank: RankFigures, figures: Figures) -> list[str]:
    row = [str(rank.rank), str(rank.num_records), gib(rank.peak_bytes)]
    if figures.on_gpu:
        row += [gib(rank.peak_allocated_bytes), gib(rank.peak_reserved_bytes), gib(rank.nvml_used_bytes)]
        row += [gib(rank.peak_inactive_bytes), f"{rank.num_alloc_retries or 0}, {rank.num_ooms or 0}"]
    row += [gib(rank.peak_rss_bytes), number(rank.step_seconds), f"{100 * rank.waiting_fraction:.1f}%"]
    if figures.balance is not None:
        late_seconds = figures.balance.late_seconds.get(rank.rank)
        last_fraction = figures.balance.last_fractions.get(rank.rank, 0.0)
        row += ["?", "?"] if late_seconds is None else [f"{1e3 * late_seconds:+.3g} ms", f"{100 * last_fraction:.0f}%"]
    return row


def _facts(figures: Figures) -> str:
    rows = "".join(
        f"<dt>{escape(row.label)}</dt><dd>{escape(row.text).replace('-&gt;', '&rarr;')}</dd>" for row in describe(figures)
    )
    return f"<section><h2>Details of the run</h2><dl>{rows}</dl></section>\n"


def _bad_videos(figures: Figures) -> str:
    if not figures.bad_videos:
        return ""
    rows = [[video.path, video.reason, str(video.times)] for video in figures.bad_videos[:NUM_LISTED_VIDEOS]]
    more = len(figures.bad_videos) - len(rows)
    rest = f"<p>{more} more are in bad_clips.csv.</p>" if more > 0 else ""
    return f"<section><h2>Unreadable videos</h2>{table(['video', 'reason', 'times'], rows, 'words')}{rest}</section>\n"
