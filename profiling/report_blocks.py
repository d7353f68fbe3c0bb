"""Blocks of the page: cards, charts, tables, and numbers as axes and cells show them. Texts are escaped here, where they enter
the page; only a card's name and figure are markup already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from report_svg import Series

from mats_ds.metering.budget import format_bytes


def card(name: str, figure: str, note: str, share: float | None = None) -> str:
    """A figure with a note; `share` draws a bar."""
    bar = ""
    if share is not None:
        kind = "over" if share > 1 else ""
        bar = f'<div class="bar {kind}"><i style="width:{100 * min(1.0, share):.1f}%"></i></div>'
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
