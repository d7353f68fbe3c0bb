"""The transformer block of VideoMAE's ViT: tokens [B, N, D] -> tokens [B, N, D].

Pre-norm, bias on q and v and none on k, GELU, LayerNorm eps 1e-6 (VideoMAE, arXiv 2203.12602).
Attention is `scaled_dot_product_attention`; no N x N matrix is ever kept.

What a block keeps for backward is a choice (`RECOMPUTE_LEVELS`), in units of one [N, D] activation:
- "none": 16, nothing is computed twice;
- "pointwise": 10, LayerNorm and GELU are computed again, no matrix product is;
- "mlp": 6, the first layer of the MLP too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.sizes import MLP_RATIO, RECOMPUTE_LEVELS

NORM_EPS = 1e-6
ROWS_AT_ONCE = 16_384  # of a table of positions, in float64 until it is stored


def recompute_in_backward(part: Callable[..., Any], *inputs: torch.Tensor) -> Any:
    """`part(*inputs)`, of which only the inputs are kept: backward runs it again, up to the last
    value that it needs.

    So a matrix product at the end of `part` is not computed twice. `part` must use no random
    numbers.
    """
    return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)


def level_now(module: nn.Module, recompute: str) -> str:
    """The level that counts in this forward pass: without gradient nothing is kept anyway, and a
    compiler is told otherwise to recompute point-wise functions (models/compiling.py).
    """
    if not (module.training and torch.is_grad_enabled()):
        return "none"
    return "none" if recompute == "pointwise" and torch.compiler.is_compiling() else recompute


class QueryKeyValue(nn.Module):
    """One projection to queries, keys and values; q and v have a bias, k's would cancel in the
    softmax."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, tokens_BND: torch.Tensor, first: int = 0, last: int = 2) -> tuple[torch.Tensor, ...]:
        """Of (query, key, value), each [B, N, D], those from number `first` to number `last`."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        rows = slice(first * len(self.q_bias), (last + 1) * len(self.q_bias))
        return F.linear(tokens_BND, self.weight[rows], bias[rows]).chunk(last + 1 - first, dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = QueryKeyValue(width)
        self.proj = nn.Linear(width, width)

    def mix(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[B, Q, D]: for each query the values of all tokens, weighted, and the output
        projection."""
        query, key, value = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        return self.mix(*self.qkv(tokens_BND))


class Mlp(nn.Module):
    """Two linear layers with GELU between them, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def activate(self, hidden_BNH: torch.Tensor) -> torch.Tensor:
        """The second half, from fc1's output on."""
        return self.fc2(F.gelu(hidden_BNH))

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        return self.activate(self.fc1(tokens_BND))


