"""The division of a global batch among ranks: recipe, DeepSpeed JSON and number of ranks ->
BatchPlan. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mats_ds.core.format import format_count, format_figure
from mats_ds.core.limits import show

LINEAR_RULE_BATCH = 256  # learning rates are stated per 256 videos (METHOD section 5)
MICRO_BATCH_KEY = "train_micro_batch_size_per_gpu"
ACCUMULATION_KEY = "gradient_accumulation_steps"
MOST_CLIPS = 1 << 24  # of a step, as in the recipe; more is a slip of the keyboard


@dataclass(frozen=True)
class BatchPlan:
    """`global_batch` = micro_batch * accumulation * world_size clips a step, `repeats` of each of
    its videos.

    `note` says how it came about.
    """

    micro_batch: int
    accumulation: int
    world_size: int
    global_batch: int
    note: str
    repeats: int = 1

    @property
    def num_videos(self) -> int:
        """Of a step. The published batch sizes count them: several clips of a video are one of it
        (repeated augmentation)."""
        return self.global_batch // self.repeats

    @property
    def learning_rate_scale(self) -> float:
        """The linear rule: factor from a learning rate per 256 videos to that of this batch."""
        return self.num_videos / LINEAR_RULE_BATCH


@dataclass(frozen=True)
class Room:
    """What a rank can take at once: `fits(micro_batch, accumulation)`, and the `limit` in words
    that follow a number of clips, as in "fit on an NVIDIA L4"."""

    fits: Callable[[int, int], bool]
    limit: str


def plan_batch(
    ds_config: Mapping[str, Any], *, recipe_batch: int, world_size: int, repeats: int = 1, room: Room | None = None
) -> BatchPlan:
    """Accumulate until the recipe's global batch is reached; where that cannot be, let the learning
    rate follow the batch.

    recipe_batch: clips, as the micro-batch, which is the JSON's; `repeats` of them show one video.
    Where the JSON leaves `gradient_accumulation_steps` out it is derived; where it sets it, the
    JSON wins. Where it leaves the micro-batch out, that is the largest that `room` takes of those
    that divide a rank's part of the batch.
    Raises ValueError when the JSON has no usable micro-batch (or none, without `room`), one that is
    no multiple of `repeats`, or states a conflicting `train_batch_size`.
    """
    micro, chosen = _positive_integer(ds_config, MICRO_BATCH_KEY), ""
    if micro is None and room is None:
        raise ValueError(f'the DeepSpeed JSON must set "{MICRO_BATCH_KEY}", the number of clips that a GPU takes at once')
    if micro is None:
        part = _part_of_rank(recipe_batch, world_size, repeats)
        micro, chosen = _choose_micro_batch(part, repeats, room, accumulation=_positive_integer(ds_config, ACCUMULATION_KEY))
    if micro % repeats:
        raise ValueError(
            f'a micro-batch of {format_count(micro, "clip")} ("{MICRO_BATCH_KEY}") is no multiple of '
            f"data.repeats={repeats}, and the clips of a "
            f"video stay together: make it {max(1, round(micro / repeats)) * repeats}, or change data.repeats"
        )
    stated = _positive_integer(ds_config, ACCUMULATION_KEY)
    at_once = micro * world_size
    accumulation = stated or max(1, round(recipe_batch / at_once))
    actual = at_once * accumulation
    total = _positive_integer(ds_config, "train_batch_size")
    if total is not None and total != actual:
        raise ValueError(
            f'the DeepSpeed JSON says "train_batch_size": {total}, but {format_count(world_size, "rank")} x '
            f"micro-batch {micro} x accumulation "
            f'{accumulation} are {actual}: leave "train_batch_size" out'
        )
    ranks = format_count(world_size, "rank")
    sum_text = f"{ranks} x micro-batch {micro} x accumulation {accumulation} = {format_count(actual, 'clip')} a step"
    if repeats > 1:
        videos = format_count(actual // repeats, "video")
        sum_text += f", {repeats} of each of {videos} (the learning rate counts videos, as do the epochs)"
    if actual == recipe_batch:
        how = "gradient accumulation keeps the recipe's global batch" if accumulation > 1 else "the recipe's global batch"
        note = f"{sum_text}: {how}; learning rate as in the recipe"
    else:
        why = f'the JSON sets "{ACCUMULATION_KEY}"' if stated else f"{recipe_batch:,} is no multiple of {at_once:,}"
        note = (
            f"{sum_text} instead of the recipe's {recipe_batch:,} ({why}): the learning rate follows the linear rule, "
            f"x {format_figure(actual / recipe_batch, 3)}"
        )
    return BatchPlan(micro, accumulation, world_size, actual, note + chosen, repeats)


def _part_of_rank(recipe_batch: int, world_size: int, repeats: int) -> int:
    """Clips of a step for one rank: the nearest whole number of videos."""
    return max(1, round(recipe_batch / (world_size * repeats))) * repeats


def _choose_micro_batch(part: int, repeats: int, room: Room, *, accumulation: int | None) -> tuple[int, str]:
    """The largest micro-batch that divides `part`, the clips of a rank, and the reason for it; the
    smallest one where there is room for none, which may still be tried."""
    clips, silent = format_count(part, "clip"), f'the JSON leaves "{MICRO_BATCH_KEY}" out'
    if accumulation is not None:
        if part % (accumulation * repeats):
            raise ValueError(
                f'the DeepSpeed JSON sets "{ACCUMULATION_KEY}" to {accumulation} and leaves "{MICRO_BATCH_KEY}" out, but the '
                f"{clips} of a rank cannot be divided into {accumulation} equal parts of whole videos: state the micro-batch, or "
                f'leave "{ACCUMULATION_KEY}" out, too'
            )
        return part // accumulation, f"; {silent}: {part // accumulation} is a rank's {clips} by its accumulation"
    divisors = [micro for micro in range(part, 0, -1) if part % micro == 0 and micro % repeats == 0]
    micro = next((micro for micro in divisors if room.fits(micro, part // micro)), None)
    if micro is None:
        return divisors[-1], f"; {silent}, and not even {divisors[-1]} {room.limit}"
    most = "all of them at once" if micro == part else "the largest that divides them"
    return micro, f"; {silent}: of a rank's {clips}, {micro} {room.limit}, {most}"


def _positive_integer(ds_config: Mapping[str, Any], key: str) -> int | None:
    value = ds_config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_CLIPS:
        raise ValueError(f'"{key}" in the DeepSpeed JSON must be an integer from 1 to {MOST_CLIPS:,}, got {show(value)}')
    return value
