"""The meter on a machine without a GPU, and its NVML half against a stand-in for the driver."""

import types

import pytest
import torch

from mats_ds.metering.memory import DeviceMeter, MemoryReading, _NvmlDevice, find_nvml_handle


class NVMLError(Exception):
    pass


def make_nvml(*, by_uuid=None, by_address=None, power=True):
    """A stand-in for pynvml that knows the given devices."""

    def look_up(known, key):
        if key not in (known or {}):
            raise NVMLError("not found")
        return known[key]

    def power_usage(handle):
        if not power:
            raise NVMLError("not supported")
        return 281_500

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetHandleByUUID=lambda uuid: look_up(by_uuid, uuid),
        nvmlDeviceGetHandleByPciBusId=lambda address: look_up(by_address, address),
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=7_000),
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=93),
        nvmlDeviceGetPowerUsage=power_usage,
    )


PROPERTIES = types.SimpleNamespace(uuid="abc-def", pci_domain_id=0, pci_bus_id=0xA1, pci_device_id=2)


def test_on_a_cpu_only_the_process_is_metered():
    meter = DeviceMeter(torch.device("cpu"))
    meter.reset_peak()
    reading = meter.read()
    assert not meter.has_nvml
    assert reading == MemoryReading(rss_bytes=reading.rss_bytes, peak_rss_bytes=reading.peak_rss_bytes)
    assert 0 < reading.rss_bytes <= reading.peak_rss_bytes


def test_the_process_grows_by_what_it_touches():
    meter = DeviceMeter(torch.device("cpu"))
    before = meter.read().rss_bytes
    held = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert meter.read().rss_bytes - before >= 0.9 * held.numel()


@pytest.mark.parametrize(
    "known",
    [
        {"by_uuid": {"GPU-abc-def": "card"}},
        {"by_uuid": {"MIG-abc-def": "card"}},
        {"by_address": {"00000000:a1:02.0": "card"}},
    ],
)
def test_the_device_is_found_by_uuid_or_else_by_pci_address(known):
    assert find_nvml_handle(make_nvml(**known), PROPERTIES) == "card"


def test_a_device_that_nvml_does_not_know_has_no_handle():
    assert find_nvml_handle(make_nvml(by_uuid={"GPU-other": "card"}), PROPERTIES) is None


def test_what_a_device_cannot_tell_is_none():
    assert _NvmlDevice(make_nvml(), "card").sample().nvml_power_watts == 281.5
    sample = _NvmlDevice(make_nvml(power=False), "card").sample()
    assert (sample.nvml_used_bytes, sample.nvml_utilization_percent, sample.nvml_power_watts) == (7_000, 93.0, None)


def test_nvml_is_asked_once_per_interval():
    class Counting:
        asked = 0

        def sample(self):
            self.asked += 1
            return MemoryReading(nvml_used_bytes=self.asked)

    meter = DeviceMeter(torch.device("cpu"), nvml_interval_seconds=60)
    meter._nvml = Counting()
    assert [meter.read().nvml_used_bytes for _ in range(3)] == [1, 1, 1]
    meter._next_sample = 0.0
    assert meter.read().nvml_used_bytes == 2
