"""The meter's figures against torch and NVML on a real card."""

import os
import subprocess
import sys
import time

import pytest
import torch

from mats_ds.core.run_dir import read_outcome, read_run
from mats_ds.metering.device_memory import DeviceMeter
from mats_ds.metering.peak_flops import find_peak, measure_peak
from mats_ds.metering.profiler import MemorySnapshot
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.recorder import Recorder
from tests.metering.test_recorder import make_event, make_run

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
    meter = DeviceMeter(CUDA, nvml_interval_seconds=0.05)
    if not meter.has_nvml:
        pytest.skip("no NVML on this machine")
    before = meter.read().nvml_used_bytes
    held = torch.empty(512 * MIB, dtype=torch.uint8, device=CUDA)
    time.sleep(1.0)
    reading = meter.read()
    meter.close()
    assert reading.nvml_used_bytes - before >= 0.9 * held.numel()
    assert reading.nvml_used_bytes >= reading.reserved_bytes
    assert reading.nvml_power_watts is None or reading.nvml_power_watts > 0


def test_visible_devices_renumbered_by_uuid_still_match():
    uuid = f"GPU-{torch.cuda.get_device_properties(CUDA).uuid}"
    code = "import torch; from mats_ds.metering.device_memory import DeviceMeter\n"
    code += "print(DeviceMeter(torch.device('cuda', 0)).has_nvml)"
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


def test_energy_grows_while_the_card_works():
    meter = DeviceMeter(CUDA, nvml_interval_seconds=0.1)
    if meter.read_joules() is None:
        pytest.skip("this card tells no energy")
    before, begin = meter.read_joules(), time.monotonic()
    matrix = torch.randn(4096, 4096, device=CUDA, dtype=torch.bfloat16)
    while time.monotonic() - begin < 2:
        matrix @ matrix
        torch.cuda.synchronize(CUDA)
    watts = (meter.read_joules() - before) / (time.monotonic() - begin)
    meter.close()
    assert 10 < watts < 2000


def test_the_measured_peak_is_near_the_tables(capsys):
    name = torch.cuda.get_device_name(CUDA)
    measured, listed = measure_peak(CUDA), find_peak(name)
    with capsys.disabled():
        print(f"\n  {name}: {measured / 1e12:.1f} TFLOP/s measured, {listed.flops_per_second / 1e12 if listed else '?'} listed")
    assert measured > 1e12
    if listed is not None:
        assert 0.4 < measured / listed.flops_per_second < 1.1


def make_gpu_run(run_dir):
    return make_run(run_dir, device="cuda:0", device_name=torch.cuda.get_device_name(CUDA), micro_batch=24)


def test_a_forced_out_of_memory_leaves_records_a_snapshot_and_advice(tmp_path):
    torch.cuda.empty_cache()
    recorder = Recorder(tmp_path, CUDA)
    recorder.on_start(make_gpu_run(tmp_path))
    total_bytes = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + 256 * MIB) / total_bytes, CUDA)
    held, outcome = [], "finished"
    try:
        for step in range(1, 20):
            held.append(torch.empty(64 * MIB, dtype=torch.uint8, device=CUDA))
            recorder.on_step(make_event(step, loss=0.5, clip_bytes=MIB))
    except torch.OutOfMemoryError as error:
        outcome = f"{type(error).__name__}: {error}"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    recorder.on_end(outcome)
    held.clear()
    records, end = list(read_records(tmp_path)), read_outcome(tmp_path)
    assert outcome.startswith("OutOfMemoryError")
    assert [record.step for record in records] == list(range(1, len(records) + 1)) and records
    assert records[-1].activation_bytes > records[0].activation_bytes
    assert end.advice and os.path.getsize(end.snapshot) > 1000
    assert read_run(tmp_path).info.device_memory_bytes == total_bytes


def test_a_memory_snapshot_names_the_lines_that_allocate(tmp_path):
    observer = MemorySnapshot(tmp_path, CUDA, num_steps=2, after_step=0)
    observer.on_start(make_gpu_run(tmp_path))
    for step in (1, 2):
        held = torch.empty(step * MIB, dtype=torch.uint8, device=CUDA)
        observer.on_step(make_event(step))
    observer.on_end("finished")
    assert held.numel() == 2 * MIB
    assert b"test_metering_gpu.py" in (tmp_path / "memory_snapshots" / "steps-rank-00000.pickle").read_bytes()
