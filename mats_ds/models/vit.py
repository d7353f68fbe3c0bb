"""From pixels to encoded tokens: patches [B, V, P] uint8 -> tokens [B, V, D].

`PatchEmbed` is the Conv3d of kernel = stride = tubelet written as a linear layer, so that it can
embed any gathered part of the patches. `Transformer` is a stack of blocks with a checkpointing
policy, used for encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from mats_ds.core.token_grid import RGB_CHANNELS, TokenGrid
from mats_ds.models.layers import NORM_EPS, Block, KeepsTables, level_now, recompute_in_backward

# ImageNet's colour statistics, the normalisation that VideoMAE and MATS use.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UINT8_MAX = 255.0


def split_patches(frames_BTHWC: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """patches_BNP of the frames' own type: tokens time-major, the values of a patch in the order
    (frame, row, column, colour).

    Raises ValueError when the frames are not [B, T, H, W, 3] of the grid's size.
    """
    expected = (grid.num_frames, grid.height, grid.width, RGB_CHANNELS)
    if frames_BTHWC.ndim != 5 or tuple(frames_BTHWC.shape[1:]) != expected:
        raise ValueError(f"frames must be [B, T, H, W, C] = [B, {', '.join(map(str, expected))}], got {list(frames_BTHWC.shape)}")
    p0, p1, p2 = grid.tubelet
    return rearrange(frames_BTHWC, "b (t p0) (h p1) (w p2) c -> b (t h w) (p0 p1 p2 c)", p0=p0, p1=p1, p2=p2)


def join_patches(patches_BNP: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """frames_BTHWC: the inverse of `split_patches`."""
    p0, p1, p2 = grid.tubelet
    pattern = "b (t h w) (p0 p1 p2 c) -> b (t p0) (h p1) (w p2) c"
    return rearrange(patches_BNP, pattern, t=grid.tau, h=grid.rows, w=grid.columns, p0=p0, p1=p1, p2=p2)


def gather_tokens(values_BNX: torch.Tensor, index_BK: torch.Tensor) -> torch.Tensor:
    """[B, K, X]: row `index_BK[b, k]` of clip b."""
    return values_BNX.gather(1, index_BK[..., None].expand(-1, -1, values_BNX.shape[-1]))


class PatchEmbed(KeepsTables):
    """patches [B, K, P] uint8 -> embedding [B, K, D].

    Dividing by 255 and ImageNet's normalisation are folded into the weights: pixels stay exact in
    bf16 and no normalised copy of the clip exists.
    """

    def __init__(self, grid: TokenGrid, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(grid.patch_values, width)
        repeats = grid.patch_values // RGB_CHANNELS
        std = torch.tensor(IMAGENET_STD).repeat(repeats)
        self.register_buffer("scale_P", 1 / (UINT8_MAX * std), persistent=False)
        self.register_buffer("shift_P", -torch.tensor(IMAGENET_MEAN).repeat(repeats) / std, persistent=False)

    def forward(self, patches_BKP: torch.Tensor) -> torch.Tensor:
        weight, bias = self.proj.weight.float(), self.proj.bias.float()
        dtype = self.proj.weight.dtype
        folded_bias = bias + weight @ self.shift_P.float()
        return F.linear(patches_BKP.to(dtype), (weight * self.scale_P.float()).to(dtype), folded_bias.to(dtype))


def embed_patches(
    patch_embed: PatchEmbed, patches_BKP: torch.Tensor, index_BK: torch.Tensor, *, positions_ND: torch.Tensor, recompute: str
) -> torch.Tensor:
    """tokens_BKD: patches embedded, with the positions of the tokens `index_BK`. Unless `recompute`
    is "none", backward keeps the patches' bytes and not the floats made of them.
    """
    if level_now(patch_embed, recompute) == "none":
        tokens_BKD = patch_embed(patches_BKP)
    else:
        tokens_BKD = recompute_in_backward(patch_embed, patches_BKP)
    return tokens_BKD + positions_ND[index_BK].to(tokens_BKD.dtype)


def checkpointed_blocks(depth: int, policy: str | int) -> tuple[bool, ...]:
    """For each of `depth` blocks whether its activations are recomputed in backward: "none", "all",
    or n for every n-th block."""
    if policy == "none":
        return (False,) * depth
    every = 1 if policy == "all" else int(policy)
    if every < 1:
        raise ValueError(f"checkpoint_blocks is none, all, or n >= 1 for every n-th block, got {policy!r}")
    return tuple((index + 1) % every == 0 for index in range(depth))


def compute_block(
    block: Block,
    tokens_BND: torch.Tensor,
    num_queries: int | None,
    branch_scales: tuple[torch.Tensor, torch.Tensor] | None,
    keeps_input_only: bool,
) -> torch.Tensor:
    """What `block` returns for these arguments; `keeps_input_only`: backward computes it again. One
    function, so that a compiler meets checkpointing inside what it compiles."""
    if keeps_input_only:
        return checkpoint(block, tokens_BND, num_queries, branch_scales, use_reentrant=False, preserve_rng_state=False)
    return block(tokens_BND, num_queries, branch_scales)


class Transformer(nn.Module):
    """Blocks and a final LayerNorm, [B, N, D] -> [B, N, D].

    `compute_in_training`: `compute_block`, or the same compiled (models/compiling.py); evaluation,
    whose shapes may change, never uses it.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        drop_path: float = 0.0,
        recompute: str = "none",
        checkpoint_blocks: str | int = "none",
    ) -> None:
        super().__init__()
        self.checkpointed = checkpointed_blocks(depth, checkpoint_blocks)
        # nothing is recomputed twice
        levels = ("none" if checkpointed else recompute for checkpointed in self.checkpointed)
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, heads, drop_path=rate, recompute=level) for rate, level in zip(rates, levels, strict=True)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.recompute = recompute
        self.drop_rates = rates
        self.compute_in_training = compute_block

    def forward(
        self,
        tokens_BND: torch.Tensor,
        *,
        num_outputs: int | None = None,
        then: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The encoded tokens [B, N, D]; of the last `num_outputs` alone if given: the last block
        then has no other queries.

        `then` is applied to them; what it needs of the LayerNorm is recomputed with it.
        """
        last = len(self.blocks) - 1
        keeps = self.training and torch.is_grad_enabled()
        compute = self.compute_in_training if keeps else compute_block
        for index, (block, checkpointed) in enumerate(zip(self.blocks, self.checkpointed, strict=True)):
            num_queries = num_outputs if index == last else None
            drops = self.training and self.drop_rates[index] > 0
            scales = block.sample_branch_scales(tokens_BND) if drops else None
            tokens_BND = compute(block, tokens_BND, num_queries, scales, checkpointed and keeps)

        def read_out(tokens: torch.Tensor) -> torch.Tensor:
            normed = self.norm(tokens)
            return normed if then is None else then(normed)

        if then is not None and level_now(self, self.recompute) != "none":
            return recompute_in_backward(read_out, tokens_BND)
        return read_out(tokens_BND)
