"""Peak arithmetic of a card, the denominator of MFU: from a table of NVIDIA's figures, else measured once and cached.

The table holds dense (no sparsity) tensor-core FLOP/s in bf16 with fp32 accumulation, V100's in fp16 (it has no bf16). Sources:
NVIDIA's data sheets of V100, A100, A10, A30, L4, L40, L40S, H100, H200, RTX A6000 and B200 (HGX, 1000 W); where a sheet gives
the figure "with sparsity" it is halved (H100 SXM 1979 -> 989.4, H100 PCIe 1513 -> 756.5, A6000 309.7 -> 154.8, L4 242 -> 121,
B200 4500 -> 2250). GeForce cards accumulate in fp32 at half their fp16 rate: GA102 white paper, appendix A (RTX 3090: 71); Ada
white paper, appendix A (RTX 4090: 165.2).
A card that is not listed is timed with one large bf16 product: less than a data sheet would say, so that its MFU comes out
higher; reports say so.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IN_TABLE, MEASURED = "table", "measured"
MATRIX_SIDE = 8192
NUM_TIMED = 10
_log = logging.getLogger(__name__)

# The name as the driver gives it -> FLOP/s. Variants with other clocks (Ti, D, laptop, MIG slices) do not match: unknown.
PEAK_FLOPS_PER_SECOND = {
    r"A100": 312e12,
    r"A10": 125e12,
    r"A30": 165e12,
    r"H100 80GB HBM3|H100 SXM": 989.4e12,
    r"H100 PCIe": 756.5e12,
    r"H200(?! NVL)": 989.4e12,
    r"B200": 2250e12,
    r"L4": 121e12,
    r"L40": 181.05e12,
    r"L40S": 362.05e12,
    r"RTX A6000": 154.8e12,
    r"RTX 3090(?! (Ti|Laptop))": 71e12,
    r"RTX 4090(?! (D|Laptop))": 165.2e12,
    r"V100": 125e12,
}


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one card, and whether the figure is "table" or "measured"."""

    flops_per_second: float
    source: str


def find_peak(device_name: str) -> Peak | None:
    """The peak of the card in the table; None where it is not listed. A slice of a card (MIG) is not the card."""
    if re.search(r"\bMIG\b", device_name):
        return None
    for pattern, flops_per_second in PEAK_FLOPS_PER_SECOND.items():
        if re.search(rf"\b(?:{pattern})(?!\w)", device_name):
            return Peak(flops_per_second, IN_TABLE)
    return None


def settle_peak(device: torch.device, device_name: str, *, cache: Path | None = None) -> Peak | None:
    """The card's peak from the table, the cache (None: in the user's cache folder), or a measurement that is then cached; None
    on a CPU, and where it cannot be measured."""
    if device.type != "cuda":
        return None
    found = find_peak(device_name)
    if found is not None:
        return found
    path = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mats_ds" / "peaks.json"
    known = _read_cache(path)
    if device_name not in known:
        try:
            known[device_name] = measure_peak(device)
        except RuntimeError as error:  # no bf16 on this card, or no room
            _log.warning("the peak of %s is not known and could not be measured: %s", device_name, error)
            return None
        _write_cache(path, known)
    return Peak(known[device_name], MEASURED)


def measure_peak(device: torch.device, *, side: int = MATRIX_SIDE) -> float:
    """FLOP/s of the best of some products of two bf16 matrices on this device; their memory is given back.

    Raises RuntimeError where the device has no room or no bf16.
    """
    import torch

    left = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    product = torch.empty_like(left)
    best_seconds = float("inf")
    for attempt in range(2 + NUM_TIMED):
        _wait(device)
        begin = time.perf_counter()
        torch.matmul(left, right, out=product)
        _wait(device)
        if attempt >= 2:  # the first ones choose a kernel and raise the clock
            best_seconds = min(best_seconds, time.perf_counter() - begin)
    del left, right, product
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return 2 * side**3 / best_seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _read_cache(path: Path) -> dict[str, float]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in tree.items() if float(value) > 0}
    except (OSError, ValueError, AttributeError, TypeError):  # none yet, or spoilt: it is measured anew
        return {}


def _write_cache(path: Path, known: dict[str, float]) -> None:
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        _log.warning("the measured peak could not be kept in %s: %s", path, error)
