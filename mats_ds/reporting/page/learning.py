"""Whether a run learns: its loss, and every monitor of learning that it has -> charts.

A monitor is one chart beside the loss. `list_monitors` is the list of them: tests of a fine-tuning,
gradient norm, learning rate. Whatever else is watched during training belongs into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from mats_ds.reporting.figures import Figures
from mats_ds.reporting.page.charts import Series, draw_lines
from mats_ds.reporting.page.markup import chart, charts, number, scale, section, tick
from mats_ds.reporting.report_text import describe_loss

WIDE = 1060  # units of the chart that is as wide as the page, where a narrow one would be enlarged
SMOOTHED_FROM, SMOOTHED_PART = 24, 12  # the least points of a curve to smooth; a mean is over a twelfth of them


@dataclass(frozen=True)
class Monitor:
    """One chart on learning. `note` says what is measured, on what; `steps` are those of the
    values. `latest` writes the newest value."""

    name: str
    note: str
    steps: Sequence[float]
    series: Sequence[Series]
    latest: Callable[[float], str] = number
    from_zero: bool = True


def list_monitors(figures: Figures) -> list[Monitor]:
    """The monitors that this run has, what says most about learning first."""
    steps, curves, tests = figures.span.steps(), figures.curves, figures.files.tests
    test_steps = [float(test.step) for test in tests]
    top = [Series("top-1", [100 * test.top1 for test in tests], 2, has_dots=True)]
    if any(test.top5 < 1 for test in tests):  # of five classes or fewer it is always 1
        top.append(Series("top-5", [100 * test.top5 for test in tests], 5, has_dots=True))
    norm, rate = (curves[name].mean() for name in ("grad_norm", "learning_rate"))
    monitors = [
        Monitor("Accuracy in the tests, %", "of the readable videos", test_steps, top, "{:.1f}%".format),
        Monitor("Test loss", "cross-entropy", test_steps, [Series("loss", [test.loss for test in tests], 3, has_dots=True)]),
        Monitor("Gradient norm", "mean, before clipping", steps, [Series("norm", norm, 5)]),
        Monitor("Learning rate", "of each step", steps, [Series("learning rate", rate, 4)], tick),
    ]
    return [monitor for monitor in monitors if any(value is not None for line in monitor.series for value in line.values)]


def build_learning(figures: Figures) -> str:
    """The loss as wide as the page, the monitors below it."""
    first, _, rest = describe_loss(figures).partition(" -> ")
    loss = f"The loss went from {first} to {rest}." if rest else f"{first.capitalize()}."
    words = [] if figures.result is None else figures.result["words"]
    parts = [f'<p class="lead">{escape(text)}</p>' for text in words]
    return section("Learning", *parts, draw_loss(figures), charts(*map(_draw, list_monitors(figures))), note=loss)


def draw_loss(figures: Figures) -> str | None:
    """The training loss; drawn twice, for a wide and for a narrow screen, of which one shows."""
    curve = figures.curves["loss"]
    series = list_loss(curve.mean(), low=curve.minimum(), high=curve.maximum())
    note = "mean and range of each stretch of steps" if figures.span.num_buckets < figures.span.num_steps else "of each step"
    note += "; bold: their running mean" if len(series) > 1 else ""
    last = figures.losses[1]
    return draw_loss_chart(figures.span.steps(), series, note=note, latest="" if last is None else number(last))


def list_loss(values: list[float | None], *, name: str = "loss", colour: int = 0, low=None, high=None) -> list[Series]:
    """The curve, and where it has many points its running mean in front."""
    if len(values) < SMOOTHED_FROM:
        return [Series(name, values, colour, low, high, has_dots=True)]
    faint = Series(f"{name}, as recorded", values, colour, low, high, is_faint=True)
    return [Series(name, smooth(values), colour), faint]


def draw_loss_chart(steps: Sequence[float], series: Sequence[Series], *, note: str, latest: str = "", keys=()) -> str | None:
    """One figure with both drawings."""
    wide, narrow = (
        draw_lines(steps, series, title="Loss", label=tick, from_zero=False, width=width) for width in (WIDE, WIDE // 2)
    )
    if wide is None:
        return None
    both = f'<div class="on-wide">{wide}</div><div class="on-narrow">{narrow}</div>'
    return f'<div class="charts of1">{chart("Loss", note, both, keys, latest=latest)}</div>'


def smooth(values: list[float | None]) -> list[float | None]:
    """The running mean around each point, so that it lags nowhere; None stays None."""
    reach = max(1, len(values) // (2 * SMOOTHED_PART))
    smoothed: list[float | None] = []
    for index, value in enumerate(values):
        known = [each for each in values[max(0, index - reach) : index + reach + 1] if each is not None]
        smoothed.append(None if value is None else sum(known) / len(known))
    return smoothed


def _draw(monitor: Monitor) -> str | None:
    svg = draw_lines(monitor.steps, [*monitor.series], title=monitor.name, label=tick, from_zero=monitor.from_zero)
    known = [value for value in scale(monitor.series[0].values, 1) if value is not None]
    return chart(monitor.name, monitor.note, svg, monitor.series, latest=monitor.latest(known[-1]))
