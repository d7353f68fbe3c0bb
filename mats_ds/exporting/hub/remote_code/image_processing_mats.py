"""Decoded frames -> pixel_values [B, T, 3, H, W], as mats_ds tests a model: one centre clip, one
centre crop, scaled by torch's antialiased bilinear filter on 8-bit pixels, ImageNet's
normalisation.

Written by `mats convert --to hub`; needs torch, numpy and transformers. Serves AutoImageProcessor
and AutoVideoProcessor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.video_utils import load_video

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MatsImageProcessor(BaseImageProcessor):
    """num_frames: frames of a clip. span: the video frames that they are spread over, where a video
    of more frames is given; span_seconds: the same in seconds, which needs `fps`. sampling: "dense"
    or "uniform" (over all of the video). crop_size: {"height", "width"} of the result.

    What else preprocessor_config.json holds is for VideoMAEImageProcessor. Raises ValueError where
    it asks for another treatment of the pixels than the model was trained with.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        num_frames: int = 16,
        span: int = 64,
        span_seconds: float | None = None,
        sampling: str = "dense",
        crop_size: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not kwargs.get(name, True):
                raise ValueError(f"{name}=False: this processor always does it, as the model was trained; leave it out")
        super().__init__(**kwargs)
        self.num_frames, self.span, self.span_seconds, self.sampling = num_frames, span, span_seconds, sampling
        self.crop_size = crop_size or {"height": 224, "width": 224}

    def __call__(self, images: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images if videos is None else videos, **kwargs)

    def preprocess(
        self,
        images: Any = None,
        videos: Any = None,
        fps: float | None = None,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> BatchFeature:
        """pixel_values float32 [B, num_frames, 3, height, width].

        images, videos: one clip or a list of clips; a clip is uint8 RGB frames [T, H, W, 3] or
        [T, 3, H, W] (an array, a tensor, or a list of frames: arrays or PIL images), or the path or
        address of a video, which PyAV decodes. `num_frames` frames are taken as they are; of
        another number the clip in the middle is taken, as mats_ds takes it of a video. fps: frames
        a second, for a span in seconds. Raises ValueError for what is no 8-bit RGB clip, and for
        options of other processors that this one would not follow.
        """
        for name, value in options.items():  # a pipeline gives num_frames, of the config
            if name != "num_frames" and value is not None and value != getattr(self, name, value):
                raise ValueError(f"{name}={value!r}: this processor has {name}={getattr(self, name)!r}, as the model was trained")
        clips = [self.process_clip(clip, fps=fps) for clip in split_clips(images if videos is None else videos)]
        if not clips:
            raise ValueError("expected a clip or a list of clips, got an empty list")
        return BatchFeature({"pixel_values": torch.stack(clips)}, tensor_type=return_tensors)

    def process_clip(self, clip: Any, *, fps: float | None = None) -> torch.Tensor:
        """[num_frames, 3, height, width] of one clip."""
        frames_THWC = read_clip(self.decode(os.fspath(clip)) if isinstance(clip, (str, os.PathLike)) else clip)
        if len(frames_THWC) != self.num_frames:
            frames_THWC = frames_THWC[self.choose_frames(len(frames_THWC), fps)]
        frames_TCHW = scale(crop_square(frames_THWC), (self.crop_size["height"], self.crop_size["width"]))
        mean, std = (torch.tensor(values, device=frames_TCHW.device).view(3, 1, 1) for values in (MEAN, STD))
        return (frames_TCHW / 255.0 - mean) / std

    def decode(self, path: str) -> np.ndarray:
        """uint8 [num_frames, H, W, 3] of a video file."""
        chosen: list[int] = []
        if "://" not in path and not os.path.isfile(path):
            raise ValueError(f"there is no video {path}")

        def choose(metadata: Any, **_: Any) -> list[int]:
            if not metadata.total_num_frames:
                raise ValueError(f"{path} does not say how many frames it has: decode it, and give the frames")
            chosen.extend(self.choose_frames(metadata.total_num_frames, metadata.fps))
            return sorted(set(chosen))

        frames_THWC, _ = load_video(path, sample_indices_fn=choose)
        found = sorted(set(chosen))
        # a file may have fewer frames than its header says: the last one stands for the rest
        return frames_THWC[[min(found.index(number), len(frames_THWC) - 1) for number in chosen]]

    def choose_frames(self, num_given: int, fps: float | None) -> list[int]:
        """Frame numbers of the one clip of a test: spread over `span` frames in the middle of the
        video, or over `span_seconds` of it, or, uniform, the middle frame of each of `num_frames`
        equal parts."""
        if self.sampling == "uniform":
            return [(2 * part + 1) * num_given // (2 * self.num_frames) for part in range(self.num_frames)]
        if self.span_seconds is None:
            span = min(self.span, num_given)
            start = min((num_given - span + 1) // 2, num_given - span)
            return [start + part * span // self.num_frames for part in range(self.num_frames)]
        if fps is None:
            raise ValueError(
                f"{num_given} frames of a video, and a clip of {self.num_frames} frames lasts {self.span_seconds:g} s: "
                f"give fps=, or the {self.num_frames} frames"
            )
        seconds = min(self.span_seconds, num_given / fps)
        start_seconds = (num_given / fps - seconds) / 2
        moments = [start_seconds + part * seconds / self.num_frames for part in range(self.num_frames)]
        # a moment that rounding puts just before a frame belongs to that frame
        return [min(int((moment + 1e-6) * fps), num_given - 1) for moment in moments]


def split_clips(given: Any) -> list[Any]:
    """One clip a list item."""
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return list(given) if given.ndim == 5 else [given]
    if isinstance(given, (str, os.PathLike)):
        return [given]
    if not isinstance(given, Sequence):
        raise ValueError(f"expected a clip or a list of clips, got {type(given).__name__}")
    first = given[0] if len(given) else None
    is_frame = first is not None and not isinstance(first, (str, list, tuple)) and np.ndim(first) in (0, 2, 3)
    return [given] if is_frame else list(given)


def read_clip(clip: Any) -> torch.Tensor:
    """uint8 [T, H, W, 3]."""
    if not isinstance(clip, (np.ndarray, torch.Tensor)):
        frames = [frame.cpu().numpy() if isinstance(frame, torch.Tensor) else np.array(frame) for frame in clip]
        if len({frame.shape for frame in frames}) != 1:
            raise ValueError(f"the frames of a clip have one size, got {sorted({frame.shape for frame in frames})}")
        clip = np.stack(frames)
    if isinstance(clip, np.ndarray):
        if clip.dtype != np.uint8:
            raise ValueError(f"a clip is uint8 RGB frames [T, H, W, 3], got {list(clip.shape)} {clip.dtype}")
        clip = torch.from_numpy(np.array(clip))  # a copy: strides may be negative (BGR to RGB), memory read-only
    if clip.ndim == 4 and clip.shape[-1] != 3 and clip.shape[1] == 3:
        clip = clip.movedim(1, -1)
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != torch.uint8 or len(clip) == 0:
        raise ValueError(f"a clip is uint8 RGB frames [T, H, W, 3], got {list(clip.shape)} {clip.dtype}")
    return clip


def crop_square(frames_THWC: torch.Tensor) -> torch.Tensor:
    """The square in the middle, as large as the shorter side."""
    height, width = frames_THWC.shape[1:3]
    short = min(height, width)
    top, left = round((height - short) / 2), round((width - short) / 2)
    return frames_THWC[:, top : top + short, left : left + short]


def scale(frames_THWC: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """uint8 [T, 3, height, width]."""
    frames_TCHW = frames_THWC.contiguous().permute(0, 3, 1, 2)
    if tuple(frames_TCHW.shape[2:]) == size:
        return frames_TCHW
    return F.interpolate(frames_TCHW, size=size, mode="bilinear", antialias=True)
