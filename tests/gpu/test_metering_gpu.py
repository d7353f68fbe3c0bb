"""The meter's figures against torch and NVML on a real card."""

import os
import subprocess
import sys
import time

import pytest
import torch

from mats_ds.metering.memory import DeviceMeter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
CUDA = torch.device("cuda", 0)
MIB = 2**20


def test_peaks_are_of_the_step_and_current_figures_are_torchs():
    meter = DeviceMeter(CUDA)
    held = torch.empty(64 * MIB, dtype=torch.uint8, device=CUDA)
    meter.reset_peak()
    passing = torch.empty(128 * MIB, dtype=torch.uint8, device=CUDA)
    del passing
    reading = meter.read()
    assert reading.allocated_bytes == torch.cuda.memory_allocated(CUDA) >= held.numel()
    assert reading.reserved_bytes == torch.cuda.memory_reserved(CUDA)
    assert reading.peak_allocated_bytes == torch.cuda.max_memory_allocated(CUDA) == reading.allocated_bytes + 128 * MIB
    assert reading.peak_reserved_bytes >= reading.peak_allocated_bytes
    meter.reset_peak()
    assert meter.read().peak_allocated_bytes == reading.allocated_bytes


def test_nvml_meters_the_card_that_torch_uses():
    meter = DeviceMeter(CUDA, nvml_interval_seconds=0.0)
    if not meter.has_nvml:
        pytest.skip("no NVML on this machine")
    before = meter.read().nvml_used_bytes
    held = torch.empty(512 * MIB, dtype=torch.uint8, device=CUDA)
    meter._next_sample = 0.0
    reading = meter.read()
    assert reading.nvml_used_bytes - before >= 0.9 * held.numel()
    assert reading.nvml_used_bytes >= reading.reserved_bytes
    assert reading.nvml_power_watts is None or reading.nvml_power_watts > 0


def test_visible_devices_renumbered_by_uuid_still_match():
    uuid = f"GPU-{torch.cuda.get_device_properties(CUDA).uuid}"
    code = "import torch; from mats_ds.metering.memory import DeviceMeter; print(DeviceMeter(torch.device('cuda', 0)).has_nvml)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": uuid, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == str(DeviceMeter(CUDA).has_nvml)


def test_metering_a_step_costs_less_than_a_millisecond(capsys):
    meter = DeviceMeter(CUDA)
    meter.read()
    begin = time.perf_counter()
    for _ in range(200):
        meter.read()
        meter.reset_peak()
    mean_seconds = (time.perf_counter() - begin) / 200
    with capsys.disabled():
        print(f"\n  metering costs {mean_seconds * 1e6:.0f} microseconds a step, NVML included")
    assert mean_seconds < 1e-3
