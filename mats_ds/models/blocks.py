"""The transformer block of VideoMAE's ViT: tokens [B, N, D] -> tokens [B, N, D].

Pre-norm, bias on q and v and none on k, GELU, LayerNorm eps 1e-6 (VideoMAE, arXiv 2203.12602). Attention is
`scaled_dot_product_attention`; no N x N matrix is ever kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath, Mlp
from torch import nn

from mats_ds.config import MLP_RATIO

NORM_EPS = 1e-6


class QueryKeyValue(nn.Module):
    """One projection to queries, keys and values: [B, N, D] -> [B, N, 3D]; q and v have a bias, k's would cancel in
    the softmax.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(tokens_BND, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = QueryKeyValue(width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        query, key, value = rearrange(self.qkv(tokens_BND), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and a residual connection."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, MLP_RATIO * width)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        tokens_BND = tokens_BND + self.drop_path(self.attn(self.norm1(tokens_BND)))
        return tokens_BND + self.drop_path(self.mlp(self.norm2(tokens_BND)))


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer, as VideoMAE starts; LayerNorm keeps ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sine_cosine_positions(num_tokens: int, width: int) -> torch.Tensor:
    """positions_ND, float32: the fixed one-dimensional sine-cosine table over the token sequence.

    Source: "Attention is all you need", arXiv 1706.03762, section 3.5, over the flattened time-major tokens as in VideoMAE.
    """
    place = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    channel = torch.arange(width, dtype=torch.float64)[None, :]
    angle = place / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