def make_drop_path(rate: float) -> nn.Module:
    """timm's stochastic depth."""
    from timm.layers import DropPath  # with torchvision and torch's compiler: 3 s on every rank, which few need

    return DropPath(rate)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and a residual connection."""

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0, recompute: str = "none") -> None:
        super().__init__()
        if recompute not in RECOMPUTE_LEVELS:
            raise ValueError(f"recompute is one of {', '.join(RECOMPUTE_LEVELS)}, got {recompute!r}")
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, MLP_RATIO * width)
        self.drop_path = make_drop_path(drop_path) if drop_path else nn.Identity()
        self.recompute = recompute

    def sample_branch_scales(self, tokens_BND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two factors [B, 1, 1], of attention and MLP: 0 for a clip that leaves the branch out
        (drop path), else so much above 1 that the mean stays."""
        ones_B11 = tokens_BND.new_ones(len(tokens_BND), 1, 1)
        return self.drop_path(ones_B11), self.drop_path(ones_B11)

    def forward(
        self,
        tokens_BND: torch.Tensor,
        num_queries: int | None = None,
        branch_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """[B, Q, D]: what becomes of the last `num_queries` tokens (of all if None); every token is
        attended to.

        `branch_scales`: of `sample_branch_scales`, None to leave no branch out. They are sampled
        outside, so that the block itself uses no random numbers: it can be computed again in
        backward without the state of the generator, and compiled once for all depths.
        """
        level = level_now(self, self.recompute)
        if num_queries is None:
            query, key, value = self._project(tokens_BND, level, 0, 2)
        else:
            key, value = self._project(tokens_BND, level, 1, 2)
            tokens_BND = tokens_BND[:, -num_queries:]
            (query,) = self._project(tokens_BND, level, 0, 0)
        attended = self.attn.mix(query, key, value)
        if branch_scales is None:
            tokens_BND = tokens_BND + attended
            return tokens_BND + self._expand_and_contract(tokens_BND, level)
        tokens_BND = tokens_BND + attended * branch_scales[0]
        return tokens_BND + self._expand_and_contract(tokens_BND, level) * branch_scales[1]

    def _project(self, tokens_BND: torch.Tensor, level: str, first: int, last: int) -> tuple[torch.Tensor, ...]:
        def project(tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.attn.qkv(self.norm1(tokens), first, last)

        # A compiler that is asked to recompute this would recompute all of it, the product
        # included.
        if level == "none" or torch.compiler.is_compiling():
            return project(tokens_BND)
        return recompute_in_backward(project, tokens_BND)

    def _expand_and_contract(self, tokens_BND: torch.Tensor, level: str) -> torch.Tensor:
        def expand(tokens: torch.Tensor) -> torch.Tensor:
            return self.mlp.fc1(self.norm2(tokens))

        if level == "none":
            return self.mlp.activate(expand(tokens_BND))
        if level == "pointwise":
            return recompute_in_backward(self.mlp.activate, recompute_in_backward(expand, tokens_BND))
        return recompute_in_backward(lambda tokens: self.mlp.activate(expand(tokens)), tokens_BND)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer, as VideoMAE starts; LayerNorm
    keeps ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sine_cosine_positions(num_tokens: int, width: int) -> torch.Tensor:
    """positions_ND, float32: the fixed one-dimensional sine-cosine table over the token sequence.

    Source: "Attention is all you need", arXiv 1706.03762, section 3.5, over the flattened
    time-major tokens as in VideoMAE.
    """
    positions_ND = torch.empty(num_tokens, width, dtype=torch.float32)
    channel = torch.arange(width, dtype=torch.float64)[None, :]
    divisor = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    for start in range(0, num_tokens, ROWS_AT_ONCE):
        rows_nD = positions_ND[start : start + ROWS_AT_ONCE]
        angle = torch.arange(start, start + len(rows_nD), dtype=torch.float64)[:, None] / divisor
        rows_nD.copy_(torch.where(channel % 2 == 0, angle.sin(), angle.cos()))
    return positions_ND


def make_positions(grid: TokenGrid, width: int, *, made_for: TokenGrid | None = None) -> torch.Tensor:
    """positions_ND, float32, of a model on `grid`: the sine-cosine table of `made_for` (None:
    `grid` itself), resized to it."""
    source = made_for or grid
    return interpolate_positions(sine_cosine_positions(source.num_tokens, width), source, grid)


def interpolate_positions(positions_ND: torch.Tensor, source_grid: TokenGrid, target_grid: TokenGrid) -> torch.Tensor:
    """positions_ND of the target grid, of the source's type; the very same tensor where both grids
    have as many tokens a side.

    positions_ND: one row for each token of `source_grid`, time-major. Space is resized first
    (bicubic), then time (linear).
    Raises ValueError when the table has another number of rows than the source grid has tokens.
    """
    if positions_ND.shape[0] != source_grid.num_tokens:
        raise ValueError(
            f"the position table has {positions_ND.shape[0]} rows but its grid has {source_grid.num_tokens} tokens: {source_grid}"
        )
    source, target = sides(source_grid), sides(target_grid)
    if source == target:
        return positions_ND
    maps = rearrange(positions_ND.float(), "(t h w) d -> t d h w", t=source[0], h=source[1], w=source[2])
    if source[1:] != target[1:]:
        maps = F.interpolate(maps, size=target[1:], mode="bicubic", align_corners=False)
    if source[0] != target[0]:
        lines = rearrange(maps, "t d h w -> (h w) d t")
        lines = F.interpolate(lines, size=target[0], mode="linear", align_corners=False)
        maps = rearrange(lines, "(h w) d t -> t d h w", h=target[1])
    return rearrange(maps, "t d h w -> (t h w) d").to(positions_ND.dtype)


def sides(grid: TokenGrid) -> tuple[int, int, int]:
    """(tau, rows, columns): two grids with the same sides number their tokens the same way,
    whatever the size of their tubelets.
    """
    return grid.tau, grid.rows, grid.columns


class KeepsTables(nn.Module):
    """A module whose buffers (position tables, input constants) keep their type when its parameters
    are cast.

    DeepSpeed casts parameters only: under bf16 its engine adds float32 positions and folds float32
    constants into the patch embedding. `module.to(torch.bfloat16)` would cast buffers as well, and
    a model outside the engine would compute other numbers than the one that was trained.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *arguments: Any, **options: Any) -> KeepsTables:
        tables = dict(self._buffers)
        super()._apply(fn, *arguments, **options)
        for name, table in tables.items():
            moved = self._buffers[name]
            if table is not None and moved.dtype != table.dtype:
                self._buffers[name] = table.to(moved.device)
        return self
