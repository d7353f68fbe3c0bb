"""The sections on time and on ranks: charts of step time, throughput and MFU, the balance, one row
a rank."""

from __future__ import annotations

from html import escape

from mats_ds.core.events import PHASES
from mats_ds.core.format import format_figure
from mats_ds.reporting.figures import Figures
from mats_ds.reporting.page.charts import Series, draw_lines, draw_stack
from mats_ds.reporting.page.markup import chart, charts, gib, number, scale, section, table, tick
from mats_ds.reporting.page.memory_section import pick_ranks
from mats_ds.reporting.ranks import RankFigures

NUM_LISTED_RANKS = 256
PHASE_COLOURS = {"data": 3, "forward": 0, "backward": 1, "optimizer": 2, "other": 7}


def build_time(figures: Figures) -> str:
    """Where the time of a step goes, and how fast the run was."""
    steps, curves, rates = figures.span.steps(), figures.curves, figures.throughput
    throughput = Series("all ranks", rates.mean(), 2, rates.minimum(), rates.maximum())
    phases = [Series(phase, curves[f"{phase}_seconds"].mean(), PHASE_COLOURS[phase]) for phase in PHASES]
    phases.append(Series("other", _other_seconds(figures), PHASE_COLOURS["other"]))
    mfu = Series("MFU", scale(curves["mfu"].mean(), 0.01), 6)
    drawn = charts(
        chart("Time of a step, s", "mean over ranks", draw_stack(steps, phases, title="Step time", label=tick), phases),
        chart("Clips a second", "all ranks", draw_lines(steps, [throughput], title="Throughput", label=tick)),
        chart("MFU, %", "mean over ranks, of each step", draw_lines(steps, [mfu], title="MFU", label=tick)),
    )
    return section("Time", drawn, note=figures.advice)


def build_ranks(figures: Figures) -> str:
    """One row a rank."""
    names = ["rank", "steps", "peak"]
    if figures.on_gpu:
        names += ["allocated", "reserved", "NVML", "fragments", "retries, OOMs"]
    names += ["host RSS", "step, s", "waiting"]
    if figures.balance is not None:
        names += ["arrives", "last in"]
    listed = pick_ranks(figures, NUM_LISTED_RANKS)
    rows = [[*_rank_row(rank, figures), str(rank.num_bad_clips)] for rank in listed]
    more = len(figures.ranks) - len(listed)
    rest = f'<p class="note">{more} more, with smaller peaks, are in report.json.</p>' if more else ""
    text = "" if figures.balance is None else f'<p class="note">{escape(figures.balance.text)}</p>'
    return section("Ranks", table([*names, "bad clips"], rows, "numbers many"), rest, text)


def _rank_row(rank: RankFigures, figures: Figures) -> list[str]:
    row = [str(rank.rank), str(rank.num_records), gib(rank.peak_bytes)]
    if figures.on_gpu:
        row += [gib(rank.peak_allocated_bytes), gib(rank.peak_reserved_bytes), gib(rank.nvml_used_bytes)]
        row += [gib(rank.peak_inactive_bytes), f"{rank.num_alloc_retries or 0}, {rank.num_ooms or 0}"]
    row += [gib(rank.peak_rss_bytes), number(rank.step_seconds), f"{100 * rank.waiting_fraction:.1f}%"]
    if figures.balance is not None:
        late_seconds = figures.balance.late_seconds.get(rank.rank)
        last_fraction = figures.balance.last_fractions.get(rank.rank, 0.0)
        row += (
            ["?", "?"]
            if late_seconds is None
            else [f"{'+' * (late_seconds >= 0)}{format_figure(1e3 * late_seconds, 3)} ms", f"{100 * last_fraction:.0f}%"]
        )
    return row


def _other_seconds(figures: Figures) -> list[float | None]:
    totals = figures.curves["total_seconds"].mean()
    parts = [figures.curves[f"{phase}_seconds"].mean() for phase in PHASES]
    known = [sum(part[index] or 0.0 for part in parts) for index in range(len(totals))]
    return [None if total is None else max(0.0, total - spent) for total, spent in zip(totals, known, strict=True)]
