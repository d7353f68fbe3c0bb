"""Values of all ranks in their order; what one rank cannot do ends all of them alike."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from mats_ds.distributed.collectives import ask_first, do_on_all, do_on_first, gather_on_all, gather_on_first
from mats_ds.distributed.exits import RanksLost, TrainingStopped
from mats_ds.distributed.ranks import RankInfo, join_ranks

ALONE = RankInfo(0, 0, 1, 1, torch.device("cpu"))
FAULTS = {
    "input": ValueError("a wrong name"),
    "no room": OSError(28, "No space left on device", "x"),
    "own": KeyError("a slip"),
}


def fail(name):
    raise FAULTS[name]


def test_one_rank_alone():
    assert do_on_first(lambda: 3, ALONE, advice="") == do_on_all(lambda: 3, ALONE, advice="") == 3
    with pytest.raises(ValueError, match="a wrong name"):
        do_on_all(lambda: fail("input"), ALONE, advice="")
    with pytest.raises(TrainingStopped, match="rank 0: .*No space left.*'x'; make room"):
        do_on_first(lambda: fail("no room"), ALONE, advice="make room")
    with pytest.raises(KeyError):
        do_on_all(lambda: fail("own"), ALONE, advice="")


def gather(do, value_of_rank):
    info = join_ranks("cpu")
    return do(value_of_rank[info.rank], info)


@pytest.mark.slow
def test_values_come_in_the_order_of_ranks(ranks):
    assert ranks(gather, 2, gather_on_all, ["a", "b"]) == [["a", "b"]] * 2
    assert ranks(gather, 2, gather_on_first, ["a", "b"]) == [["a", "b"], None]


def ask(name):
    info = join_ranks("cpu")
    try:
        return ask_first(lambda: fail(name) if name else info.rank, info)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
def test_all_ranks_get_the_answer_of_the_first_or_its_error(ranks):
    assert ranks(ask, 2, None) == [0, 0]
    assert ranks(ask, 2, "input") == ["ValueError: a wrong name"] * 2
    assert ranks(ask, 2, "no room") == ["OSError: [Errno 28] No space left on device: 'x'"] * 2


def fail_on(rank, name, do):
    info = join_ranks("cpu")
    try:
        return do(lambda: fail(name) if info.rank == rank else info.rank, info, advice="make room")
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
def test_all_ranks_end_alike(ranks):
    assert ranks(fail_on, 2, 7, "input", do_on_all) == [0, 1]
    assert ranks(fail_on, 2, 7, "input", do_on_first) == [0, None]
    assert ranks(fail_on, 2, 0, "input", do_on_first) == ["ValueError: a wrong name"] * 2
    told = "TrainingStopped: rank 1: [Errno 28] No space left on device: 'x'; make room"
    assert ranks(fail_on, 2, 1, "no room", do_on_all) == [told] * 2
    assert ranks(fail_on, 2, 1, "own", do_on_all) == ["TrainingStopped: rank 1: KeyError: 'a slip'", "KeyError: 'a slip'"]


def die_on_one():
    info = join_ranks("cpu")
    try:
        do_on_all(lambda: os.kill(os.getpid(), signal.SIGKILL) if info.rank == 1 else None, info, advice="")
    except RanksLost as error:
        return str(error)


@pytest.mark.slow
def test_a_rank_that_dies_is_no_traceback_of_the_others(ranks):
    answers = ranks(die_on_one, 2, expect_errors=None)
    assert "another rank has ended" in answers[0] and "died without a word" in answers[1]
