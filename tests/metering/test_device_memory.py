"""The meter on a machine without a GPU, and its NVML half against a stand-in for the driver; memory
by kind."""

import time
import types

import pytest
import torch

from mats_ds.metering.device_memory import (
    DeviceMeter,
    MemoryReading,
    left_for_activations,
    name_kind,
    on_device,
    split_peak,
)
from mats_ds.metering.nvml import NvmlDevice, NvmlSample, NvmlSampler, find_nvml_handle

STATIC = {"weights": 40, "gradients": 20, "master_weights": 10, "moments": 20, "buckets": 7}


class NVMLError(Exception):
    pass


def make_nvml(*, by_uuid=None, by_address=None, power=True, energy=True):
    """A stand-in for pynvml that knows the given devices."""

    def look_up(known, key):
        if key not in (known or {}):
            raise NVMLError("not found")
        return known[key]

    def power_usage(handle):
        if not power:
            raise NVMLError("not supported")
        return 281_500

    def total_energy(handle):
        if not energy:
            raise NVMLError("not supported")
        return 7_250_000

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetHandleByUUID=lambda uuid: look_up(by_uuid, uuid),
        nvmlDeviceGetHandleByPciBusId=lambda address: look_up(by_address, address),
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=7_000),
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=93),
        nvmlDeviceGetPowerUsage=power_usage,
        nvmlDeviceGetTotalEnergyConsumption=total_energy,
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
        {"by_uuid": {"GPU-abc-def": "handle"}},
        {"by_uuid": {"MIG-abc-def": "handle"}},
        {"by_address": {"00000000:a1:02.0": "handle"}},
    ],
)
def test_the_device_is_found_by_uuid_or_else_by_pci_address(known):
    assert find_nvml_handle(make_nvml(**known), PROPERTIES) == "handle"


def test_a_device_that_nvml_does_not_know_has_no_handle():
    assert find_nvml_handle(make_nvml(by_uuid={"GPU-other": "handle"}), PROPERTIES) is None


def test_what_a_device_cannot_tell_is_none():
    whole = NvmlDevice(make_nvml(), "handle").sample()
    assert (whole.power_watts, whole.joules_total) == (281.5, 7_250.0)
    part = NvmlDevice(make_nvml(power=False, energy=False), "handle").sample()
    assert (part.used_bytes, part.utilization_percent, part.power_watts, part.joules_total) == (7_000, 93.0, None, None)


class FakeDevice:
    """A GPU of 200 W whose n-th answer says that n bytes are used; the answer may take its time."""

    def __init__(self, *, wait_seconds=0.0):
        self.num_asked, self.wait_seconds = 0, wait_seconds

    def sample(self):
        time.sleep(self.wait_seconds if self.num_asked else 0.0)
        self.num_asked += 1
        now = time.monotonic()
        return NvmlSample(now, used_bytes=self.num_asked, power_watts=200.0, joules_total=200.0 * now)


def make_meter(device, interval_seconds):
    meter = DeviceMeter(torch.device("cpu"))
    meter._sampler = NvmlSampler(device, interval_seconds=interval_seconds)
    return meter


def test_the_driver_is_asked_once_an_interval_however_often_the_meter_is_read():
    meter = make_meter(FakeDevice(), 60)
    assert [meter.read().nvml_used_bytes for _ in range(3)] == [1, 1, 1]
    meter.close()


def test_the_driver_is_asked_in_the_background_and_a_slow_one_holds_nobody_up():
    device = FakeDevice(wait_seconds=0.2)
    meter = make_meter(device, 0.001)
    begin = time.perf_counter()
    for _ in range(20):
        meter.read()
    assert time.perf_counter() - begin < 2.0  # twenty answers take four seconds
    deadline = time.monotonic() + 30
    while device.num_asked < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter.read().nvml_used_bytes >= 2
    meter.close()
    num_asked = device.num_asked
    time.sleep(0.5)
    assert device.num_asked == num_asked


def test_energy_grows_with_the_gpus_power():
    meter = make_meter(FakeDevice(), 0.01)
    before, begin = meter.read_joules(), time.monotonic()
    time.sleep(1.0)  # a busy machine may ask a tenth of a second late
    spent, seconds = meter.read_joules() - before, time.monotonic() - begin
    meter.close()
    assert spent == pytest.approx(200.0 * seconds, rel=0.2)
    assert DeviceMeter(torch.device("cpu")).read_joules() is None


def test_the_kinds_add_up_to_what_the_gpu_has_in_use():
    kinds = split_peak(STATIC, peak_allocated_bytes=300, peak_reserved_bytes=350, clip_bytes=3, used_bytes=410)
    assert kinds == STATIC | {"clips": 3, "activations": 200, "cache": 50, "outside": 60}
    assert sum(kinds.values()) == 410


def test_without_the_driver_there_is_nothing_outside():
    kinds = split_peak(STATIC, peak_allocated_bytes=300, peak_reserved_bytes=350)
    assert "outside" not in kinds
    assert sum(kinds.values()) == 350


def test_what_is_on_the_host_is_not_on_the_gpu():
    static = {"weights": 40, "host_moments": 1000}
    assert on_device(static) == {"weights": 40}
    assert left_for_activations(static, peak_allocated_bytes=100, clip_bytes=10) == 50
    assert name_kind("host_moments") == "AdamW moments (optimizer partition), on the host"


def test_a_peak_below_the_static_kinds_leaves_no_activations():
    kinds = split_peak(STATIC, peak_allocated_bytes=50, peak_reserved_bytes=60, used_bytes=55)
    assert (kinds["activations"], kinds["cache"], kinds["outside"]) == (0, 0, 0)


def test_an_unknown_kind_is_named_by_its_key():
    assert name_kind("lookup_tables") == "lookup tables"
