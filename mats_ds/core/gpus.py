"""The GPUs that this project knows: memory, peak arithmetic and video decoders, by the name that
the driver reports.

Peaks are dense (no sparsity) FLOP/s of bf16 and TF32 on tensor cores with fp32 accumulation, and of
fp32 on the ordinary cores. Their sources: NVIDIA's data sheets of V100, A100, A10, A30, L4, L40,
L40S, H100, H200, RTX A6000 and B200 (HGX, 1000 W), and the H100 white paper for H100 (tables
"Comparison of NVIDIA A100 and H100": SXM5 66.9, 494.7, 989.4; PCIe 51.2, 378, 756); where a sheet
gives the figure "with sparsity" it is halved (H100 PCIe bf16 1513 -> 756.5, A6000 309.7 -> 154.8
and 154.8 -> 77.4, L4 242 -> 121 and 120 -> 60, B200 4500 -> 2250). GeForce GPUs accumulate in fp32
at half their fp16 rate: GA102 white paper, appendix A (RTX 3090: 35.6, 35.6, 71); Ada white paper,
appendix A (RTX 4090: 82.6, 82.6, 165.2). V100 has neither bf16 nor TF32; B200's sheets disagree on
the two others.
Decoders: NVIDIA's data sheets of H100, H200, L4, L40, L40S, RTX 6000 Ada and RTX PRO 6000
Blackwell, and the full-size profiles in NVIDIA's MIG user guide (A30, A100, H100, B200). No figure
was measured by this project.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from mats_ds.core.format import MIB
from mats_ds.core.text import did_you_mean


@dataclass(frozen=True)
class Gpu:
    """A GPU that a run can be planned for. `device_name`: as the driver reports it."""

    name: str
    device_name: str
    memory_bytes: int


class Teraflops(NamedTuple):
    """Peak TFLOP/s in each arithmetic; None: the GPU lacks it, or the figure is not known."""

    fp32: float | None = None
    tf32: float | None = None
    bf16: float | None = None


class GpuModel(NamedTuple):
    """The facts of all GPUs whose reported name contains `pattern`, with a word's end on both
    sides.

    `num_decoders`: NVDEC engines, None where they are two or not known. `gpus`: those with a known
    size of memory.
    """

    pattern: str
    peak: Teraflops
    num_decoders: int | None = None
    gpus: tuple[Gpu, ...] = ()


UNKNOWN = Teraflops()
# The first model that fits counts. Variants with other clocks (Ti, D, laptop) have no peak here.
MODELS = (
    GpuModel(
        r"A100",
        Teraflops(19.5, 156, 312),
        5,
        (
            Gpu("a100-80g", "NVIDIA A100-SXM4-80GB", 81050 * MIB),
            Gpu("a100-40g", "NVIDIA A100-SXM4-40GB", 40339 * MIB),
        ),
    ),
    GpuModel(r"A800", UNKNOWN, 5),
    GpuModel(r"RTX A6000", Teraflops(38.7, 77.4, 154.8), gpus=(Gpu("a6000-48g", "NVIDIA RTX A6000", 48669 * MIB),)),
    GpuModel(
        r"RTX 3090(?! (Ti|Laptop))",
        Teraflops(35.6, 35.6, 71),
        gpus=(Gpu("3090-24g", "NVIDIA GeForce RTX 3090", 24252 * MIB),),
    ),
    GpuModel(
        r"RTX 4090(?! (D|Laptop))",
        Teraflops(82.6, 82.6, 165.2),
        gpus=(Gpu("4090-24g", "NVIDIA GeForce RTX 4090", 24084 * MIB),),
    ),
    GpuModel(
        r"H100 80GB HBM3|H100 SXM",
        Teraflops(66.9, 494.7, 989.4),
        7,
        (Gpu("h100-80g", "NVIDIA H100 80GB HBM3", 81008 * MIB),),
    ),
    GpuModel(r"H100 PCIe", Teraflops(51.2, 378, 756.5), 7),
    GpuModel(r"H200(?! NVL)", Teraflops(66.9, 494.7, 989.4), 7, (Gpu("h200-141g", "NVIDIA H200", 143156 * MIB),)),
    GpuModel(r"H100|H200|H800|GH200", UNKNOWN, 7),
    GpuModel(r"B200", Teraflops(bf16=2250), 7),
    GpuModel(r"L40S", Teraflops(91.6, 183, 362.05), 3, (Gpu("l40s-48g", "NVIDIA L40S", 45596 * MIB),)),
    GpuModel(r"L40", Teraflops(90.5, 90.5, 181.05), 3),
    GpuModel(r"L4", Teraflops(30.3, 60, 121), 4, (Gpu("l4-24g", "NVIDIA L4", 22563 * MIB),)),
    GpuModel(r"A10", Teraflops(31.2, 62.5, 125), gpus=(Gpu("a10-24g", "NVIDIA A10", 22592 * MIB),)),
    GpuModel(r"A30", Teraflops(10.3, 82, 165), 4),
    GpuModel(r"RTX 6000 Ada", UNKNOWN, 3),
    GpuModel(r"RTX PRO 6000 Blackwell", UNKNOWN, 4),
    GpuModel(r"V100-SXM2", Teraflops(fp32=15.7)),
    GpuModel(r"V100-PCIE", Teraflops(fp32=14)),
    GpuModel(r"V100S-PCIE", Teraflops(fp32=16.4)),
)
GPUS = {gpu.name: gpu for model in MODELS for gpu in model.gpus}


def find_model(device_name: str) -> GpuModel | None:
    """The model of a GPU by the name that the driver and torch report, like "NVIDIA
    A100-SXM4-80GB"; None: not in the table.

    A MIG instance ("... MIG 3g.40gb") has a part of the GPU's arithmetic and decoders, which its
    name does not tell: None.
    """
    if re.search(r"\bMIG\b", device_name):
        return None
    return next((model for model in MODELS if re.search(rf"\b(?:{model.pattern})(?!\w)", device_name)), None)


def num_engines(device_name: str) -> int | None:
    """The number of NVDEC engines of a GPU by its reported name; None where it is two or not
    known."""
    model = find_model(device_name)
    return None if model is None else model.num_decoders


def find_gpu(name: str) -> Gpu:
    """The GPU of a short name like "a100-80g", "8xa100-80g", "A100" or "3090". Raises ValueError
    with the nearest names."""
    asked = name.lower().strip().removeprefix("8x")
    fits = [gpu for known, gpu in GPUS.items() if known == asked] or [
        gpu for known, gpu in GPUS.items() if known.startswith(f"{asked}-")
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"{name!r} is the name of several GPUs: choose {', '.join(gpu.name for gpu in fits)}")
    hint = did_you_mean(asked, GPUS) or "."
    raise ValueError(f"no GPU {name!r} in the table{hint} Known: {', '.join(GPUS)}")
