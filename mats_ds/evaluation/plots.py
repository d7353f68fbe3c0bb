"""Two pictures of a test: the confusion matrix, and accuracy against cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mats_ds.core.storage.files import replace_file
from mats_ds.evaluation.accuracy import Accuracy
from mats_ds.planning.flops import FLOPS_PER_MAC
from mats_ds.visualization.drawing import fit_label, fit_title, plain_drawing
from mats_ds.visualization.label_placement import label_points

MAX_NAMED = 60  # classes whose names can be read on the axes
MAX_NUMBERED = 25  # classes for which every cell shows its number, and names stand aslant
# of a side: more classes than the picture has pixels are drawn as groups of neighbours
MAX_CELLS = 1000
MAX_PAIRS = 20  # pairs of classes that are listed beside a matrix too large to be read
INK, ACCENT, MUTED = "#1f2933", "#0b6e99", "#7b8794"
DPI = 120
CHARACTER = 0.6 / 72  # inches: the mean width of a character, for each point of its height
CELL_INCHES, MIN_CELLS_INCHES, MAX_CELLS_INCHES = 0.36, 2.8, 9.0
PAIRS_INCHES = 5.0
PAIR_CHARACTERS = 28  # of each of the two names of a pair


@dataclass(frozen=True)
class SweepPoint:
    """Accuracy and cost at one fraction of kept tokens.

    macs: multiply-adds of one view; `macs_from`: how they were counted. views_per_second: None if
    not measured.
    """

    keep_ratio: float
    accuracy: Accuracy
    macs: int
    macs_from: str
    views_per_second: float | None

    def costs(self) -> dict[str, float | str | None]:
        """GMACs (what papers call GFLOPs), GFLOPs, and the measured speed."""
        giga = self.macs / 1e9
        return {
            "keep_ratio": self.keep_ratio,
            "gmacs_per_view": giga,
            "gflops_per_view": FLOPS_PER_MAC * giga,
            "counted_by": self.macs_from,
            "views_per_second": self.views_per_second,
        }


def draw_confusion(accuracy: Accuracy, names: Sequence[str], path: Path, *, title: str) -> None:
    """A PNG of the confusion matrix: rows are true classes, scaled to a sum of one.

    Beyond MAX_NUMBERED classes the pairs that are confused most often are listed beside it; beyond
    MAX_NAMED the axes show the numbers of classes, and beyond MAX_CELLS a cell stands for a group
    of neighbouring classes.
    """
    with plain_drawing():
        _draw_confusion(accuracy, [fit_label(name) for name in names], path, title=title)


def _draw_confusion(accuracy: Accuracy, names: Sequence[str], path: Path, *, title: str) -> None:
    num, has_names, lists_pairs = len(names), len(names) <= MAX_NAMED, len(names) > MAX_NUMBERED
    size = 9 if num <= MAX_NUMBERED else 7
    cells = min(MAX_CELLS_INCHES, max(MIN_CELLS_INCHES, CELL_INCHES * num))
    # The longest name beside and below the matrix: without that room it would shrink to nothing.
    longest = max(map(len, names)) * size * CHARACTER if has_names else 0.4
    width = cells + longest + 1.9 + (PAIRS_INCHES if lists_pairs else 0)
    figure = new_figure(width, cells + longest * (0.75 if num <= MAX_NUMBERED else 1) + 1.2)
    widths = [width - PAIRS_INCHES, PAIRS_INCHES] if lists_pairs else [width]
    axis, *aside = np.atleast_1d(figure.subplots(1, len(widths), width_ratios=widths))
    confusion_CC, group = group_classes(accuracy.confusion_CC)
    part_CC = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(part_CC, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if has_names:
        slant = {"rotation": 45} if num <= MAX_NUMBERED else {"rotation": 90, "va": "center"}
        axis.set_xticks(range(num), names, ha="right", rotation_mode="anchor", fontsize=size, **slant)
        axis.set_yticks(range(num), names, fontsize=size)
    if num <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(accuracy.confusion_CC):
            if count:
                colour = "white" if part_CC[row, column] > 0.55 else INK
                digits = len(str(count))
                axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8 if digits < 4 else 6)
    what = "class" if has_names else f"number of a group of {group} classes" if group > 1 else "number of the class"
    axis.set_xlabel(f"predicted {what}")
    axis.set_ylabel(f"true {what}")
    figure.suptitle(f"{wrap_title(title, width)}\ntop-1 {accuracy.top1.describe()}", fontsize=10)
    figure.colorbar(image, ax=axis, label="fraction of the true class", shrink=0.7)
    if lists_pairs:
        _list_pairs(aside[0], accuracy.confusion_CC, names, with_numbers=not has_names)
    save_figure(figure, path)


def _list_pairs(axis: Any, confusion_CC: np.ndarray, names: Sequence[str], *, with_numbers: bool) -> None:
    """The pairs that are confused most often, as bars with both names above."""
    pairs = find_confused(confusion_CC)
    axis.set_axis_off()
    axis.set_title("confused most often" if pairs else "no class is taken for another", fontsize=10, loc="left")
    axis.set_xlim(0, 1)
    axis.set_ylim(MAX_PAIRS - 0.5, -0.5)
    most = max((count for _, _, count in pairs), default=1)
    for row, (true, predicted, count) in enumerate(pairs):
        number = {True: (f"{true} ", f"{predicted} "), False: ("", "")}[with_numbers]
        true_name, predicted_name = (fit_label(names[label], most=PAIR_CHARACTERS) for label in (true, predicted))
        label = f"{number[0]}{true_name} \N{RIGHTWARDS ARROW} {number[1]}{predicted_name}"
        axis.text(0, row - 0.2, label, fontsize=8, color=INK, va="center")
        axis.barh(row + 0.2, 0.7 * count / most, height=0.22, color=ACCENT)
        of = f"{count} of {confusion_CC[true].sum()}"
        axis.text(0.7 * count / most + 0.015, row + 0.2, of, fontsize=7, color=MUTED, va="center")


def find_confused(confusion_CC: np.ndarray) -> list[tuple[int, int, int]]:
    """At most MAX_PAIRS of (true class, predicted class, videos), the most frequent first; of
    equals, the one with the larger fraction of its class, then the lower classes."""
    wrong_CC = confusion_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    true_P, predicted_P = np.nonzero(wrong_CC)
    count_P = wrong_CC[true_P, predicted_P]
    part_P = count_P / confusion_CC.sum(axis=1)[true_P]
    order = np.lexsort((predicted_P, true_P, -part_P, -count_P))[:MAX_PAIRS]
    return [(int(true_P[pair]), int(predicted_P[pair]), int(count_P[pair])) for pair in order]


def group_classes(confusion_CC: np.ndarray) -> tuple[np.ndarray, int]:
    """Counts of at most MAX_CELLS groups of neighbouring classes, and the size of a group."""
    group = -(-len(confusion_CC) // MAX_CELLS)
    starts = np.arange(0, len(confusion_CC), group)
    return np.add.reduceat(np.add.reduceat(confusion_CC, starts, axis=0), starts, axis=1), group


def draw_sweep(points: Sequence[SweepPoint], path: Path, *, title: str, speed_note: str) -> None:
    """A PNG: top-1 with its interval against multiply-adds of a view and against views a second."""
    with plain_drawing():
        _draw_sweep(points, path, title=title, speed_note=speed_note)


def _draw_sweep(points: Sequence[SweepPoint], path: Path, *, title: str, speed_note: str) -> None:
    figure = new_figure(10.5, 4.6)
    axes = figure.subplots(1, 2, sharey=True)
    ordered = sorted(points, key=lambda point: point.keep_ratio)
    percent = [100 * point.accuracy.top1.value for point in ordered]
    intervals = [point.accuracy.top1.interval for point in ordered]
    bars = [(100 * low, 100 * high) for low, high in intervals]
    spread = [
        [value - low for value, (low, _) in zip(percent, bars, strict=True)],
        [high - value for value, (_, high) in zip(percent, bars, strict=True)],
    ]
    all_costs = ([point.macs / 1e9 for point in ordered], [point.views_per_second for point in ordered])
    for axis, costs in zip(axes, all_costs, strict=True):
        axis.errorbar(costs, percent, yerr=spread, color=ACCENT, ecolor=MUTED, marker="o", capsize=3, linewidth=1.5)
        axis.grid(alpha=0.25)
        axis.margins(0.14)
    left, right = axes
    left.set_xlabel("GMACs of one view (published “GFLOPs”; twice as many FLOPs)")
    left.set_ylabel("top-1 accuracy, % (bars: 95% interval)")
    right.set_xlabel(f"views a second, measured\n{wrap_title(speed_note, 5)}")
    figure.suptitle(f"{wrap_title(title, 9)}: accuracy by fraction of tokens kept, which stands at each point", fontsize=10)
    for axis, costs in zip(axes, all_costs, strict=True):
        known = [
            (cost, value, bar, p.keep_ratio) for cost, value, bar, p in zip(costs, percent, bars, ordered, strict=True) if cost
        ]
        if not known:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=MUTED)
            axis.set_xticks([])
            continue
        lines = [
            [(cost, value) for cost, value, _, _ in known],
            *([(cost, low), (cost, high)] for cost, _, (low, high), _ in known),
        ]
        spots = [(cost, value) for cost, value, _, _ in known]
        label_points(axis, spots, [f"{ratio:g}" for *_, ratio in known], lines, color=INK, fontsize=9)
    save_figure(figure, path)


def wrap_title(title: str, width_inches: float) -> str:
    """The lines of a title, none wider than that in letters of 10 points."""
    most = max(24, int(width_inches / (10 * CHARACTER)))
    lines = [textwrap.wrap(line, most) or [""] for line in fit_title(title).split("\n")]
    return "\n".join(line for parts in lines for line in parts)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG atomically."""
    with replace_file(path) as aside:
        figure.savefig(aside, dpi=DPI, format="png")


def new_figure(width_inches: float, height_inches: float):
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
