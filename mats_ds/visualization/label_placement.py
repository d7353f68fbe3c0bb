"""Labels beside the points of a plot, where they cover no line, no other point and no other label.

Points, lines and boxes are in pixels of the picture. Each label tries positions around its point,
near ones first, and takes the first free one; where none is free, the one that covers least. So
the picture must have its final size before labels are placed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Above and beside a point first, where a reader looks for its label.
DIRECTIONS = tuple(math.radians(degrees) for degrees in (60, 120, 90, 30, 150, 0, 180, 300, 240, 270, 330, 210))
DISTANCES = (5.0, 12.0, 22.0, 34.0, 50.0)  # points, from the point to the label's nearest edge
CLEAR = 1.5  # points that stay free around a label
LINE_STEP = 2.0  # pixels between the tested points of a line
LEADER_FROM = 12.0  # points: a label farther away gets a thin line to its point


@dataclass(frozen=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    def count_inside(self, points_P2: np.ndarray) -> int:
        """How many of the points lie in the box."""
        x_P, y_P = points_P2.T
        return int(((x_P > self.left) & (x_P < self.right) & (y_P > self.bottom) & (y_P < self.top)).sum())

    def overlap(self, other: Box) -> float:
        """The common area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def lies_in(self, other: Box) -> bool:
        return self.left >= other.left and self.right <= other.right and self.bottom >= other.bottom and self.top <= other.top


def label_points(axis: Any, points: Sequence[tuple[float, float]], labels: Sequence[str], lines: Any, **style: Any) -> list[Box]:
    """Write the labels beside their points, in data coordinates, and return where they stand.

    lines: the (x, y) sequences that no label may cover, in data coordinates. The figure's layout is
    computed and kept from then on.
    """
    figure = axis.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    pixels_per_point = figure.dpi / 72
    to_pixels = axis.transData.transform
    covered_P2 = np.concatenate([_walk(to_pixels(np.asarray(line, float))) for line in lines] + [to_pixels(points)])
    view = axis.get_window_extent()
    inside = Box(view.x0, view.y0, view.x1, view.y1)
    placed: list[Box] = []
    for point, label in zip(points, labels, strict=True):
        text = axis.annotate(
            label, point, textcoords="offset points", **{"xytext": (0, 0), "ha": "center", "va": "center", **style}
        )
        extent = text.get_window_extent()
        size = (extent.width + 2 * CLEAR * pixels_per_point, extent.height + 2 * CLEAR * pixels_per_point)
        box, distance = _find_free(to_pixels(point), size, covered_P2, placed, inside, pixels_per_point)
        placed.append(box)
        middle = np.array([(box.left + box.right) / 2, (box.bottom + box.top) / 2])
        offset = (middle - to_pixels(point)) / pixels_per_point
        text.set_position(tuple(offset))
        if distance > LEADER_FROM:
            leader = {"arrowstyle": "-", "color": "#7b8794", "linewidth": 0.6, "shrinkA": 3, "shrinkB": 3}
            axis.annotate("", point, xytext=tuple(offset), textcoords="offset points", arrowprops=leader)
    return placed


def _find_free(
    point: np.ndarray, size: tuple[float, float], covered_P2: np.ndarray, placed: list[Box], inside: Box, pixels_per_point: float
) -> tuple[Box, float]:
    """The best box of that size around a point, and its distance in points."""
    width, height = size
    best = None
    for distance in DISTANCES:
        for direction in DIRECTIONS:
            cos, sin = math.cos(direction), math.sin(direction)
            # the box's edge, not its middle, is at that distance
            reach = distance * pixels_per_point
            x, y = point[0] + cos * (reach + width / 2), point[1] + sin * (reach + height / 2)
            box = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            cost = box.count_inside(covered_P2) + sum(map(box.overlap, placed)) + (0 if box.lies_in(inside) else 1000)
            if cost == 0:
                return box, distance
            if best is None or cost < best[0]:
                best = (cost, box, distance)
    assert best is not None
    return best[1], best[2]


def _walk(corners_P2: np.ndarray) -> np.ndarray:
    """Points along a line through these corners, LINE_STEP apart."""
    parts = [corners_P2[:1]]
    for start, end in zip(corners_P2[:-1], corners_P2[1:], strict=True):
        steps = max(1, math.ceil(float(np.hypot(*(end - start))) / LINE_STEP))
        parts.append(start + (end - start) * np.linspace(0, 1, steps + 1)[1:, None])
    return np.concatenate(parts)
