"""How much memory a rank uses: torch's allocator, the device as NVML sees it, and the host process. The only user of pynvml.

Reading never waits for the device: torch's figures are kept by the allocator on the host. NVML answers in about a
millisecond, so it is asked at most once a second, and less often where it is slower: never more than NVML_SHARE of the time.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NVML_SHARE = 0.005
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryReading:
    """One reading. Torch's figures are of the current device and None on a CPU (where torch would say 0); peaks are since
    `reset_peak`. `nvml_*` are the latest sample of the whole device, None without a driver. `rss_bytes` is this process."""

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


class DeviceMeter:
    """Meters one rank. `device` is the torch device that the rank trains on."""

    def __init__(self, device: torch.device, *, nvml_interval_seconds: float = 1.0) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._nvml = None
        if self._cuda:
            import torch

            self._nvml = _NvmlDevice.find(torch.cuda.get_device_properties(device))
        self._interval_seconds = nvml_interval_seconds
        self._next_sample = 0.0
        self._sample = MemoryReading()

    @property
    def has_nvml(self) -> bool:
        return self._nvml is not None

    def reset_peak(self) -> None:
        """Begin a new peak of torch's allocator. (A process's peak RSS is of its whole life.)"""
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> MemoryReading:
        """All figures now, NVML's as of its latest sample."""
        now = time.monotonic()
        if self._nvml is not None and now >= self._next_sample:
            self._sample = self._nvml.sample()
            done = time.monotonic()
            self._next_sample = done + max(self._interval_seconds, (done - now) / NVML_SHARE)
        reading = replace(self._sample, **_read_rss())
        return replace(reading, **_read_allocator(self._device)) if self._cuda else reading


class _NvmlDevice:
    """The NVML handle of the device that torch uses, whatever CUDA_VISIBLE_DEVICES renumbers."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml = pynvml
        self._handle = handle

    @classmethod
    def find(cls, properties: Any) -> _NvmlDevice | None:
        """The device with these torch properties; None without the package, the driver, or a device that matches."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        handle = find_nvml_handle(pynvml, properties)
        return None if handle is None else cls(pynvml, handle)

    def sample(self) -> MemoryReading:
        """What the device can tell; a MIG slice, for one, knows no utilisation."""
        pynvml, handle = self._pynvml, self._handle
        used_bytes = utilization = power_watts = None
        with suppress(pynvml.NVMLError):
            used_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        with suppress(pynvml.NVMLError):
            utilization = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(pynvml.NVMLError):
            power_watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3  # it answers in milliwatts
        return MemoryReading(nvml_used_bytes=used_bytes, nvml_utilization_percent=utilization, nvml_power_watts=power_watts)


def find_nvml_handle(pynvml: Any, properties: Any) -> Any:
    """NVML's handle of the device with these torch properties: by UUID (MIG slices have their own), else by PCI address."""
    uuid = getattr(properties, "uuid", None)
    if uuid is not None:
        for kind in ("GPU", "MIG"):
            with suppress(pynvml.NVMLError):
                return pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}")
    if hasattr(properties, "pci_bus_id"):
        address = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByPciBusId(address)
    return None


def _read_allocator(device: torch.device) -> dict[str, int]:
    import torch

    # The figures are there because DeviceMeter asked for the device's properties, which initialises CUDA. The nested
    # form is the flat `memory_stats` without its 100-odd joined key names: several times cheaper.
    stats = torch.cuda.memory_stats_as_nested_dict(device)
    allocated, reserved = stats["allocated_bytes"]["all"], stats["reserved_bytes"]["all"]
    return {
        "peak_allocated_bytes": allocated["peak"],
        "peak_reserved_bytes": reserved["peak"],
        "allocated_bytes": allocated["current"],
        "reserved_bytes": reserved["current"],
        "num_alloc_retries": stats["num_alloc_retries"],
        "num_ooms": stats["num_ooms"],
    }


def _read_rss() -> dict[str, int]:
    """Resident memory of this process, now and at its peak. Without /proc (not Linux) both are the peak."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"rss_bytes": peak_bytes, "peak_rss_bytes": peak_bytes}
    # getrusage's peak is not used here: after a fork and exec it includes the parent's memory.
    kib = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if key in ("VmRSS", "VmHWM")}
    return {"rss_bytes": kib["VmRSS"] * 1024, "peak_rss_bytes": kib["VmHWM"] * 1024}
