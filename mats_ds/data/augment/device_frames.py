"""Frames of a clip on a device, uint8 [T, H, W, 3], and what RandAugment does to their colours:
Pillow's bytes, by torch."""

from __future__ import annotations

import numpy as np
import torch

from mats_ds.data.augment.tones import GREY_WEIGHTS, NUM_VALUES, SMOOTH_CENTRE, SMOOTH_SUM


class DeviceFrames:
    """The protocol `Frames` of augmented_crop; what is given stays as it is. Frame by frame, so
    that memory stays small."""

    def __init__(self, frames_THWC: torch.Tensor) -> None:
        self.frames_THWC = frames_THWC
        self._offsets_C = torch.arange(3, device=frames_THWC.device) * NUM_VALUES

    @property
    def num_frames(self) -> int:
        return len(self.frames_THWC)

    def count(self, visible_HW: np.ndarray | None) -> np.ndarray:
        frames_THWC = self.frames_THWC
        visible = None if visible_HW is None else torch.from_numpy(visible_HW).to(frames_THWC.device)
        counts = []
        for frame_HWC in frames_THWC:
            values = (frame_HWC if visible is None else frame_HWC[visible]) + self._offsets_C
            counts.append(torch.bincount(values.reshape(-1), minlength=3 * NUM_VALUES))
        return torch.stack(counts).cpu().numpy().reshape(-1, 3, NUM_VALUES)

    def look_up(self, table_T3V: np.ndarray) -> None:
        tables = torch.from_numpy(np.ascontiguousarray(table_T3V)).to(self.frames_THWC.device).reshape(self.num_frames, -1)
        self._replace(lambda frame_HWC, table: table[frame_HWC + self._offsets_C], tables)

    def saturate(self, factor: float) -> None:
        weights = torch.tensor(GREY_WEIGHTS, device=self.frames_THWC.device)

        def change(frame_HWC: torch.Tensor) -> torch.Tensor:
            grey_HW1 = ((frame_HWC * weights).sum(-1, keepdim=True) + 0x8000) >> 16
            return _blend(grey_HW1, frame_HWC, factor)

        self._replace(change)

    def sharpen(self, factor: float) -> None:
        def change(frame_HWC: torch.Tensor) -> torch.Tensor:
            soft_HWC = frame_HWC.clone()  # the border keeps its values
            if min(frame_HWC.shape[:2]) > 2:
                height, width = (side - 2 for side in frame_HWC.shape[:2])
                sum_HWC = (SMOOTH_CENTRE - 1) * frame_HWC[1:-1, 1:-1].int()
                for row in range(3):
                    for column in range(3):
                        sum_HWC += frame_HWC[row : row + height, column : column + width]
                soft_HWC[1:-1, 1:-1] = ((2 * sum_HWC + SMOOTH_SUM) // (2 * SMOOTH_SUM)).to(torch.uint8)
            return _blend(soft_HWC, frame_HWC, factor)

        self._replace(change)

    def cut(self, region: tuple[int, int, int, int]) -> None:
        top, left, bottom, right = region
        self.frames_THWC = self.frames_THWC[:, top:bottom, left:right]

    def _replace(self, change, *arguments_T) -> None:
        self.frames_THWC = torch.stack([change(*one) for one in zip(self.frames_THWC, *arguments_T, strict=True)])


def _blend(start: torch.Tensor, values: torch.Tensor, factor: float) -> torch.Tensor:
    """start + factor (values - start), cut off to bytes as Pillow does."""
    start = start.float()
    return (start + factor * (values.float() - start)).clamp_(0, 255).to(torch.uint8)
