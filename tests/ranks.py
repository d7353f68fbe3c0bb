"""Ranks for tests: processes forked from a clean server that has imported torch and DeepSpeed once.

Importing them takes eight seconds a process. A plain fork of pytest itself would be as quick, but
inherits the threads' locks of whatever the tests before have started (OpenMP, DALI, libav); the
fork server has started nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

RANK_TIMEOUT_SECONDS = 240
# The last ones are what deepspeed.initialize imports when it is first called, and what the modules
# of the tests import.
PRELOADED = [
    "torch", "deepspeed", "timm", "av", "mats_ds.pretrain", "mats_ds.finetune", "mats_ds.extract",
    "deepspeed.module_inject", "torch._inductor.compile_fx", "tests.rank_preload", "pytest",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _be_rank(rank: int, world_size: int, port: int, function: Callable, arguments: tuple, pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
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
        # the launcher would end a rank as abruptly; waiting for gloo's threads at exit takes
        # seconds
        os._exit(0)


def run_ranks(
    function: Callable,
    world_size: int,
    *arguments: Any,
    expect_errors: bool | None = False,
    timeout_seconds: float = RANK_TIMEOUT_SECONDS,
) -> list[Any]:
    """What `function(*arguments)` returns on each of `world_size` gloo ranks; with `expect_errors`,
    the errors' texts instead, and with None whatever came of each, a word for those that died.

    `function` and its arguments travel by pickle: a function of a test module and plain values.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    ranks = []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_be_rank, args=(rank, world_size, port, function, arguments, sender))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    answers = []
    for rank, (_, receiver) in enumerate(ranks):
        if receiver.poll(timeout_seconds):
            try:
                answers.append((rank, *receiver.recv()))
            except EOFError:
                answers.append((rank, "died", "the process died without a word"))
        else:
            answers.append((rank, "hung", f"no answer within {timeout_seconds} s"))
    for process, _ in ranks:
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
    if expect_errors is None:
        return [value for _, _, value in answers]
    wanted = "raised" if expect_errors else "returned"
    problems = [f"rank {rank} {kind}: {value}" for rank, kind, value in answers if kind != wanted]
    assert not problems, "\n".join(problems)
    return [value for _, _, value in answers]
