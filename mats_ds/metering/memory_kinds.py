"""Memory of one rank by kind: what is static, what a step needs, and what lies outside. Bytes in, bytes by kind out.

    weights gradients master_weights moments buckets | clips activations | cache | outside
    `------- static, from the engine's tensors ----'   `- allocated peak -'  reserved  the card's used bytes, by NVML

Activations are what is left of torch's allocated peak: saved activations, temporaries, batches that wait. `cache` is reserved
by torch's allocator but not allocated at the peak. `outside` is the CUDA context, NCCL's and cuBLAS' buffers, DALI's memory, and
every other process on the card.
"""

from __future__ import annotations

from collections.abc import Mapping

CLIPS, ACTIVATIONS, CACHE, OUTSIDE = "clips", "activations", "cache", "outside"
ON_HOST = "host_"  # prefix of static kinds that are offloaded
WORDS = {
    "weights": "weights",
    "gradients": "gradients",
    "master_weights": "fp32 weights (optimizer partition)",
    "moments": "AdamW moments (optimizer partition)",
    "buckets": "communication buckets",
    CLIPS: "clips of the micro-batch",
    ACTIVATIONS: "activations and temporaries",
    CACHE: "allocator's cache and fragments",
    OUTSIDE: "outside torch (CUDA, NCCL, DALI)",
}


def on_device(static_bytes: Mapping[str, int]) -> dict[str, int]:
    """The static kinds that are on the card."""
    return {kind: size for kind, size in static_bytes.items() if not kind.startswith(ON_HOST)}


def left_for_activations(static_bytes: Mapping[str, int], *, peak_allocated_bytes: int, clip_bytes: int) -> int:
    """What is neither static nor clips of an allocated peak; never below 0."""
    return max(0, peak_allocated_bytes - sum(on_device(static_bytes).values()) - clip_bytes)


def split_peak(
    static_bytes: Mapping[str, int],
    *,
    peak_allocated_bytes: int,
    peak_reserved_bytes: int,
    clip_bytes: int = 0,
    used_bytes: int | None = None,
) -> dict[str, int]:
    """A measured peak by kind, in the order of WORDS; the kinds add up to the larger of reserved and used bytes.

    Where the static kinds are more than was allocated (a partition that is made late) activations are 0 and the sum is larger.
    `used_bytes` None: the driver told nothing, there is no `outside`.
    """
    activation_bytes = left_for_activations(static_bytes, peak_allocated_bytes=peak_allocated_bytes, clip_bytes=clip_bytes)
    kinds = on_device(static_bytes) | {CLIPS: clip_bytes, ACTIVATIONS: activation_bytes}
    kinds[CACHE] = max(0, peak_reserved_bytes - max(peak_allocated_bytes, sum(kinds.values())))
    if used_bytes is not None:
        kinds[OUTSIDE] = max(0, used_bytes - peak_reserved_bytes)
    return kinds


def name_kind(kind: str) -> str:
    """A kind in words."""
    if kind.startswith(ON_HOST):
        return f"{name_kind(kind.removeprefix(ON_HOST))}, on the host"
    return WORDS.get(kind, kind.replace("_", " "))
