"""What the tests of RandAugment are compared with: timm's operations on whole frames by Pillow,
then the crop."""

from __future__ import annotations

import numpy as np
import timm.data.auto_augment as timm
import torch
from PIL import Image

from mats_ds.core.clips import CropSpec, ImageOperation
from mats_ds.data.augment.augmented_crop import AugmentedCrop
from mats_ds.data.augment.pillow_frame import PillowFrame

TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "colour": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
PARAMETERLESS = {"autocontrast", "equalize", "invert"}
GREY = (128, 128, 128)


def make_picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: waves of colour with some noise, neither black nor white, no two parts
    alike."""
    rng = np.random.default_rng(seed)
    y_HW, x_HW = np.mgrid[:height, :width] + 10 * rng.random(2)[:, None, None]
    waves = [
        60 + 40 * np.sin(x_HW / 9) + 25 * np.cos(y_HW / 7),
        110 + 60 * np.sin((x_HW + y_HW) / 13),
        130 + 70 * np.cos(x_HW / 11),
    ]
    return np.clip(np.stack(waves, axis=-1) + rng.normal(0, 3, (height, width, 3)), 12, 231).astype(np.uint8)


def augment_by_timm(
    picture_HWC: np.ndarray, operations: tuple[ImageOperation, ...], *, interpolation: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """The whole frame, one operation after the other; `bicubic` is what VideoMAE's and EVEREST's
    scripts say."""
    image = Image.fromarray(picture_HWC)
    for name, amount in operations:
        amount = int(amount) if name in ("posterize", "solarize", "solarize_add") else amount
        arguments = () if name in PARAMETERLESS else (amount,)
        image = timm.NAME_TO_OP[TIMM_NAMES[name]](image, *arguments, fillcolor=GREY, resample=interpolation)
    return np.array(image)


def crop_by_videomae(picture_HWC: np.ndarray, crop: CropSpec, *, size: tuple[int, int], antialias: bool = True) -> np.ndarray:
    """The crop, scaled by bilinear interpolation (VideoMAE: without antialias), then mirrored;
    float [h, w, 3]."""
    top, left, height, width = crop.box(*picture_HWC.shape[:2])
    cut_1CHW = torch.from_numpy(picture_HWC).permute(2, 0, 1)[None, :, top : top + height, left : left + width].float()
    scaled_1CHW = torch.nn.functional.interpolate(cut_1CHW, size=size, mode="bilinear", antialias=antialias)
    return (scaled_1CHW.flip(-1) if crop.flip else scaled_1CHW)[0].permute(1, 2, 0).numpy()


def augment_by_us(
    picture_HWC: np.ndarray, operations: tuple[ImageOperation, ...], crop: CropSpec, *, size: tuple[int, int]
) -> np.ndarray:
    """As the reading thread does it to one frame; uint8 [h, w, 3]."""
    augmented = AugmentedCrop(operations, crop, frame=picture_HWC.shape[:2], size=size)
    frame = PillowFrame(picture_HWC)
    fills_TJ3 = augmented.develop(frame)
    return augmented.finish(frame.pixels(flip=augmented.flips_region)[None].copy(), fills_TJ3)[0]
