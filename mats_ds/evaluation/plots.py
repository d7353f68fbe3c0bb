"""Two pictures of a test: the confusion matrix, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mats_ds.core.storage.files import replace_file
from mats_ds.evaluation.accuracy import Accuracy
from mats_ds.planning.flops import FLOPS_PER_MAC
from mats_ds.visualization.drawing import fit_label, fit_title, plain_drawing

MAX_NAMED = 60  # classes whose names can be read on the axes
MAX_NUMBERED = 25  # classes for which every cell shows its number
# of a side: more classes than the picture has pixels are drawn as groups of neighbours
MAX_CELLS = 1000
INK, ACCENT, MUTED = "#1f2933", "#0b6e99", "#7b8794"
# so that no line crosses a number
PATCH = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8}
LABEL = {"xytext": (6, 6), "textcoords": "offset points", "color": INK, "fontsize": 9, "bbox": PATCH}


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

    Beyond MAX_CELLS classes a cell stands for a group of neighbouring classes.
    """
    with plain_drawing():
        _draw_confusion(accuracy, [fit_label(name) for name in names], path, title=title)


def _draw_confusion(accuracy: Accuracy, names: Sequence[str], path: Path, *, title: str) -> None:
    side = max(4.8, min(14.0, 2.6 + 0.32 * len(names)))
    figure = new_figure(side + 1.6, side)
    axis = figure.subplots()
    confusion_CC, group = group_classes(accuracy.confusion_CC)
    part_CC = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(part_CC, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= MAX_NAMED:
        size = 9 if len(names) <= MAX_NUMBERED else 6
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axis.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(accuracy.confusion_CC):
            if count:
                colour = "white" if part_CC[row, column] > 0.55 else INK
                axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    groups = f" (groups of {group})" if group > 1 else ""
    axis.set_xlabel(f"predicted class{groups}")
    axis.set_ylabel(f"true class{groups}")
    figure.suptitle(f"{fit_title(title)}\ntop-1 {accuracy.top1.describe()}", fontsize=10)
    figure.colorbar(image, ax=axis, label="fraction of the true class", shrink=0.7)
    save_figure(figure, path)


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
    figure = new_figure(10.5, 4.4)
    left, right = figure.subplots(1, 2, sharey=True)
    ordered = sorted(points, key=lambda point: point.keep_ratio)
    percent = [100 * point.accuracy.top1.value for point in ordered]
    intervals = [point.accuracy.top1.interval for point in ordered]
    spread = [
        [value - 100 * low for value, (low, _) in zip(percent, intervals, strict=True)],
        [100 * high - value for value, (_, high) in zip(percent, intervals, strict=True)],
    ]
    for axis, costs in ((left, [point.macs / 1e9 for point in ordered]), (right, [p.views_per_second for p in ordered])):
        axis.errorbar(costs, percent, yerr=spread, color=ACCENT, ecolor=MUTED, marker="o", capsize=3, linewidth=1.5)
        for point, cost, value in zip(ordered, costs, percent, strict=True):
            axis.annotate(f"{point.keep_ratio:g}", (cost, value), **LABEL)
        axis.grid(alpha=0.25)
        axis.margins(0.12)
    left.set_xlabel("GMACs of one view (published “GFLOPs”; twice as many FLOPs)")
    left.set_ylabel("top-1 accuracy, % (bars: 95% interval)")
    right.set_xlabel(f"views a second, measured\n{fit_title(speed_note)}")
    figure.suptitle(f"{fit_title(title)}: accuracy by fraction of tokens kept", fontsize=11)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG atomically."""
    with replace_file(path) as aside:
        figure.savefig(aside, dpi=120, format="png")


def new_figure(width_inches: float, height_inches: float):
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
