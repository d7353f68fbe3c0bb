"""How many DALI pipelines a GPU gets, and how much page-locked host memory they can take.

One pipeline keeps one NVDEC engine busy: 45 frames/s of 1080p with one pipeline, 275 with seven, on a card with seven engines
(DALI issue 6387). No public call tells the number of engines, so it is looked up by the card's name.
"""

from __future__ import annotations

import torch

from mats_ds.data.assembly import MAX_CHUNK_BYTES, MAX_CHUNK_CLIPS
from mats_ds.data.routes import MAX_ENCODED_BYTES

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
# Of any other card: even on one engine a second pipeline overlaps its work on the host with the first one's decoding.
DEFAULT_GRAPHS = 2
MAX_GRAPHS = 16


def choose_num_graphs(device: torch.device, *, asked: int | None = None) -> int:
    """DALI pipelines for a device: `asked`, or one for each engine of the card, DEFAULT_GRAPHS where they are not known.

    Raises ValueError when `asked` is not between 1 and MAX_GRAPHS.
    """
    if asked is not None and not 1 <= asked <= MAX_GRAPHS:
        raise ValueError(f"the number of DALI pipelines is between 1 and {MAX_GRAPHS}, got {asked}: one for each NVDEC engine")
    if asked is not None:
        return asked
    if device.type != "cuda":
        return DEFAULT_GRAPHS
    return num_engines(torch.cuda.get_device_name(device)) or DEFAULT_GRAPHS


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


def pinned_bytes_bound(num_graphs: int, *, micro_batch: int) -> int:
    """What DALI's pipelines can hold in page-locked host memory at once, in bytes.

    A pipeline holds one chunk at a time, and of that only the encoded files lie in host memory; pictures are decoded, cropped
    and scaled on the GPU. A chunk is closed at MAX_CHUNK_CLIPS clips or as soon as it exceeds MAX_CHUNK_BYTES, by one file of
    MAX_ENCODED_BYTES at most. As much again is allowed for blocks that DALI's pool keeps. In practice it is far less: eight
    files of 1 MB are 8 MB a pipeline.
    """
    chunk_bytes = min(MAX_CHUNK_BYTES + MAX_ENCODED_BYTES, min(micro_batch, MAX_CHUNK_CLIPS) * MAX_ENCODED_BYTES)
    return 2 * num_graphs * chunk_bytes
