"""Ranks as forked processes: importing torch and DeepSpeed once serves all of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

RANK_TIMEOUT_SECONDS = 240


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _be_rank(rank: int, world_size: int, port: int, function: Callable, arguments: tuple, pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)  # a forked process cannot use its parent's OpenMP threads
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    try:
        pipe.send(("returned", function(*arguments)))
    except BaseException as error:
        pipe.send(("raised", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    finally:
        pipe.close()
        os._exit(0)  # no atexit work of the parent's in a forked child


def run_ranks(function: Callable, world_size: int, *arguments: Any, expect_errors: bool = False) -> list[Any]:
    """What `function(*arguments)` returns on each of `world_size` gloo ranks; with `expect_errors`, the errors' texts instead."""
    import deepspeed  # noqa: F401  # before the fork, once
    import torch._dynamo  # noqa: F401

    context = multiprocessing.get_context("fork")
    port = _free_port()
    ranks = []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_be_rank, args=(rank, world_size, port, function, arguments, sender))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    results, problems = [], []
    for rank, (_, receiver) in enumerate(ranks):
        if receiver.poll(RANK_TIMEOUT_SECONDS):
            try:
                kind, value = receiver.recv()
            except EOFError:
                kind, value = "raised", "the process died without a word"
        else:
            kind, value = "raised", f"no answer within {RANK_TIMEOUT_SECONDS} s"
        (results if (kind == "raised") == expect_errors else problems).append(value)
        if kind == "raised" and not expect_errors:
            problems[-1] = f"rank {rank}: {value}"
    for process, _ in ranks:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
    assert not problems, "\n".join(str(problem) for problem in problems)
    return results


@pytest.fixture(scope="session")
def ranks() -> Callable[..., list[Any]]:
    """`ranks(function, world_size, *arguments)`: run a function on that many gloo ranks."""
    pytest.importorskip("deepspeed")
    return run_ranks
