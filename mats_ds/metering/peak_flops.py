"""Peak arithmetic of a GPU, the denominator of MFU: from the table in core/gpus.py, else measured
once and cached.

What is not listed is timed with one large product: less than a data sheet would say, so that its
MFU comes out higher; reports name the source.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mats_ds.core.gpus import find_model
from mats_ds.core.limits import limits_of
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import WrongKindOfFile, read_bytes, write_json

if TYPE_CHECKING:
    import torch

IN_TABLE, MEASURED = "table", "measured"
MATRIX_SIDE = 8192
NUM_TIMED = 10
MAX_CACHE_BYTES = 2**20
_log = logging.getLogger(__name__)

BF16, TF32, FP32 = "bf16", "tf32", "fp32"
TF32_CAPABILITY = 8  # Ampere


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one GPU in one arithmetic ("bf16", "tf32" or "fp32"), and whether the figure is
    "table" or "measured"."""

    flops_per_second: float
    source: str
    arithmetic: str = BF16


def arithmetic_of(precision: str, device: torch.device) -> str | None:
    """The arithmetic of matrix products in a run of this precision on this device: "bf16", "tf32"
    or "fp32"; None for another precision.

    Float32 tensors go through TF32 only where torch allows it (not by default; containers may set
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1), the GPU has it, and NVIDIA_TF32_OVERRIDE does not forbid
    it.
    """
    if precision != FP32:
        return BF16 if precision == BF16 else None
    import torch

    matmul = torch.backends.cuda.matmul
    # `fp32_precision` came with torch 2.9; once it has been set, `allow_tf32` only raises.
    allowed = matmul.fp32_precision == TF32 if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    if not allowed or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return FP32
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= TF32_CAPABILITY
    return TF32 if has_tf32 else FP32


def find_peak(device_name: str, arithmetic: str = BF16) -> Peak | None:
    """The peak of a GPU from the table by its reported name; None where it is not listed. A MIG
    slice is not the GPU."""
    model = find_model(device_name)
    teraflops = None if model is None else getattr(model.peak, arithmetic)
    return None if teraflops is None else Peak(teraflops * 1e12, IN_TABLE, arithmetic)


def choose_peak(
    device: torch.device, device_name: str, arithmetic: str | None = BF16, *, cache: Path | None = None
) -> Peak | None:
    """The GPU's peak from the table, the cache (None: in the user's cache folder), or a measurement
    that is then cached.

    None on a CPU, where it cannot be measured, and for no known arithmetic.
    """
    if device.type != "cuda" or arithmetic is None:
        return None
    listed = find_peak(device_name, arithmetic)
    if listed is not None:
        return listed
    path = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mats_ds" / "peaks.json"
    known = _read_cache(path)
    name = device_name if arithmetic == BF16 else f"{device_name}, {arithmetic}"
    if name not in known:
        try:
            known[name] = measure_peak(device, arithmetic)
        except RuntimeError as error:  # no bf16 on this GPU, or no memory left
            _log.warning("the peak of %s in %s is not known and could not be measured: %s", device_name, arithmetic, error)
            return None
        _write_cache(path, known)
    return Peak(known[name], MEASURED, arithmetic)


def measure_peak(device: torch.device, arithmetic: str = BF16, *, side: int = MATRIX_SIDE) -> float:
    """FLOP/s of the best of some products of two large matrices on this device; their memory is
    given back. Whether float32 goes through TF32 is torch's setting, as in the run.

    Raises RuntimeError where the device has too little memory or no bf16.
    """
    import torch

    dtype = torch.bfloat16 if arithmetic == BF16 else torch.float32
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
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
    """The plausible rates of the file; its other entries are left out."""
    try:
        tree = parse_json(read_bytes(path, max_bytes=MAX_CACHE_BYTES))
    except (OSError, ValueError):  # none yet, or damaged: it is measured again
        return {}
    if not isinstance(tree, dict):
        return {}
    least, greatest = limits_of("peak_flops", "float")
    return {name: float(value) for name, value in tree.items() if type(value) in (int, float) and least <= value <= greatest}


def _write_cache(path: Path, known: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    except (OSError, WrongKindOfFile) as error:
        _log.warning("the measured peak could not be kept in %s: %s", path, error)
