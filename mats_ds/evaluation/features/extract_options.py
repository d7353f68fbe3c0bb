"""What an extraction is asked for: shards of features, or sliding windows. Both are checked before
anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

SUFFIXES = {"safetensors": ".safetensors", "npz": ".npz"}
# of windows and hops: shorter ones have no whole frame, and memory holds a number for each window
SHORTEST_SECONDS, LONGEST_SECONDS = 0.01, 86_400.0


@dataclass(frozen=True)
class ShardOptions:
    """The contents of a shard. `pool`: "mean", "tubelet" or "none". `store`: type. `format`: of
    SUFFIXES.
    """

    pool: str
    store: str
    format: str
    num_videos: int

    def __post_init__(self) -> None:
        if self.num_videos < 1:
            raise ValueError(f"--shard_videos is at least 1, got {self.num_videos}")


@dataclass(frozen=True)
class WindowTimes:
    """Length and distance of windows in seconds."""

    window_seconds: float
    hop_seconds: float

    def __post_init__(self) -> None:
        for name, value in (("--window", self.window_seconds), ("--hop", self.hop_seconds)):
            if not SHORTEST_SECONDS <= value <= LONGEST_SECONDS:
                raise ValueError(f"{name} is from {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:,.0f} seconds, got {value:g}")
