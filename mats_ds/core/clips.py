"""The clip, from the line of a manifest that names it to the batch on the device: CropSpec,
ClipSpec, ClipBatch.

Legend of shape suffixes, used in all of the package:
B clips, T frames, H height, W width, C colour channels, N tokens of a clip, D embedding width,
P values of one patch, K kept tokens, V visible tokens, M target tokens.

Source of the method: "Efficient Video Representation Learning via Motion-Aware Token Selection",
arXiv 2211.10636.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CropSpec:
    """A crop in fractions of the frame, so that it can be chosen before the size of the video is
    known.

    `height_scale` and `width_scale` are fractions of the shorter side; `top` and `left` (0 to 1)
    position the crop within the remaining height and width; `flip` mirrors left and right. The same
    crop holds for all frames of a clip.
    """

    height_scale: float = 1.0
    width_scale: float = 1.0
    top: float = 0.5
    left: float = 0.5
    flip: bool = False

    def resolve(self, height: int, width: int) -> CropSpec:
        """This very crop: it is the same fraction of frames of any size."""
        return self

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels for frames of `height` x `width` pixels; at least
        one pixel a side."""
        short = min(height, width)
        crop_height = max(1, min(height, int(short * self.height_scale)))
        crop_width = max(1, min(width, int(short * self.width_scale)))
        return (
            round(self.top * (height - crop_height)),
            round(self.left * (width - crop_width)),
            crop_height,
            crop_width,
        )


@dataclass(frozen=True)
class RandomResizedCropSpec:
    """The random numbers of a random resized crop, whose size depends on that of the video:
    `resolve` turns them into a crop.

    Each of `tries_A` is a fraction of the frame's area and a ratio of width to height; the first
    that fits into the frame is used. `top`, `left` (0 to 1, without 1) choose its offset in pixels.
    Where none fits, the crop is the largest one around the centre whose ratio is within `ratios`.
    Source: Inception's crop (arXiv 1409.4842), with the rules of torchvision's RandomResizedCrop,
    which VideoMAE fine-tunes with.
    """

    tries_A: tuple[tuple[float, float], ...]
    top: float
    left: float
    ratios: tuple[float, float]
    flip: bool = False

    def resolve(self, height: int, width: int) -> CropSpec:
        """The crop for frames of `height` x `width` pixels."""
        for area, ratio in self.tries_A:
            crop_width = round(math.sqrt(height * width * area * ratio))
            crop_height = round(math.sqrt(height * width * area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top, left = int(self.top * (height - crop_height + 1)), int(self.left * (width - crop_width + 1))
                break
        else:
            narrowest, widest = self.ratios
            crop_height = min(height, round(width / narrowest))
            crop_width = min(width, round(height * widest))
            top, left = (height - crop_height) // 2, (width - crop_width) // 2
        # Half a pixel more: `CropSpec.box` cuts off what a division leaves behind the point.
        short = min(height, width)
        return CropSpec(
            height_scale=(crop_height + 0.5) / short,
            width_scale=(crop_width + 0.5) / short,
            top=top / max(1, height - crop_height),
            left=left / max(1, width - crop_width),
            flip=self.flip,
        )


class ImageOperation(NamedTuple):
    """One step of RandAugment on full frames, before the crop: `amount` in the unit of `name`
    (data/augment/rand_augment.py)."""

    name: str
    amount: float = 0.0


@dataclass(frozen=True)
class ClipSpec:
    """One clip to read: video, frames, crop and seed, decided before any byte is read.

    `sample` is the video's row in the manifest. `first_seconds`/`last_seconds` limit the part of
    the file that may be used (None: all of it). `num_frames` frames are taken `stride` frames apart
    (`sampling="dense"`), beginning at the fraction `start` (0 to 1) of the possible beginnings, or
    one out of each of `num_frames` equal segments of the full range (`"uniform"`): the frame at the
    fraction `start` of every segment, or, where `segment_starts` is given, at the segment's own
    fraction (as many as `num_frames`). `span` is the number of video frames that a dense clip
    stretches over: 0 stands for num_frames * stride, another number spreads the frames evenly over
    that many; `span_seconds`, where given, is its length in time instead. `clip_seed` seeds what is
    random of the clip after it is read: frames, tokens, augmentation. `attempt` counts substitutes:
    0 is the clip itself. `position` counts the clips since the start of the training. `operations`
    are done one after the other to upright frames, all frames the same; the crop shows a part of
    their result.
    """

    path: str
    sample: int
    num_frames: int
    stride: int
    start: float
    sampling: str = "dense"
    label: int = -1
    first_seconds: float | None = None
    last_seconds: float | None = None
    crop: CropSpec | RandomResizedCropSpec = field(default_factory=CropSpec)
    clip_seed: int = 0
    attempt: int = 0
    span: int = 0
    span_seconds: float | None = None
    position: int = 0
    segment_starts: tuple[float, ...] = ()
    operations: tuple[ImageOperation, ...] = ()


# Begins the reason of a file of which a part can be used (data/video/judgement.py); every other
# reason is of an unreadable one.
DAMAGED = "damaged in part: "


@dataclass(frozen=True)
class BadClip:
    """A video that could not be read, with the reason in one line."""

    path: str
    sample: int
    reason: str

    @property
    def verdict(self) -> str:
        """ "unreadable: PATH: REASON", or "damaged in part: PATH: REASON"."""
        return describe_bad(self.path, self.reason)


def describe_bad(path: str, reason: str) -> str:
    """The verdict on a file in one line, its kind first."""
    if reason.startswith(DAMAGED):
        return f"{DAMAGED}{path}: {reason.removeprefix(DAMAGED)}"
    return f"unreadable: {path}: {reason}"


@dataclass
class ClipBatch:
    """One micro-batch on the device.

    frames_BTHWC: uint8, RGB. label_B: int64, -1 where unknown. sample_B: int64 row in the manifest
    of the video that was read.
    valid_B: bool, false where a substitute stands in for an unreadable clip. seed_B: int64 random
    seed of each clip.
    bad: the unreadable videos that this batch met (on this rank), each named once per epoch.
    paths: the file that each clip was read from ("" for a blank clip).
    num_substitutes: how many entries of valid_B are false. clip_seeds: the values of seed_B. Both
    are on the host.
    """

    frames_BTHWC: torch.Tensor
    label_B: torch.Tensor
    sample_B: torch.Tensor
    valid_B: torch.Tensor
    seed_B: torch.Tensor
    bad: tuple[BadClip, ...] = ()
    paths: tuple[str, ...] = ()
    num_substitutes: int = 0
    clip_seeds: tuple[int, ...] = ()

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> ClipBatch:
        """The batch with its tensors on that device, as Lightning and Accelerate ask for it."""
        tensors = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("frames_BTHWC", "label_B", "sample_B", "valid_B", "seed_B")
        }
        return replace(self, **tensors)
