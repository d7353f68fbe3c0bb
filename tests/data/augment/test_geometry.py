"""Movements of whole frames lead where Pillow's do, as timm calls it: pixels, filled areas, visible
parts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mats_ds.core.clips import ImageOperation
from mats_ds.data.augment.geometry import filled_fractions, make_warp, movement_matrix, source_region, visible_pixels
from tests.data.whole_frames import augment_by_timm

FRAME = (60, 88)
MOVES = [
    ("rotate", 21.0),
    ("rotate", -13.0),
    ("shear_x", 0.21),
    ("shear_x", -0.21),
    ("shear_y", 0.3),
    ("shear_y", -0.1),
    ("translate_x", 0.3),
    ("translate_x", -0.25),
    ("translate_y", 0.2),
    ("translate_y", -0.35),
]
CHAINS = [*[(move,) for move in MOVES], (MOVES[0], MOVES[3]), (MOVES[4], MOVES[6], MOVES[1]), (MOVES[8], MOVES[9])]


def operations_of(chain):
    return tuple(ImageOperation(*move) for move in chain)


def matrices_of(chain):
    return [movement_matrix(operation, FRAME) for operation in operations_of(chain)]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_each_pixel_comes_from_where_pillow_takes_it(chain):
    """A picture of its own coordinates, moved without interpolation: shears leave the corner, turns
    the centre."""
    y_HW, x_HW = np.mgrid[: FRAME[0], : FRAME[1]]
    places = np.stack([x_HW, y_HW, np.full_like(x_HW, 255)], axis=-1).astype(np.uint8)
    moved = augment_by_timm(places, operations_of(chain), interpolation=Image.Resampling.NEAREST)
    warp = make_warp(matrices_of(chain), box=(0, 0, *FRAME), frame=FRAME, size=FRAME, flip=False)
    shown_HW = moved[..., 2] == 255
    certain_HW = (warp.content_HW == 1) | (warp.content_HW == 0)
    wrong_HW = certain_HW & ((warp.content_HW == 1) != shown_HW)
    # moved twice, it is moved to whole pixels in between
    assert wrong_HW.mean() <= (0 if len(chain) == 1 else 0.001)
    assert certain_HW.mean() > 0.85
    inner_HW = shown_HW & (warp.content_HW == 1)
    from_HW2 = moved[..., :2][inner_HW] + 0.5
    # Half a pixel for each time that the picture is moved to whole pixels.
    assert np.abs(warp.points_HW2[inner_HW] - from_HW2).max() < 0.71 * len(chain) + 0.01


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_filled_areas_and_visible_parts_are_pillows(chain):
    white = np.full((*FRAME, 3), 255, np.uint8)
    moved = augment_by_timm(white, operations_of(chain), interpolation=Image.Resampling.NEAREST)
    filled = (moved[..., 0] == 128).mean()
    assert sum(filled_fractions(matrices_of(chain), FRAME)) == pytest.approx(filled, abs=0.012)
    assert visible_pixels(matrices_of(chain), FRAME).mean() == pytest.approx(1 - filled, abs=0.012)


def test_each_fill_is_known_by_the_movement_that_made_it():
    down, up = (movement_matrix(ImageOperation("translate_y", amount), FRAME) for amount in (-0.25, 0.5))
    # The first uncovers the upper quarter, the second pushes it out and uncovers the lower half.
    assert filled_fractions([down, up], FRAME) == pytest.approx([0, 0.5], abs=0.01)
    assert filled_fractions([down, down], FRAME) == pytest.approx([0.25, 0.25], abs=0.01)
    warp = make_warp([down, down], box=(0, 0, *FRAME), frame=FRAME, size=FRAME, flip=False)
    assert warp.fills_JHW[1, :14].min() == 1 and warp.fills_JHW[0, 16:29].min() == 1
    np.testing.assert_allclose(warp.fills_JHW.sum(axis=0) + warp.content_HW, 1, atol=1e-6)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_region_holds_every_pixel_that_is_shown(chain):
    box = (17, 23, 31, 40)
    warp = make_warp(matrices_of(chain), box=box, frame=FRAME, size=(24, 36), flip=False)
    top, left, bottom, right = source_region(matrices_of(chain), box=box, frame=FRAME, margin=1)
    assert 0 <= top < bottom <= FRAME[0] and 0 <= left < right <= FRAME[1]
    x, y = warp.points_HW2[warp.content_HW > 0].T
    x, y = x.clip(0.5, FRAME[1] - 0.5), y.clip(0.5, FRAME[0] - 0.5)
    assert (x >= left + 0.5).all() and (x <= right - 0.5).all() and (y >= top + 0.5).all() and (y <= bottom - 0.5).all()


def test_a_crop_that_shows_only_fill_still_has_a_region():
    away = movement_matrix(ImageOperation("translate_x", 0.45), FRAME)
    region = source_region([away, away, away], box=(10, 70, 12, 12), frame=FRAME, margin=1)
    assert region[2] > region[0] and region[3] > region[1]


def test_a_crop_that_shrinks_takes_more_samples():
    matrices = matrices_of([("rotate", 9.0)])
    one = make_warp(matrices, box=(5, 5, 20, 30), frame=FRAME, size=(20, 30), flip=False)
    more = make_warp(matrices, box=(5, 5, 50, 40), frame=FRAME, size=(20, 30), flip=False)
    assert one.samples == (1, 1) and more.samples == (3, 2) and more.points_HW2.shape == (60, 60, 2)
