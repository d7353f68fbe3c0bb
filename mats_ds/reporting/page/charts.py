"""Small charts as SVG text, coloured by the page's CSS variables, so that they follow dark mode and
print.

A chart is 520 x 254 units, or as wide as it is asked to be: text stays readable when a phone shows
520 of them at 340 pixels. None in a series is a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mats_ds.core.format import SMALLEST, format_count

WIDTH, HEIGHT = 520, 254
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 12, 44
NUM_COLOURS = 9  # CSS variables --s0 ... --s8
MOST_DOTS = 24  # values of a line that are marked one by one
MOST_DESCRIBED = 8
HEADROOM = 1.15  # above the data, for that note
FAR = 2.5  # times the data: a limit beyond is named at the edge, as it would flatten them
SAME = 1e-9  # relative difference below which two values are drawn as equal
Values = Sequence["float | None"]


@dataclass(frozen=True)
class Series:
    """One line of a chart; `colour` is the number of a CSS variable --s0 ... --s8. `low` and `high`
    draw a band behind it. `steps`: its own, where they are not the chart's. `is_faint`: drawn thin
    and pale, behind the others. `has_dots`: each value is marked, if they are few."""

    name: str
    values: Values
    colour: int = 0
    low: Values | None = None
    high: Values | None = None
    steps: Sequence[float] | None = None
    is_faint: bool = False
    has_dots: bool = False


@dataclass(frozen=True)
class Limit:
    """A dashed line across the chart; where the data are far below it, a note at the upper edge."""

    name: str
    value: float


@dataclass(frozen=True)
class _Frame:
    """Maps data to the drawing."""

    first_x: float
    last_x: float
    low: float
    high: float
    width: int = WIDTH

    @property
    def right(self) -> int:
        return self.width - RIGHT

    def x(self, value: float) -> float:
        span = self.last_x - self.first_x
        part = (value - self.first_x) / span if span > 0 else 0.5
        return LEFT + part * (self.right - LEFT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def draw_lines(
    steps: Sequence[float],
    series: Sequence[Series],
    *,
    title: str,
    label: Callable[[float], str],
    from_zero: bool = True,
    limit: Limit | None = None,
    width: int = WIDTH,
) -> str | None:
    """A line chart over steps; `label` writes a value of the y axis. None where there is nothing to
    draw."""
    shown = [value for line in series for values in (line.values, line.low or (), line.high or ()) for value in values]
    known = [value for value in shown if value is not None]
    if not known:
        return None
    highest, lowest = max(known), min(known)
    is_far = limit is not None and limit.value > FAR * highest
    if limit is not None:
        highest = HEADROOM * highest if is_far else max(highest, limit.value)
    every = [step for line in series for step in (line.steps or steps)]
    frame, ticks = _make_frame((min(every), max(every)), 0.0 if from_zero else lowest, highest, width)
    parts = [_draw_axes(frame, ticks, label)]
    for line in series:
        if line.low is not None and line.high is not None:
            parts.append(_draw_band(frame, line.steps or steps, line.low, line.high, line.colour, "band"))
    parts += [_draw_line(frame, line.steps or steps, line) for line in sorted(series, key=lambda line: not line.is_faint)]
    if limit is not None:
        parts.append(_draw_limit(frame, limit, is_far))
    return _wrap(_describe(title, steps, series, label), parts, width)


def _draw_limit(frame: _Frame, limit: Limit, is_far: bool) -> str:
    if is_far:
        text = f"&#8593; {escape(limit.name)}, above this scale"
        return f'<text class="limit" x="{frame.right}" y="{TOP + 13}" text-anchor="end">{text}</text>'
    y = frame.y(limit.value)
    text_y = y + 16 if y < TOP + 16 else y - 6
    return (
        f'<line class="limit" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="limit" x="{frame.right}" y="{text_y:.1f}" text-anchor="end">{escape(limit.name)}</text>'
    )


def _describe(title: str, steps: Sequence[float], series: Sequence[Series], label: Callable[[float], str]) -> str:
    """The chart in words, for those who do not see it: ends and range of its first lines."""
    texts = []
    for line in series[:MOST_DESCRIBED]:
        known = [(step, value) for step, value in zip(line.steps or steps, line.values, strict=True) if value is not None]
        if known:
            (first, begin), (last, end) = known[0], known[-1]
            values = [value for _, value in known]
            least, most = label(min(values)), label(max(values))
            texts.append(
                f"{line.name} {label(begin)} at step {first:,.0f}, {label(end)} at step {last:,.0f}, between {least} and {most}"
            )
    more = f"; and {format_count(len(series) - MOST_DESCRIBED, 'more line')}" if len(series) > MOST_DESCRIBED else ""
    return f"{title}: {'; '.join(texts)}{more}"


def draw_stack(steps: Sequence[float], layers: Sequence[Series], *, title: str, label: Callable[[float], str]) -> str | None:
    """Layers on top of each other, the first at the bottom. None where there is nothing to draw."""
    base = [0.0] * len(steps)
    areas = []
    for layer in layers:
        top = [below + (value or 0.0) for below, value in zip(base, layer.values, strict=True)]
        areas.append((list(base), top, layer.colour))
        base = top
    if not base or max(base) <= 0:
        return None
    frame, ticks = _make_frame(steps, 0.0, max(base), WIDTH)
    parts = [_draw_band(frame, steps, low, high, colour, "area") for low, high, colour in areas]
    return _wrap(_describe(title, steps, layers, label), [_draw_axes(frame, ticks, label), *parts], WIDTH)


def _make_frame(steps: Sequence[float], low: float, high: float, width: int) -> tuple[_Frame, list[float]]:
    """The frame with round numbers at its ends, and those round numbers."""
    # all values are equal, or as good as that
    if high - low <= max(SMALLEST, SAME * max(abs(low), abs(high))):
        low, high = (0.0, 2 * high) if high > SMALLEST else (low - 1.0, high + 1.0)
    spacing = _round_up((high - low) / 4)
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    ticks = [number * spacing for number in range(first, last + 1)]
    return _Frame(steps[0], steps[-1], ticks[0], ticks[-1], width), ticks


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))


def _draw_axes(frame: _Frame, ticks: Sequence[float], label: Callable[[float], str]) -> str:
    parts = []
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label(tick))}</text>')
    for step in _step_ticks(frame.first_x, frame.last_x):
        x = frame.x(step)
        anchor = "end" if x > frame.right - 14 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{_name_step(step)}</text>')
    parts.append(f'<text class="axis" x="{(LEFT + frame.right) / 2}" y="{HEIGHT - 7}" text-anchor="middle">step</text>')
    return "".join(parts)


def _step_ticks(first: float, last: float) -> list[int]:
    if last - first < 1:
        return [round(first)]
    spacing = max(1, math.ceil(_round_up((last - first) / 5)))
    return [number * spacing for number in range(math.ceil(first / spacing - 1e-9), math.floor(last / spacing + 1e-9) + 1)]


def _name_step(step: int) -> str:
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if step >= 10 * size or (step >= size and step % size == 0):
            return f"{step / size:g}{suffix}"
    return str(step)


def _draw_line(frame: _Frame, steps: Sequence[float], line: Series) -> str:
    colour, kind = f'style="stroke:var(--s{line.colour % NUM_COLOURS})"', "line faint" if line.is_faint else "line"
    runs = _runs(steps, line.values)
    num_values = sum(map(len, runs))
    marks_all = line.has_dots and num_values <= MOST_DOTS
    path = "".join("M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in run) for run in runs if len(run) > 1)
    dots = "".join(
        f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5" style="fill:var(--s{line.colour % NUM_COLOURS})"/>'
        for run in runs
        if len(run) == 1 or marks_all
        for x, y in run
    )
    return (f'<path class="{kind}" {colour} d="{path}"/>' if path else "") + dots


def _draw_band(frame: _Frame, steps: Sequence[float], low: Values, high: Values, colour: int, kind: str) -> str:
    parts = []
    both = [None if bottom is None or top is None else (bottom, top) for bottom, top in zip(low, high, strict=True)]
    for run in _runs(steps, both):
        if len(run) == 1:  # one step alone: as wide as a bar
            (x, (bottom, top)) = run[0]
            corners = [(frame.x(x) + dx, frame.y(y)) for dx, y in ((-9, bottom), (9, bottom), (9, top), (-9, top))]
        else:
            upper = [(frame.x(x), frame.y(top)) for x, (_, top) in run]
            corners = upper + [(frame.x(x), frame.y(bottom)) for x, (bottom, _) in reversed(run)]
        outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        parts.append(f'<path class="{kind}" style="fill:var(--s{colour % NUM_COLOURS})" d="M{outline}Z"/>')
    return "".join(parts)


def _runs(steps: Sequence[float], values: Sequence) -> list[list[tuple]]:
    """(step, value) pairs, cut where a value is None."""
    runs: list[list[tuple]] = [[]]
    for step, value in zip(steps, values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if run]


def _wrap(text: str, parts: Sequence[str], width: int) -> str:
    return f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(text)}">{"".join(parts)}</svg>'
