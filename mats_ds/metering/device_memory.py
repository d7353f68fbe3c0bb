"""Memory that a rank uses: torch's allocator, the GPU as the driver sees it, and the host process.

Reading never waits for the device: torch's figures are kept by the allocator on the host, the
driver's are of its latest sample.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mats_ds.metering.nvml import NvmlDevice, NvmlSampler

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryReading:
    """One reading. Torch's figures are of the current device and None on a CPU (where torch would
    give 0); peaks are since `reset_peak`. `nvml_*` are the latest sample of the GPU with all its
    processes, None without a driver. `rss_bytes`: of this process.
    """

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    num_alloc_retries: int | None = None
    num_ooms: int | None = None
    nvml_used_bytes: int | None = None
    nvml_utilization_percent: float | None = None
    nvml_power_watts: float | None = None
    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None
    peak_active_bytes: int | None = None
    peak_inactive_bytes: int | None = None


class DeviceMeter:
    """Meters one rank. `device` is the torch device that the rank trains on."""

    def __init__(self, device: torch.device, *, nvml_interval_seconds: float = 1.0) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._sampler: NvmlSampler | None = None
        if self._cuda:
            import torch

            nvml = NvmlDevice.find(torch.cuda.get_device_properties(device))
            self._sampler = None if nvml is None else NvmlSampler(nvml, interval_seconds=nvml_interval_seconds)

    @property
    def has_nvml(self) -> bool:
        return self._sampler is not None

    def reset_peak(self) -> None:
        """Begin a new peak of torch's allocator. (A process's peak RSS is since its start.)"""
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> MemoryReading:
        """All figures now, the driver's as of its latest sample."""
        figures: dict[str, int | float | None] = _read_rss()
        if self._cuda:
            figures |= _read_allocator(self._device)
        if self._sampler is not None:
            sample = self._sampler.latest
            figures["nvml_used_bytes"] = sample.used_bytes
            figures["nvml_utilization_percent"] = sample.utilization_percent
            figures["nvml_power_watts"] = sample.power_watts
        return MemoryReading(**figures)

    def read_joules(self) -> float | None:
        """Energy of the GPU since the meter was made; None where the driver does not report it."""
        return None if self._sampler is None else self._sampler.energy.read(time.monotonic())

    def close(self) -> None:
        """End the thread that samples the driver."""
        if self._sampler is not None:
            self._sampler.close()


def _read_allocator(device: torch.device) -> dict[str, int]:
    import torch

    # The figures are there because DeviceMeter asked for the device's properties, which initialises
    # CUDA. The nested form is the flat `memory_stats` without its 100-odd joined key names: several
    # times cheaper.
    stats = torch.cuda.memory_stats_as_nested_dict(device)
    allocated, reserved = stats["allocated_bytes"]["all"], stats["reserved_bytes"]["all"]
    return {
        "peak_allocated_bytes": allocated["peak"],
        "peak_reserved_bytes": reserved["peak"],
        "allocated_bytes": allocated["current"],
        "reserved_bytes": reserved["current"],
        "num_alloc_retries": stats["num_alloc_retries"],
        "num_ooms": stats["num_ooms"],
        "peak_active_bytes": stats["active_bytes"]["all"]["peak"],
        "peak_inactive_bytes": stats["inactive_split_bytes"]["all"]["peak"],
    }


def _read_rss() -> dict[str, int | float | None]:
    """Resident memory of this process, now and at its peak. Without /proc (not Linux) both are the
    peak."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"rss_bytes": peak_bytes, "peak_rss_bytes": peak_bytes}
    # getrusage's peak is not used here: after a fork and exec it includes the parent's memory.
    kib = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if key in ("VmRSS", "VmHWM")}
    return {"rss_bytes": kib["VmRSS"] * 1024, "peak_rss_bytes": kib["VmHWM"] * 1024}


CLIPS, ACTIVATIONS, CACHE, OUTSIDE = "clips", "activations", "cache", "outside"
ON_HOST = "host_"  # prefix of static kinds that are offloaded
KIND_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "master_weights": "fp32 weights (optimizer partition)",
    "moments": "AdamW moments (optimizer partition)",
    "buckets": "communication buckets",
    CLIPS: "clips of the micro-batch",
    ACTIVATIONS: "activations and temporaries",
    CACHE: "allocator's cache and fragments",
    OUTSIDE: "outside torch (CUDA, NCCL, DALI)",
}


def on_device(static_bytes: Mapping[str, int]) -> dict[str, int]:
    """The static kinds that are on the GPU."""
    return {kind: size for kind, size in static_bytes.items() if not kind.startswith(ON_HOST)}


def left_for_activations(static_bytes: Mapping[str, int], *, peak_allocated_bytes: int, clip_bytes: int) -> int:
    """An allocated peak less static bytes and clips; never below 0."""
    return max(0, peak_allocated_bytes - sum(on_device(static_bytes).values()) - clip_bytes)


def split_peak(
    static_bytes: Mapping[str, int],
    *,
    peak_allocated_bytes: int,
    peak_reserved_bytes: int,
    clip_bytes: int = 0,
    used_bytes: int | None = None,
) -> dict[str, int]:
    """A measured peak by kind, in the order of KIND_NAMES; the kinds add up to the larger of
    reserved and used bytes.

    Where the static kinds are more than was allocated (a partition that is made late) activations
    are 0 and the sum is larger. `used_bytes` None: the driver reported nothing, there is no
    `outside`.
    """
    activation_bytes = left_for_activations(static_bytes, peak_allocated_bytes=peak_allocated_bytes, clip_bytes=clip_bytes)
    kinds = on_device(static_bytes) | {CLIPS: clip_bytes, ACTIVATIONS: activation_bytes}
    kinds[CACHE] = max(0, peak_reserved_bytes - max(peak_allocated_bytes, sum(kinds.values())))
    if used_bytes is not None:
        kinds[OUTSIDE] = max(0, used_bytes - peak_reserved_bytes)
    return kinds


def name_kind(kind: str) -> str:
    """The name of a kind for people."""
    if kind.startswith(ON_HOST):
        return f"{name_kind(kind.removeprefix(ON_HOST))}, on the host"
    return KIND_NAMES.get(kind, kind.replace("_", " "))
