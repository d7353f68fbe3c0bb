"""One RGB frame on the host and what RandAugment does to its colours, on the calling thread: by
Pillow, as timm does."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mats_ds.data.augment.tones import NUM_VALUES, sharpen


class PillowFrame:
    """A copy of picture_HWC, uint8 RGB (the protocol `Frames` of augmented_crop, for one frame)."""

    num_frames = 1

    def __init__(self, picture_HWC: np.ndarray) -> None:
        self._image = Image.fromarray(np.ascontiguousarray(picture_HWC))

    def count(self, visible_HW: np.ndarray | None) -> np.ndarray:
        mask = None if visible_HW is None else Image.fromarray(visible_HW.view(np.uint8) * np.uint8(255))
        return np.array(self._image.histogram(mask)).reshape(1, 3, NUM_VALUES)

    def look_up(self, table_T3V: np.ndarray) -> None:
        self._image = self._image.point(table_T3V[0].reshape(-1).tolist())

    def saturate(self, factor: float) -> None:
        self._image = ImageEnhance.Color(self._image).enhance(factor)

    def sharpen(self, factor: float) -> None:
        # Pillow's own filter takes three times as long.
        self._image = Image.fromarray(sharpen(np.asarray(self._image), factor))

    def cut(self, region: tuple[int, int, int, int]) -> None:
        top, left, bottom, right = region
        self._image = self._image.crop((left, top, right, bottom))

    def pixels(self, *, flip: bool) -> np.ndarray:
        """uint8 [H, W, 3], mirrored if `flip`."""
        return np.asarray(ImageOps.mirror(self._image) if flip else self._image)
