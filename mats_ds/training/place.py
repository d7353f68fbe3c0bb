"""Where a test or an extraction runs: one process by itself, or the ranks that a launcher has started; no engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mats_ds.training.engine import Place, start_distributed
from mats_ds.training.launcher_watch import end_with_launchers
from mats_ds.training.launchers import adopt_launcher
from mats_ds.training.stops import RanksLost, TrainingStopped

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def find_place(device: str | None = None) -> Place:
    """Join the ranks of the launcher, or stand alone on `device` (None: the GPU if there is one, else the CPU).

    DeepSpeed is only loaded where there is more than one rank. A process that a launcher has started ends soon after it. Raises
    ValueError for a device that does not exist, or a single GPU for several ranks.
    """
    adopt_launcher()
    end_with_launchers()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        elif device not in (None, "cuda"):
            raise ValueError(f"--device {device} with {os.environ['WORLD_SIZE']} ranks: each takes its own, write cuda or cpu")
        return start_distributed()
    return Place(0, 0, 1, 1, find_device(device))


def find_device(name: str | None) -> torch.device:
    """The device of that name, with its number. Raises ValueError when it does not exist."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = name or ("cuda" if num_gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device {name!r}: write cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda":
        if (device.index or 0) >= num_gpus:
            raise ValueError(f"there is no device {name!r}: torch sees {num_gpus} GPU(s)")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise ValueError(f"device {name!r} is not supported: write cpu, cuda or cuda:NUMBER")
    return device


def find_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """The type to compute in: bf16 or fp32 as asked for; None: bf16 on a GPU, fp32 on a CPU."""
    return DTYPES[precision or ("bf16" if device.type == "cuda" else "fp32")]


def gather_on_first(value: Any, place: Place) -> list[Any] | None:
    """The values of all ranks in their order, on rank 0; None on the others. They travel by pickle."""
    if place.world_size == 1:
        return [value]
    values = [None] * place.world_size if place.rank == 0 else None
    _meet(dist.gather_object, value, values)
    return values


def gather_on_all(value: Any, place: Place) -> list[Any]:
    """The values of all ranks in their order, on every rank. They travel by pickle."""
    if place.world_size == 1:
        return [value]
    values = [None] * place.world_size
    _meet(dist.all_gather_object, values, value)
    return values


@dataclass(frozen=True)
class Problem:
    """What kept a rank from ending its work. `is_input`: input or arguments of the user's, not a fault of the machine."""

    text: str
    is_input: bool


def do_on_first(work: Callable[[], Any], place: Place, *, advice: str) -> Any:
    """What `work` returns on rank 0, which alone does it; None on the others. Where it fails, all ranks end alike.

    Raises ValueError on every rank where it raises one on rank 0, and TrainingStopped with the advice for an OSError (no room).
    """
    return do_on_all(work if place.rank == 0 else (lambda: None), place, advice=advice)


def do_on_all(work: Callable[[], Any], place: Place, *, advice: str) -> Any:
    """What `work` returns on this rank. Every rank does its work to the end; then, where one has failed, all end alike.

    Raises as `do_on_first` does, with the problem of the first rank that has one.
    """
    problem = unforeseen = value = None
    try:
        value = work()
    except ValueError as error:
        problem = Problem(str(error), is_input=True)
    except OSError as error:
        problem = Problem(f"rank {place.rank}: {error}; {advice}", is_input=False)
    except Exception as error:
        unforeseen = error
        problem = Problem(f"rank {place.rank}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", is_input=False)
    problems = [found for found in gather_on_all(problem, place) if found is not None]
    if unforeseen is not None:
        raise unforeseen
    if problems:
        raise ValueError(problems[0].text) if problems[0].is_input else TrainingStopped(problems[0].text)
    return value


def _meet(collective: Callable[..., None], *arguments: Any) -> None:
    """Call it. Raises RanksLost where another rank has died or does not answer."""
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise RanksLost(f"another rank has ended: {str(error).partition(chr(10))[0]}") from None
