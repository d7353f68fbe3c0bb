"""Peak arithmetic of known cards, for the model FLOP utilisation of a report.

Figures are dense (no sparsity) tensor-core FLOP/s in bf16 with fp32 accumulation, V100's in fp16, as in NVIDIA's own papers:
A100, H100, H200 and V100 data sheets (H100 and H200: SXM, half of the figure given "with sparsity"), RTX A6000 data sheet (half
of 309.7 with sparsity), GA102 architecture white paper (RTX 3090), Ada architecture white paper (RTX 4090).
"""

from __future__ import annotations

import re

# The name as the driver gives it -> FLOP/s. Variants with other clocks (PCIe, NVL, Ti, D, laptop) do not match: unknown.
PEAK_FLOPS_PER_SECOND = {
    r"A100": 312e12,
    r"H100 80GB HBM3|H100 SXM": 989.4e12,
    r"H200(?! NVL)": 989.4e12,
    r"RTX A6000": 154.8e12,
    r"RTX 3090(?! (Ti|Laptop))": 71e12,
    r"RTX 4090(?! (D|Laptop))": 165.2e12,
    r"V100": 125e12,
}


def find_peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of the card; None where it is not known."""
    for pattern, flops_per_second in PEAK_FLOPS_PER_SECOND.items():
        if re.search(rf"\b(?:{pattern})\b", device_name):
            return flops_per_second
    return None
