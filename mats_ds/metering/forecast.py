"""A run before it is started: does it fit the card, and which micro-batch would? Workload, JSON, card -> Forecast.

What torch's allocator will hold is in closed form (plan_memory.py); what lies outside of it is a table of assumptions (cards.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mats_ds.metering.cards import Card, Overheads
from mats_ds.metering.memory_kinds import ACTIVATIONS, CACHE, OUTSIDE
from mats_ds.metering.plan_memory import MemoryPlan, plan_memory
from mats_ds.metering.workload import Workload

MAX_MICRO_BATCH = 4096


@dataclass(frozen=True)
class Feed:
    """What brings the clips: micro-batches that wait, DALI's pipelines, and the size of the videos that they decode.

    The size is that of training copies with a shorter side of 256 (docs/data.md); a chunk of a pipeline is 8 clips.
    """

    prefetch: int = 2
    num_pipelines: int = 2
    height: int = 256
    width: int = 340
    clips_per_chunk: int = 8


@dataclass(frozen=True)
class Forecast:
    """One rank on one card. `bytes_by_kind` is the whole of it, by kind in the order of a table; `limit_bytes` is the card's
    memory less the margin.
    """

    workload: Workload
    card: Card
    world_size: int
    micro_batch: int
    accumulation: int
    memory: MemoryPlan
    bytes_by_kind: dict[str, int]
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_by_kind.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.limit_bytes


def forecast(
    workload: Workload,
    ds_config: Mapping[str, Any],
    *,
    card: Card,
    world_size: int,
    micro_batch: int,
    accumulation: int = 1,
    feed: Feed | None = None,
    overheads: Overheads | None = None,
) -> Forecast:
    """What a rank needs on `card`. Raises ValueError for a JSON that cannot be planned."""
    feed, overheads = feed or Feed(), overheads or Overheads()
    memory = plan_memory(workload, ds_config, world_size=world_size, micro_batch=micro_batch, accumulation=accumulation)
    kinds = dict(memory.bytes_by_kind)
    # Ready micro-batches, and the one that is being put together.
    kinds["waiting_clips"] = (feed.prefetch + 1) * micro_batch * workload.clip_bytes
    kinds[CACHE] = int(overheads.fragments_share * sum(kinds.values()))
    kinds["decoder"] = overheads.decoder_bytes(
        num_pipelines=feed.num_pipelines,
        chunk_frames=min(feed.clips_per_chunk, micro_batch) * workload.candidate_grid.num_frames,
        height=feed.height,
        width=feed.width,
    )
    kinds[OUTSIDE] = overheads.outside(world_size=world_size)
    limit = int((1 - overheads.margin_share) * card.memory_bytes)
    return Forecast(workload, card, world_size, micro_batch, accumulation, memory, kinds, limit)


def largest_micro_batch(workload: Workload, ds_config: Mapping[str, Any], **how: Any) -> int:
    """The most clips a card can take at once, 0 if not even one; `how`: as for `forecast`, without `micro_batch`."""
    if not forecast(workload, ds_config, micro_batch=1, **how).fits:
        return 0
    fits, too_many = 1, MAX_MICRO_BATCH + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if forecast(workload, ds_config, micro_batch=middle, **how).fits:
            fits = middle
        else:
            too_many = middle
    return fits


def as_recorded(kinds: Mapping[str, int]) -> dict[str, int]:
    """The kinds as a report measures them: clips that wait count as activations, the decoder lies outside."""
    recorded = dict(kinds)
    recorded[ACTIVATIONS] += recorded.pop("waiting_clips", 0)
    recorded[OUTSIDE] = recorded.get(OUTSIDE, 0) + recorded.pop("decoder", 0)
    return recorded
