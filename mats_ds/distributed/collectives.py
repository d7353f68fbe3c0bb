"""Gathers and broadcasts of Python values between ranks, with errors that all ranks raise alike.

Values travel by pickle. All ranks call each function; one that meets a dead rank raises RanksLost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mats_ds.distributed.exits import RanksLost, TrainingStopped

T = TypeVar("T")


class Ranks(Protocol):
    """A RankInfo or a RunInfo: this rank, and how many there are."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...


def gather_on_first(value: T, ranks: Ranks) -> list[T] | None:
    """The values of all ranks in their order, on rank 0; None on the others."""
    if ranks.world_size == 1:
        return [value]
    values = [None] * ranks.world_size if ranks.rank == 0 else None
    _call("gather_object", value, values)
    return values


def gather_on_all(value: T, ranks: Ranks) -> list[T]:
    """The values of all ranks in their order, on every rank."""
    if ranks.world_size == 1:
        return [value]
    values = [None] * ranks.world_size
    _call("all_gather_object", values, value)
    return values


def ask_first(work: Callable[[], T], ranks: Ranks) -> T:
    """The value of `work` on rank 0, which alone does it, given to every rank; or the ValueError,
    OSError or TrainingStopped that it raises there.
    """
    answer: list[Any] = [None, None]
    if ranks.rank == 0:
        try:
            answer = [work(), None]
        except (ValueError, OSError, TrainingStopped) as error:
            answer = [None, error]
    if ranks.world_size > 1:
        _call("broadcast_object_list", answer, 0)
    result, error = answer
    if error is not None:
        raise error
    return result


@dataclass(frozen=True)
class Problem:
    """The fault that kept a rank from ending its work. `is_input`: input or arguments of the
    user's, not a fault of the machine."""

    text: str
    is_input: bool


def do_on_first(work: Callable[[], Any], ranks: Ranks, *, advice: str) -> Any:
    """The value of `work` on rank 0, which alone does it; None on the others. Where it fails, all
    ranks end alike.

    Raises ValueError on every rank where it raises one on rank 0, and TrainingStopped with the
    advice for an OSError (no room).
    """
    return do_on_all(work if ranks.rank == 0 else (lambda: None), ranks, advice=advice)


def do_on_all(work: Callable[[], Any], ranks: Ranks, *, advice: str) -> Any:
    """The value of `work` on this rank. Every rank does its work to the end; then, where one has
    failed, all end alike.

    Raises as `do_on_first` does, with the problem of the first rank that has one.
    """
    problem = unforeseen = value = None
    try:
        value = work()
    except ValueError as error:
        problem = Problem(str(error), is_input=True)
    except OSError as error:
        problem = Problem(f"rank {ranks.rank}: {error}; {advice}", is_input=False)
    except Exception as error:
        unforeseen = error
        problem = Problem(f"rank {ranks.rank}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", is_input=False)
    problems = [problem for problem in gather_on_all(problem, ranks) if problem is not None]
    if unforeseen is not None:
        raise unforeseen
    if problems:
        raise ValueError(problems[0].text) if problems[0].is_input else TrainingStopped(problems[0].text)
    return value


def _call(collective: str, *arguments: Any) -> None:
    """Call that function of torch.distributed. Raises RanksLost where another rank has died or does
    not answer."""
    import torch.distributed as dist  # a process alone needs none

    try:
        getattr(dist, collective)(*arguments)
    except RuntimeError as error:
        raise RanksLost(f"another rank has ended: {str(error).partition(chr(10))[0]}") from error
