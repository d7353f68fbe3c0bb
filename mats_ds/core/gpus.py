"""What is known of GPUs by name: memory, peak arithmetic, video decoders."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import NamedTuple


class Rates(NamedTuple):
    """TFLOP/s of a card in each arithmetic; None: it has it not, or the figure is not known."""

    fp32: float | None
    tf32: float | None
    bf16: float | None


# The name as the driver gives it. Variants with other clocks (Ti, D, laptop, MIG slices) do not match: unknown.
TERAFLOPS = {
    r"A100": Rates(19.5, 156, 312),
    r"A10": Rates(31.2, 62.5, 125),
    r"A30": Rates(10.3, 82, 165),
    r"H100 80GB HBM3|H100 SXM": Rates(66.9, 494.7, 989.4),
    r"H100 PCIe": Rates(51.2, 378, 756.5),
    r"H200(?! NVL)": Rates(66.9, 494.7, 989.4),
    r"B200": Rates(None, None, 2250),
    r"L4": Rates(30.3, 60, 121),
    r"L40": Rates(90.5, 90.5, 181.05),
    r"L40S": Rates(91.6, 183, 362.05),
    r"RTX A6000": Rates(38.7, 77.4, 154.8),
    r"RTX 3090(?! (Ti|Laptop))": Rates(35.6, 35.6, 71),
    r"RTX 4090(?! (D|Laptop))": Rates(82.6, 82.6, 165.2),
    r"V100-SXM2": Rates(15.7, None, None),
    r"V100-PCIE": Rates(14, None, None),
    r"V100S-PCIE": Rates(16.4, None, None),
}

# Engines of the cards that have more than two, by a part of the name that torch reports; where several fit, the longest counts.
# Sources: NVIDIA's data sheets of H100, H200, L4, L40, L40S, RTX 6000 Ada and RTX PRO 6000 Blackwell, and the decoders of the
# full-size profile in NVIDIA's MIG user guide (A30, A100, H100, B200). None was measured by this project.
ENGINES = {
    "A100": 5,
    "A800": 5,
    "A30": 4,
    "B200": 7,
    "GH200": 7,
    "H100": 7,
    "H200": 7,
    "H800": 7,
    "L4": 4,
    "L40": 3,
    "L40S": 3,
    "RTX 6000 Ada": 3,
    "RTX PRO 6000 Blackwell": 4,
}


def num_engines(card: str) -> int | None:
    """NVDEC engines of a card by its name as torch reports it, like "NVIDIA A100-SXM4-80GB"; None if it is not known.

    A MIG instance ("... MIG 3g.40gb") owns only a part of the engines, which its name does not tell: None.
    """
    if " MIG " in card:
        return None
    words = card.replace("-", " ").split()
    fits = [name for name in ENGINES if _contains(words, name.split())]
    return ENGINES[max(fits, key=len)] if fits else None


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[place : place + len(part)] == part for place in range(len(words) - len(part) + 1))


MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. `device_name` as the driver tells it."""

    name: str
    device_name: str
    memory_bytes: int


GPUS = {
    card.name: card
    for card in (
        Gpu("a100-80g", "NVIDIA A100-SXM4-80GB", 81050 * MIB),
        Gpu("a100-40g", "NVIDIA A100-SXM4-40GB", 40339 * MIB),
        Gpu("a6000-48g", "NVIDIA RTX A6000", 48669 * MIB),
        Gpu("3090-24g", "NVIDIA GeForce RTX 3090", 24252 * MIB),
        Gpu("4090-24g", "NVIDIA GeForce RTX 4090", 24084 * MIB),
        Gpu("h100-80g", "NVIDIA H100 80GB HBM3", 81008 * MIB),
        Gpu("h200-141g", "NVIDIA H200", 143156 * MIB),
        Gpu("l40s-48g", "NVIDIA L40S", 45596 * MIB),
        Gpu("l4-24g", "NVIDIA L4", 22563 * MIB),
        Gpu("a10-24g", "NVIDIA A10", 22592 * MIB),
    )
}


def find_gpu(name: str) -> Gpu:
    """The card of a name like "a100-80g", "8xa100-80g", "A100" or "3090". Raises ValueError with the nearest names."""
    asked = name.lower().strip().removeprefix("8x")
    fits = [card for key, card in GPUS.items() if key == asked] or [
        card for key, card in GPUS.items() if key.startswith(f"{asked}-")
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"{name!r} is one of several cards: choose {', '.join(card.name for card in fits)}")
    close = difflib.get_close_matches(asked, GPUS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"no card {name!r} in the table{hint} Known: {', '.join(GPUS)}")
