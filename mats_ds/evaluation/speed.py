"""Cost of a forward pass: multiply-adds, and seconds measured with nothing else running."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from mats_ds.core.format import format_count
from mats_ds.models.classifier import VideoClassifier
from mats_ds.planning.flops import FLOPS_PER_MAC, step_flops

NUM_ROUNDS = 5
LIMIT_SECONDS = 60.0


def time_forwards(forwards: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Median seconds of each of several calls.

    They take turns, so that a slow moment of the machine hits all of them; the first turn warms up
    and is not counted. There are NUM_ROUNDS turns, fewer (at least one) if LIMIT_SECONDS have
    passed.
    """
    seconds: list[list[float]] = [[] for _ in forwards]
    began = time.monotonic()
    for turn in range(NUM_ROUNDS + 1):
        if turn > 1 and time.monotonic() - began > LIMIT_SECONDS:
            break
        for forward, durations in zip(forwards, seconds, strict=True):
            wait_for(device)
            start = time.perf_counter()
            forward()
            wait_for(device)
            if turn:
                durations.append(time.perf_counter() - start)
    return [statistics.median(durations) for durations in seconds]


def describe_speed(device: torch.device, dtype: torch.dtype, *, num_views: int) -> str:
    """The conditions of a speed measurement: batch, type and device."""
    cpu = f"CPU, {format_count(torch.get_num_threads(), 'thread')}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"model alone, {format_count(num_views, 'view')} at a time, {str(dtype).removeprefix('torch.')}, one {name}"


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_macs(forward: Callable[[], object]) -> int:
    """Multiply-adds of the matrix products that a call executes."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() // FLOPS_PER_MAC


def forward_macs(model: VideoClassifier, *, size_name: str | None, device: torch.device) -> tuple[int, str]:
    """Multiply-adds of one clip through a classifier, and the source of the number.

    It is the closed form for published sizes, else PyTorch's count.
    """
    if size_name:
        flops = step_flops(
            size_name,
            model.grid,
            pruning=model.pruning,
            task="finetune",
            candidate_grid=model.candidate_grid,
            num_classes=model.num_classes,
        )
        return flops.forward_macs, "step_flops"
    grid = model.candidate_grid
    frames = torch.zeros(1, grid.num_frames, grid.height, grid.width, 3, dtype=torch.uint8, device=device)
    with torch.no_grad():
        return count_macs(lambda: model(frames)), "counted by PyTorch"
