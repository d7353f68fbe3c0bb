"""Widths and depths of the model sizes, and the levels of recomputation of their blocks."""

from __future__ import annotations

from typing import NamedTuple


class ModelSize(NamedTuple):
    """Widths and depths of one size of the asymmetric masked autoencoder (VideoMAE, arXiv
    2203.12602)."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int
    decoder_depth: int


MODEL_SIZES = {
    "tiny": ModelSize(192, 4, 3, 96, 3, 2),  # ours: for tests and laptops
    "small": ModelSize(384, 12, 6, 192, 3, 4),
    "base": ModelSize(768, 12, 12, 384, 6, 4),
    "large": ModelSize(1024, 24, 16, 512, 8, 12),
    "huge": ModelSize(1280, 32, 16, 640, 8, 12),
}
MLP_RATIO = 4

RECOMPUTE_LEVELS = ("none", "pointwise", "mlp")
