"""The scope of a verdict: the hardware that the run used beside that of the budget, and whether the
run has ended -> one short phrase and sentences that a reader sees beside PASS or FAIL.

A budget names GPUs. A run on a CPU, on fewer GPUs or on other ones may meet every limit of it and
still prove nothing about them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mats_ds.core.format import format_bytes, format_count, shorten
from mats_ds.core.gpus import Gpu, find_gpu, find_model

SAME_MEMORY = 0.05  # relative difference within which two GPUs are of one size
RUNNING, KILLED, STOPPED = "running", "killed", "stopped"  # or core.run_dir.FINISHED


@dataclass(frozen=True)
class Scope:
    """`qualifier` follows the word PASS: "on a CPU", "on 2 of 8 GPUs", "" where the run used the
    hardware of the budget. `caveats`: one sentence for each difference."""

    qualifier: str = ""
    caveats: tuple[str, ...] = ()


def find_scope(
    *, budget_name: str, gpus: int, memory_per_gpu_bytes: int, num_ranks: int, on_gpu: bool, device_name: str,
    device_memory_bytes: int | None,
) -> Scope:  # fmt: skip
    """What a run on `num_ranks` of `device_name` says about a budget of `gpus` GPUs."""
    if not on_gpu:
        caveat = (
            f"no GPU was used, so this run says nothing about the memory, speed or energy of the GPUs of {budget_name}; "
            "host memory and GPU memory are not the same"
        )
        return Scope("on a CPU", (caveat,))
    phrases, caveats = [], []
    other = _find_other(budget_name, memory_per_gpu_bytes, device_name, device_memory_bytes)
    if other:
        phrases.append(f"on {shorten(device_name, 60)}")
        caveats.append(other)
    if num_ranks < gpus:
        phrases.append(f"{'' if phrases else 'on '}{num_ranks} of {format_count(gpus, 'GPU')}")
        caveats.append(
            f"{num_ranks:,} of the {format_count(gpus, 'GPU')} of {budget_name} {'was' if num_ranks == 1 else 'were'} used: "
            f"memory, speed and energy on all {gpus} were not measured"
        )
    return Scope(", ".join(phrases), tuple(caveats))


def _find_other(budget_name: str, memory_per_gpu_bytes: int, device_name: str, device_memory_bytes: int | None) -> str:
    """A sentence where the GPU is of another model or size than the budget's; "" where it is the
    same, or nothing is known of it."""
    meant = _gpu_of_budget(budget_name)
    size = f" ({format_bytes(device_memory_bytes)})" if device_memory_bytes else ""
    is_other_model = meant is not None and bool(device_name) and find_model(device_name) is not find_model(meant.device_name)
    difference = abs((device_memory_bytes or memory_per_gpu_bytes) / memory_per_gpu_bytes - 1)
    if not is_other_model and difference <= SAME_MEMORY:
        return ""
    wanted = f"{meant.device_name}, {format_bytes(memory_per_gpu_bytes)}" if meant else format_bytes(memory_per_gpu_bytes)
    limit = "its speed and energy say nothing of that one"
    return f"measured on {shorten(device_name)}{size}, not on a GPU of {budget_name} ({wanted}): {limit}"


def _gpu_of_budget(name: str) -> Gpu | None:
    """The GPU that a budget is named after, as "8xa100-80g" is."""
    try:
        return find_gpu(re.sub(r"^\d+x", "", name.lower().strip()))
    except ValueError:
        return None
