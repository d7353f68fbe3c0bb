"""GPUs that a plan can be made for: name -> memory that a program gets, the driver's name, and what lies outside of tensors.

Memory is what CUDA offers a program, as in profiling/budgets (same sources: reported total_memory of such cards, up to 1%
different with the driver). A card's peak arithmetic is in peaks.py under the driver's name.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Card:
    """One kind of GPU. `device_name` as the driver tells it."""

    name: str
    device_name: str
    memory_bytes: int


CARDS = {
    card.name: card
    for card in (
        Card("a100-80g", "NVIDIA A100-SXM4-80GB", 81050 * MIB),
        Card("a100-40g", "NVIDIA A100-SXM4-40GB", 40339 * MIB),
        Card("a6000-48g", "NVIDIA RTX A6000", 48669 * MIB),
        Card("3090-24g", "NVIDIA GeForce RTX 3090", 24252 * MIB),
        Card("4090-24g", "NVIDIA GeForce RTX 4090", 24084 * MIB),
        Card("h100-80g", "NVIDIA H100 80GB HBM3", 81008 * MIB),
        Card("h200-141g", "NVIDIA H200", 143156 * MIB),
        Card("l40s-48g", "NVIDIA L40S", 45596 * MIB),
        Card("l4-24g", "NVIDIA L4", 22563 * MIB),
        Card("a10-24g", "NVIDIA A10", 22592 * MIB),
    )
}


def find_card(name: str) -> Card:
    """The card of a name like "a100-80g", "8xa100-80g", "A100" or "3090". Raises ValueError with the nearest names."""
    asked = name.lower().strip().removeprefix("8x")
    fits = [card for key, card in CARDS.items() if key == asked] or [
        card for key, card in CARDS.items() if key.startswith(f"{asked}-")
    ]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"{name!r} is one of several cards: choose {', '.join(card.name for card in fits)}")
    close = difflib.get_close_matches(asked, CARDS, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"no card {name!r} in the table{hint} Known: {', '.join(CARDS)}")


@dataclass(frozen=True)
class Overheads:
    """What tensors do not show, in bytes a card. None of it was measured on a card by this project: assumptions, each with its
    reason, and a margin on top.

    - `context`: CUDA context and loaded kernels, 0.4 to 0.6 GB with PyTorch on such cards.
    - `nccl`: NCCL's channel buffers: up to 32 channels of 4 MiB (NCCL_BUFFSIZE) and three protocols; none with one GPU.
    - `cublas`: PyTorch's workspace for cuBLAS, 8 MiB before and 32 MiB on Hopper (torch.backends documentation), the larger.
    - `surfaces_per_pipeline`: the pictures that NVDEC decodes into (20, the most that its references and reordering need) and
      the decoded clips of one chunk of a DALI pipeline in RGB, before they are scaled.
    - `fragments_share`: reserved and unusable, as a share of the tensors.
    - `margin_share`: of the card, left free.
    """

    context: int = 512 * MIB
    nccl: int = 384 * MIB
    cublas: int = 32 * MIB
    surfaces: int = 20
    fragments_share: float = 0.05
    margin_share: float = 0.03

    def decoder_bytes(self, *, num_pipelines: int, chunk_frames: int, height: int, width: int) -> int:
        """Of DALI's pipelines on videos of `height` x `width`; a chunk holds `chunk_frames` frames (NV12: 1.5 bytes a pixel)."""
        pixels = height * width
        return num_pipelines * (self.surfaces * pixels * 3 // 2 + chunk_frames * pixels * 3)

    def outside(self, *, world_size: int) -> int:
        """Outside of torch's allocator, decoder apart."""
        return self.context + self.cublas + (self.nccl if world_size > 1 else 0)
