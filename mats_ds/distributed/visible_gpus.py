"""The GPUs of this machine that a run may use, before torch is loaded: nvidia-smi's list and
CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER_SECONDS = 60  # a driver without persistence mode takes many seconds to answer
_LISTED = re.compile(r"^(?:GPU (\d+):|\s+MIG ).*\(UUID: ([^)]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or one MIG part of it. `uuid` is "" without nvidia-smi; `index` is that of the GPU."""

    index: int
    uuid: str

    @property
    def is_mig(self) -> bool:
        return self.uuid.startswith("MIG-")


def list_gpus() -> list[Gpu]:
    """All GPUs of this machine and their MIG parts, in nvidia-smi's order; empty without a driver
    that works."""
    if shutil.which("nvidia-smi"):
        return parse_gpus(_ask_driver("-L"))
    # a container may have the devices without the tool
    numbers = (path.name[len("nvidia") :] for path in Path("/dev").glob("nvidia[0-9]*"))
    return [Gpu(index, "") for index in sorted(int(number) for number in numbers if number.isdecimal())]


def find_driver_cuda() -> str | None:
    """The newest CUDA that the driver supports, as "12.8" or "12"; None without a driver that
    works."""
    text = _ask_driver()
    if match := re.search(r"CUDA[A-Za-z ]*Version *: *(\d+(?:[.]\d+)?)", text):
        return match[1]
    if match := re.search(r"(?:Driver|KMD) Version *: *(\d+)", text):
        # the first drivers of each
        return "13" if int(match[1]) >= 580 else "12" if int(match[1]) >= 525 else "11"
    return None


def _ask_driver(*options: str) -> str:
    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, timeout=DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.decode(errors="replace")


def parse_gpus(text: str) -> list[Gpu]:
    """The GPUs and MIG parts in what `nvidia-smi -L` prints."""
    gpus: list[Gpu] = []
    for index, uuid in _LISTED.findall(text):
        if index or gpus:
            gpus.append(Gpu(int(index) if index else gpus[-1].index, uuid))
    return gpus


def choose_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; empty where it is set and empty.

    Unset or `all`: every GPU. As CUDA does, the list is read up to the first entry that fits none;
    an entry is an index or the beginning of a UUID. Raises ValueError where it is not empty and
    fits no GPU.
    """
    value = environment.get(VARIABLE, "all").strip()
    if value.lower() == "all":
        return [gpu for gpu in gpus if not gpu.is_mig]
    chosen: list[Gpu] = []
    for entry in filter(None, re.split(r"[,\s]+", value)):
        match = next((gpu for gpu in gpus if _fits(entry, gpu)), None)
        if match is None:
            break
        if match not in chosen:
            chosen.append(match)
    if value and not chosen:
        there = ", ".join(f"{gpu.index} ({gpu.uuid})" if gpu.uuid else str(gpu.index) for gpu in gpus) or "none"
        raise ValueError(
            f"{VARIABLE}={value} fits no GPU of this machine, which has {there}: correct it, unset it to use all, "
            "or set it to nothing to run on the CPU"
        )
    return chosen


def _fits(entry: str, gpu: Gpu) -> bool:
    if entry.isdecimal():
        return not gpu.is_mig and int(entry) == gpu.index
    return entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry)
