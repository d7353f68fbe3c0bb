"""Is the run folder one and the same for all ranks? Seen by trying it: rank 0 writes a file, every rank looks for it.

A checkpoint consists of a part of every rank and is sealed, found and pruned as one: it needs one folder.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

APPEAR_SECONDS = 5.0  # how long a file of another host may take to appear on a network filesystem
POLL_SECONDS = 0.1


def check_shared_folder(folder: Path, *, appear_seconds: float = APPEAR_SECONDS) -> None:
    """Called by every rank, with a folder that exists for rank 0.

    Raises ValueError on all ranks where rank 0 cannot write into it, or where a rank does not see what rank 0 wrote.
    """
    name, problem = f".seen-by-all-{secrets.token_hex(8)}", None
    first = dist.get_rank() == 0
    if first:
        try:
            (folder / name).touch()
        except OSError as error:
            problem = f"cannot write into the run folder {folder}: {error.strerror}"
    told: list[Any] = [name, problem]
    dist.broadcast_object_list(told, src=0)
    name, problem = told
    if problem is not None:
        raise ValueError(problem)
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, (socket.gethostname(), _appears(folder / name, appear_seconds)))
    if first:
        (folder / name).unlink(missing_ok=True)
    blind = list(dict.fromkeys(host for host, sees in answers if not sees))
    if blind:
        raise ValueError(
            f"the run folder {os.path.abspath(folder)} is not the same everywhere: {', '.join(blind)} does not see what "
            f"{answers[0][0]} writes there. Checkpoints need the parts of all ranks in one place: give an --out on a filesystem "
            "that all hosts share (videos may lie on disks of their own), or train on one host"
        )


def _appears(file: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
