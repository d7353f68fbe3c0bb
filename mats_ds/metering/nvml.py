"""Used memory, utilisation, power and energy of a GPU, as its driver reports them. The only user of
pynvml.

NVML answers in about a millisecond, sometimes in many: a thread of its own samples it about once a
second, so that the training loop never waits for it (the call releases Python's global lock).
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mats_ds.core.storage.package_files import describe_missing

logger = logging.getLogger("mats_ds")


@dataclass(frozen=True)
class NvmlSample:
    """One sample of a GPU with all its processes. `joules_total` counts since the driver was
    loaded. None: not reported (a MIG slice has neither utilisation nor energy, GPUs older than
    Volta have no energy).
    """

    seconds: float = 0.0
    used_bytes: int | None = None
    utilization_percent: float | None = None
    power_watts: float | None = None
    joules_total: float | None = None


class NvmlDevice:
    """The NVML handle of the device that torch uses, whatever CUDA_VISIBLE_DEVICES renumbers."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml = pynvml
        self._handle = handle

    @classmethod
    def find(cls, properties: Any) -> NvmlDevice | None:
        """The device with these torch properties; None without the package, the driver, or a device
        that matches."""
        try:
            import pynvml
        except ImportError as error:
            logger.info("the driver's memory and energy are not recorded: %s", describe_missing(error) or error)
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        handle = find_nvml_handle(pynvml, properties)
        return None if handle is None else cls(pynvml, handle)

    def sample(self) -> NvmlSample:
        """All figures that the driver reports now."""
        pynvml, handle = self._pynvml, self._handle
        used_bytes = utilization = power_watts = joules_total = None
        with suppress(pynvml.NVMLError):
            used_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        with suppress(pynvml.NVMLError):
            utilization = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(pynvml.NVMLError):
            power_watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3  # reported in milliwatts
        with suppress(pynvml.NVMLError):
            # in millijoules
            joules_total = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        return NvmlSample(time.monotonic(), used_bytes, utilization, power_watts, joules_total)


class NvmlSampler:
    """Samples a device on a thread of its own; `latest` is the newest sample, `energy` adds them
    up."""

    def __init__(self, device: Any, *, interval_seconds: float = 1.0) -> None:
        self.energy = EnergyMeter()
        self._device = device
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._run, name="mats-nvml", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; `latest` and `energy` stay."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            self._sample()

    def _sample(self) -> None:
        sample = self._device.sample()
        self.energy.add(sample.seconds, watts=sample.power_watts, joules_total=sample.joules_total)
        self.latest = sample


def find_nvml_handle(pynvml: Any, properties: Any) -> Any:
    """NVML's handle of the device with these torch properties: by UUID (MIG slices have their own),
    else by PCI address."""
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


@dataclass(frozen=True)
class _State:
    """Joules since the first sample, as of `seconds`, and the rate that they grow by."""

    seconds: float
    joules: float
    watts: float
    joules_total: float | None


class EnergyMeter:
    """`add` samples, `read` at any time, from any thread. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._state: _State | None = None
        self._last_reading = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float, *, watts: float | None, joules_total: float | None) -> None:
        """A sample at `seconds`. `joules_total` is the driver's counter, None without one; a sample
        of neither is left out."""
        if watts is None and joules_total is None:
            return
        before = self._state
        if before is None:
            self._state = _State(seconds, 0.0, watts or 0.0, joules_total)
            return
        passed_seconds = seconds - before.seconds
        if passed_seconds <= 0:
            return
        spent = _spent(before, passed_seconds, watts, joules_total)
        self._state = _State(seconds, before.joules + spent, spent / passed_seconds, joules_total)

    def read(self, seconds: float) -> float | None:
        """Joules since the first sample, extrapolated to `seconds`; None where no sample had
        energy. Never falls."""
        state = self._state
        if state is None:
            return None
        with self._lock:
            joules = state.joules + state.watts * max(0.0, seconds - state.seconds)
            self._last_reading = max(self._last_reading, joules)
            return self._last_reading


def _spent(before: _State, passed_seconds: float, watts: float | None, joules_total: float | None) -> float:
    if joules_total is not None and before.joules_total is not None and joules_total >= before.joules_total:
        # (a counter that went back was reset with the driver)
        return joules_total - before.joules_total
    now_watts = before.watts if watts is None else watts
    return (before.watts + now_watts) / 2 * passed_seconds
