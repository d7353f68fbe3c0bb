"""Pieces that every page is made of: the document, cards, charts with their captions, tables that
become lists on a narrow screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mats_ds.core.format import GIB, MIB, format_bytes, format_figure
from mats_ds.core.text import clean_page
from mats_ds.reporting.page.charts import NUM_COLOURS, Series

STYLE = Path(__file__).with_name("report.css")
GENERATOR = '<meta name="generator" content="mats_ds report">'
KICKER = '<p class="kicker">mats_ds run report</p>'


def build_document(title: str, body: str) -> str:
    """A page of one file: no network, no script. `body` is markup, `title` text."""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
    return clean_page(page)  # HTML has no control characters, not even as references


def section(name: str, *parts: str | None, note: str = "") -> str:
    """A section with its heading; empty where it has no part. `note` is text below the heading."""
    inside = "".join(part for part in parts if part)
    if not inside:
        return ""
    words = f'<p class="lead">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(name)}</h2>{words}{inside}</section>\n"


def card(name: str, figure: str, note: str, fraction: float | None = None) -> str:
    """A figure with a note; `fraction` draws a bar."""
    bar = ""
    if fraction is not None:
        kind = "over" if fraction > 1 else ""
        bar = f'<div class="bar {kind}"><i style="width:{100 * min(1.0, fraction):.1f}%"></i></div>'
    return f'<div class="card"><h3>{name}</h3><p class="figure">{figure}</p>{bar}<p class="note">{escape(note)}</p></div>'


def chart(name: str, note: str, svg: str | None, keys: Sequence[Series] = (), *, latest: str = "") -> str | None:
    """A chart with its legend; `latest` is its newest value. None where nothing is drawn."""
    if svg is None:
        return None
    legend = "".join(f"<span>{_key(series)}{escape(series.name)}</span>" for series in keys)
    legend = f'<div class="legend">{legend}</div>' if len(keys) > 1 else ""
    value = f'<span class="latest">{escape(latest)}</span>' if latest else ""
    caption = f"<figcaption><b>{escape(name)}</b> <span>{escape(note)}</span>{value}</figcaption>"
    return f"<figure>{caption}{svg}{legend}</figure>"


def _key(series: Series) -> str:
    return f'<i style="background:var(--s{series.colour % NUM_COLOURS})"></i>'


def charts(*drawn: str | None) -> str:
    """Charts in rows of two or three; empty without any."""
    shown = [each for each in drawn if each]
    columns = 1 if len(shown) == 1 else 3 if len(shown) % 3 == 0 else 2
    return f'<div class="charts of{columns}">{"".join(shown)}</div>' if shown else ""


def table(names: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """A table; on a narrow screen each row is a list of its cells, with their names. `kind` is its
    CSS class. The roles keep it a table for screen readers in either form."""
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr role="row">{"".join(_cell(name, text) for name, text in zip(names, row, strict=True))}</tr>' for row in rows
    )
    return (
        f'<div class="sheet"><table role="table" class="{kind}"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )


def _cell(name: str, text: str) -> str:
    return f'<td role="cell" data-name="{escape(name)}">{escape(text)}</td>'


def scale(values: Iterable[float | None], unit: float) -> list[float | None]:
    """Values in another unit."""
    return [None if value is None else value / unit for value in values]


def choose_unit(largest_bytes: float | None) -> tuple[str, int]:
    """The unit of a chart of bytes, and its size."""
    return ("GiB", GIB) if largest_bytes is None or largest_bytes >= GIB else ("MiB", MIB)


def gib(num_bytes: int | None) -> str:
    """Bytes of a cell."""
    return "?" if num_bytes is None else format_bytes(num_bytes)


def small_unit(text: str) -> str:
    """A figure with its unit in small type."""
    figure, _, unit = text.partition(" ")
    return f"{escape(figure)} <small>{escape(unit)}</small>"


def number(value: float | None) -> str:
    """Four digits, and all before the point."""
    return "?" if value is None else format_figure(value)


def tick(value: float) -> str:
    """A short label of an axis: 2.5e-4, 0.25, 75, 12.5k."""
    if value == 0:
        return "0"
    if abs(value) < 1e-2 or abs(value) >= 1e8:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return f"{value / 1e3:.4g}k" if abs(value) < 1e6 else f"{value / 1e6:.4g}M"
