"""Labels stand beside their points and on nothing else."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mats_ds.visualization.label_placement import Box, label_points


def make_axis():
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def place(points, labels, lines):
    axis = make_axis()
    for line in lines:
        axis.plot(*np.transpose(line))
    axis.margins(0.15)
    return axis, label_points(axis, points, labels, lines)


@pytest.mark.parametrize("slope", [0.0, 0.5, -1.0, 3.0])
def test_they_keep_off_a_line_of_any_slope(slope):
    points = [(x, slope * x) for x in range(6)]
    axis, boxes = place(points, list("abcdef"), [points])
    line_P2 = axis.transData.transform([(x, slope * x) for x in np.linspace(0, 5, 2000)])
    assert [box.count_inside(line_P2) for box in boxes] == [0] * 6
    assert sum(one.overlap(other) for one in boxes for other in boxes if one is not other) == 0


def test_points_that_coincide_get_labels_side_by_side():
    _, boxes = place([(1, 1)] * 4, ["one", "two", "three", "four"], [[(0, 0), (1, 1), (2, 0)]])
    assert sum(one.overlap(other) for one in boxes for other in boxes if one is not other) == 0


def test_they_stay_inside_the_axes():
    axis, boxes = place([(0, 0), (1, 1)], ["a label", "another"], [[(0, 0), (1, 1)]])
    view = axis.get_window_extent()
    assert all(box.lies_in(Box(view.x0, view.y0, view.x1, view.y1)) for box in boxes)
