"""Crops that are chosen before the size of the video is known."""

from __future__ import annotations

from mats_ds.core.clips import CropSpec


def test_crops_are_parts_of_the_shorter_side():
    assert CropSpec(height_scale=0.5, width_scale=0.75, top=1.0, left=0.0).box(100, 200) == (50, 0, 50, 75)
    assert CropSpec().box(1, 1) == (0, 0, 1, 1)
