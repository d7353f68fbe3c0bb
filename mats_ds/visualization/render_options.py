"""What `mats visualize` is asked to draw, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RenderOptions:
    """Videos, one after the other, and what to draw of each. None: as the weights, the recipe or
    the video have it.

    weights: the path that they were read from. selection: changes of strategy, keep_ratio,
    visible_ratio and frame_candidates. panels: which of PANELS, None for all.
    """

    videos: Sequence[str]
    out: str
    weights: str | None = None
    recipe: str | None = None
    start_seconds: float | None = None
    num_clips: int = 1
    stride: int | None = None
    selection: Mapping[str, Any] = field(default_factory=dict)
    frames_per_second: float | None = None
    seed: int = 0
    device: str | None = None
    panels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.frames_per_second is not None and self.frames_per_second <= 0:
            raise ValueError(f"--fps is above 0, got {self.frames_per_second:g}")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"--stride is at least 1, got {self.stride}")
        if self.num_clips < 1:
            raise ValueError(f"--clips is at least 1, got {self.num_clips}")
