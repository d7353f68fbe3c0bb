"""The GPU, the versions, and the measured rates of arithmetic and memory: the denominator of every
MFU of the other parts."""

from __future__ import annotations

import platform
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.part import MISSED, NEEDS_GPU, OK, Part, begin_part  # noqa: E402

PACKAGES = ("torch", "timm", "einops", "numpy", "pydantic", "PyYAML", "deepspeed", "av", "transformers", "nvidia-ml-py")
SIDE, CPU_SIDE = 8192, 128
COPY_BYTES, CPU_COPY_BYTES = 1 << 30, 1 << 24


def main() -> int:
    part = begin_part("card")
    if absent := part.lacks("torch", "numpy"):
        part.add_line("card", f"not looked at without {', '.join(absent)}")
        return part.finish()
    part.lacks("pydantic", "yaml", "deepspeed", "av", "transformers", "pynvml", "safetensors", "nvidia.dali")
    describe(part)
    if part.on_gpu:
        describe_driver(part)
    describe_decoders(part)
    measure(part)
    return part.finish()


def describe(part: Part) -> None:
    import torch

    versions = {"python": platform.python_version(), "CUDA": torch.version.cuda}
    for name in (*PACKAGES, "nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    part.add(versions=versions)
    if part.on_gpu:
        device = torch.cuda.get_device_properties(0)
        part.add(card=device.name, memory_bytes=device.total_memory, multiprocessors=device.multi_processor_count)
        part.add_line("card", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    part.add_line("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))


def describe_driver(part: Part) -> None:
    """What NVML, the source of the recorder's figures, tells and what it does not."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception as error:  # ImportError, or NVMLError of a machine without its library
        part.add_line("driver", f"NVML does not answer: {type(error).__name__}: {error}")
        return
    questions = {
        "driver": lambda: _text(pynvml.nvmlSystemGetDriverVersion()),
        "memory used, MiB": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used >> 20,
        "busy, %": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "NVDEC busy, %": lambda: pynvml.nvmlDeviceGetDecoderUtilization(handle)[0],
        "power, W": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "energy, J": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
        "SM clock, MHz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
    }
    answers = {}
    for name, ask in questions.items():
        try:
            answers[name] = ask()
        except pynvml.NVMLError as error:
            answers[name] = str(error)
    part.add(nvml=answers)
    part.add_line("NVML", ", ".join(f"{name} {answer}" for name, answer in answers.items()))


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def describe_decoders(part: Part) -> None:
    """What the driver says that this GPU decodes."""
    if absent := part.lacks("torch", "av"):
        return part.add_line("NVDEC", f"not asked without {', '.join(absent)}")
    import torch

    from mats_ds.data.loading.nvdec.limits import find_nvdec

    if not part.on_gpu:
        return part.add_line("NVDEC", "not asked", NEEDS_GPU)
    nvdec = find_nvdec(torch.device(part.device))
    part.add(nvdec=nvdec.as_json())
    known = (
        f"{name} up to {limits.largest[1]} x {limits.largest[0]} on {limits.num_engines}" for name, limits in nvdec.codecs.items()
    )
    part.add_line("NVDEC", nvdec.problem or f"{', '.join(known)} engines", OK if nvdec.codecs else MISSED)


def measure(part: Part) -> None:
    """The best product of two large bf16 matrices, and the rate at which memory is copied within
    the device."""
    import torch

    from mats_ds.metering.peak_flops import find_peak, measure_peak

    device = torch.device(part.device)
    rate = measure_peak(device, side=SIDE if part.on_gpu else CPU_SIDE)
    listed = find_peak(torch.cuda.get_device_name()) if part.on_gpu else None
    part.add(matrix_flops_per_second=rate, listed_flops_per_second=listed and listed.flops_per_second)
    fraction = f", {rate / listed.flops_per_second:.0%} of the data sheet's" if listed else ""
    part.add_line("bf16 matrix product", f"{rate / 1e12:.4g} TFLOP/s{fraction}")
    source = torch.empty(COPY_BYTES if part.on_gpu else CPU_COPY_BYTES, dtype=torch.uint8, device=device)
    target, best_seconds = torch.empty_like(source), float("inf")
    for _ in range(5):
        wait(device)
        begin = time.perf_counter()
        target.copy_(source)
        wait(device)
        best_seconds = min(best_seconds, time.perf_counter() - begin)
    part.add(copy_bytes_per_second=2 * source.numel() / best_seconds)
    part.add_line("memory, read and written", f"{2 * source.numel() / best_seconds / 1e9:.4g} GB/s")


def wait(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    raise SystemExit(main())
