"""Tables, and what is no table, give the bytes that timm's operations give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mats_ds.core.clips import ImageOperation
from mats_ds.data.augment.device_frames import DeviceFrames
from mats_ds.data.augment.pillow_frame import PillowFrame
from mats_ds.data.augment.rand_augment import AMOUNTS
from mats_ds.data.augment.tones import MEASURED, TABLES, look_up, make_table, saturate
from tests.data.whole_frames import augment_by_timm, make_picture

PICTURES = [make_picture(30, 44, seed=1), make_picture(30, 44, seed=2) // 2 + 9, np.full((30, 44, 3), (7, 90, 201), np.uint8)]
STRENGTHS = [(0.0, 1), (0.4, 1), (0.7, 1), (0.7, -1), (0.9, -1)]


def apply(frames, operation):
    """The operation on the frames of either kind."""
    name, amount = operation
    if name in TABLES:
        counts = frames.count(None) if name in MEASURED else None
        frames.look_up(make_table(operation, counts, num_frames=frames.num_frames))
    else:
        (frames.saturate if name == "colour" else frames.sharpen)(amount)
    return frames


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", sorted(TABLES | {"colour", "sharpness"}))
def test_both_kinds_of_frames_give_timms_bytes(name, strength):
    operation = ImageOperation(name, AMOUNTS[name](*strength))
    expected = np.stack([augment_by_timm(picture, (operation,)) for picture in PICTURES])
    by_pillow = [apply(PillowFrame(picture), operation).pixels(flip=False) for picture in PICTURES]
    np.testing.assert_array_equal(np.stack(by_pillow), expected)
    # All frames together, each measured on its own; single precision may round the last bit
    # otherwise on other devices.
    on_device = apply(DeviceFrames(torch.from_numpy(np.stack(PICTURES))), operation).frames_THWC.numpy()
    np.testing.assert_array_equal(on_device, expected)


def test_a_device_leaves_what_it_was_given():
    given = torch.from_numpy(np.stack(PICTURES))
    copy = given.clone()
    for name in ("invert", "colour", "sharpness"):
        apply(DeviceFrames(given), ImageOperation(name, 1.6))
    assert given.equal(copy)


@pytest.mark.parametrize("name", ["posterize", "brightness", "colour", "equalize"])
def test_single_colours_change_as_pictures_do(name):
    operation = ImageOperation(name, AMOUNTS[name](0.7, -1))
    picture = PICTURES[0]
    if name == "colour":
        changed = saturate(picture, operation.amount)
    else:
        counts = PillowFrame(picture).count(None)
        table = make_table(operation, counts, num_frames=1)
        changed = look_up(picture.reshape(1, -1, 3), table).reshape(picture.shape)
    np.testing.assert_array_equal(changed, augment_by_timm(picture, (operation,)))


def test_what_is_hidden_is_not_measured():
    picture = PICTURES[0].copy()
    picture[:, :10] = 255
    visible = np.ones((30, 44), bool)
    visible[:, :10] = False
    kept = PillowFrame(picture[:, 10:]).count(None)
    np.testing.assert_array_equal(PillowFrame(picture).count(visible), kept)
    np.testing.assert_array_equal(DeviceFrames(torch.from_numpy(picture)[None]).count(visible), kept)
    assert make_table(ImageOperation("autocontrast"), kept, num_frames=1)[0, 0].tolist()[230] == 255


def test_no_bit_kept_is_black():
    """Magnitude 10: Pillow refuses since version 12.1, and made black before."""
    assert not make_table(ImageOperation("posterize", 0), None, num_frames=2).any()
