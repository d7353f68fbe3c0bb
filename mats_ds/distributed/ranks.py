"""The ranks of a program: one process alone, or the process group that a launcher describes."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from mats_ds.core.format import format_count
from mats_ds.core.text import log_to_stderr
from mats_ds.distributed.exits import RanksLost
from mats_ds.distributed.hosts import free_port
from mats_ds.distributed.launcher_watch import end_with_launchers
from mats_ds.distributed.scheduler_env import set_rank_environment

if TYPE_CHECKING:  # imported where it is used: what a program checks before its first rank joins needs none
    import torch

logger = logging.getLogger("mats_ds")

# how long the first ranks wait for the last at the start: a machine whose command failed never
# comes
JOIN_SECONDS = 600.0


@dataclass(frozen=True)
class RankInfo:
    """This process among all ranks, and its device."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device


def begin_rank() -> None:
    """Set RANK and its like, whatever has started this process; rank 0 logs what it does, the
    others only errors.

    Raises ValueError where the launcher does not say enough (see `set_rank_environment`).
    """
    set_rank_environment()
    is_first = os.environ.get("RANK", "0") == "0"
    log_to_stderr(logging.WARNING if is_first else logging.ERROR)
    if is_first:
        logger.setLevel(logging.INFO)


def join_ranks(device: str | None = None) -> RankInfo:
    """Join the ranks of the launcher, or stand alone on `device` (None: the GPU if there is one,
    else the CPU).

    DeepSpeed is only loaded where there is more than one rank. A process that a launcher has
    started ends soon after it. Raises ValueError for a device that does not exist, or a single GPU
    for several ranks.
    """
    begin_rank()
    end_with_launchers()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        elif device not in (None, "cuda"):
            raise ValueError(
                f"--device {device} with {os.environ['WORLD_SIZE']} ranks: every rank takes a GPU of its own, write cuda or cpu"
            )
        return start_distributed()
    return RankInfo(0, 0, 1, 1, find_device(device))


def find_device(name: str | None) -> torch.device:
    """The device of that name, with its number. Raises ValueError when it does not exist."""
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = name or ("cuda" if num_gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"there is no device {name!r}: write cpu, cuda or cuda:NUMBER") from None
    if device.type == "cuda":
        if (device.index or 0) >= num_gpus:
            raise ValueError(
                f"there is no device {name!r}: torch sees {format_count(num_gpus, 'GPU')}; write cpu"
                + (f", or cuda:0 to cuda:{num_gpus - 1}" if num_gpus else "")
            )
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise ValueError(f"device {name!r} is not supported: write cpu, cuda or cuda:NUMBER")
    return device


def find_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """The type to compute in. precision: bf16, fp32, or None for bf16 on a GPU and fp32 on a
    CPU."""
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision or ("bf16" if device.type == "cuda" else "fp32")]


def start_distributed(*, timeout_seconds: float = 1800.0) -> RankInfo:
    """Join the process group that the launcher (deepspeed, torchrun, mpirun, srun) describes;
    without one, be the only rank.

    A rank that waits longer than `timeout_seconds` for the others raises RuntimeError. Raises
    RanksLost where not all join within JOIN_SECONDS.
    """
    set_rank_environment()
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": os.environ.get("LOCAL_SIZE", os.environ.get("WORLD_SIZE", "1")),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("DS_LOG_LEVEL", "WARNING").upper())
    import deepspeed
    import torch
    import torch.distributed as dist

    # DeepSpeed would compile a shared-memory collective with g++ at the first start on a CPU, for
    # minutes; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{format_count(local_world_size, 'rank')} on this machine but only "
                f"{format_count(torch.cuda.device_count(), 'GPU')}: lower --num_gpus"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    try:
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=JOIN_SECONDS))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RanksLost(
            f"not all {os.environ['WORLD_SIZE']} ranks have come to {where} within {JOIN_SECONDS:.0f} s "
            f"({str(error).splitlines()[0]}): see what the others say, and whether their machines reach that address"
        ) from None
    # ZeRO's collectives run in a copy of the group of all ranks, which would wait as long as torch
    # does by default: 30 minutes.
    # torch before 2.15
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in (None, deepspeed.utils.groups._get_data_parallel_group()):
        set_timeout(timedelta(seconds=timeout_seconds), group)
    return RankInfo(dist.get_rank(), local_rank, dist.get_world_size(), local_world_size, device)
