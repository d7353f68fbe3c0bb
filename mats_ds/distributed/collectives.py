"""Gathers and broadcasts of Python values between ranks, with errors that all ranks raise alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from mats_ds.distributed.exits import RanksLost, TrainingStopped
from mats_ds.distributed.ranks import RankInfo


def gather_on_first(value: Any, place: RankInfo) -> list[Any] | None:
    """The values of all ranks in their order, on rank 0; None on the others. They travel by pickle."""
    if place.world_size == 1:
        return [value]
    values = [None] * place.world_size if place.rank == 0 else None
    _meet(dist.gather_object, value, values)
    return values


def gather_on_all(value: Any, place: RankInfo) -> list[Any]:
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


def do_on_first(work: Callable[[], Any], place: RankInfo, *, advice: str) -> Any:
    """What `work` returns on rank 0, which alone does it; None on the others. Where it fails, all ranks end alike.

    Raises ValueError on every rank where it raises one on rank 0, and TrainingStopped with the advice for an OSError (no room).
    """
    return do_on_all(work if place.rank == 0 else (lambda: None), place, advice=advice)


def do_on_all(work: Callable[[], Any], place: RankInfo, *, advice: str) -> Any:
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
