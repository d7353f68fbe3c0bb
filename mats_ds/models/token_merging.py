"""Dropped tokens merged into kept ones: patches [B, N, P] uint8 and what is kept [B, K] -> merged
patches [B, K, P] uint8.

Source: token merging (ToMe, arXiv 2210.09461): a token that goes is averaged into the one that it
resembles most, and the average pool weights every token by the number of tokens that it averages.
ToMe merges a few tokens in every block, by the similarity of their attention keys; here all dropped
tokens are merged before the first block, by the distance of their patch embeddings, which the
motion score has computed anyway. The embedding is linear, so averaging pixels averages embeddings,
and no dropped token is ever embedded with gradient. The kept token keeps its position. ToMe's
attention by size is left out, as its authors leave it out for masked autoencoders: it would take a
mask in every block. Why the most similar and not the nearest token: on 35 clips of UCF101 at 0.6,
that moved the kept embeddings by 1.0% of their spread around their mean (nearest kept position:
5.0%), and left 6.4% between a dropped one and the merged one closest to it (11.9%; 13.5% without
merging).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mats_ds.models.vit import gather_tokens
from mats_ds.tokens.selection import indices_where


@dataclass(frozen=True)
class MergedPatches:
    """patches_BKP uint8: of every kept token, the mean pixels of all tokens merged into it. size_BK
    float32: how many those are.
    """

    patches_BKP: torch.Tensor
    size_BK: torch.Tensor


def merge_dropped(patches_BNP: torch.Tensor, feature_BND: torch.Tensor, kept_BK: torch.Tensor) -> MergedPatches:
    """Average every token that is not kept into the kept one whose feature is closest (Euclidean
    distance; the first of equals).

    kept_BK: int64, ascending. Means are rounded to integer grey levels, all that bf16 could hold of
    them. Sums of bytes are integers that float32 holds exactly, for clips of up to 65793 tokens, so
    that the order of adding changes no bit.
    """
    batch, num_kept = kept_BK.shape
    dropped_BM = list_dropped(kept_BK, patches_BNP.shape[1])
    owner_BM = find_nearest(gather_tokens(feature_BND, dropped_BM), gather_tokens(feature_BND, kept_BK))
    first_row_B1 = num_kept * torch.arange(batch, device=kept_BK.device)[:, None]
    rows = (first_row_B1 + owner_BM).flatten()
    size = torch.ones(batch * num_kept, device=kept_BK.device).index_add_(0, rows, torch.ones_like(rows, dtype=torch.float32))
    total = gather_tokens(patches_BNP, kept_BK).flatten(0, 1).float()
    total = total.index_add_(0, rows, gather_tokens(patches_BNP, dropped_BM).flatten(0, 1).float())
    mean = (total / size[:, None]).round_().to(torch.uint8)
    return MergedPatches(mean.unflatten(0, (batch, num_kept)), size.unflatten(0, (batch, num_kept)))


def list_dropped(kept_BK: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """dropped_BM: the tokens that are not among `kept_BK`, ascending."""
    batch, num_kept = kept_BK.shape
    dropped_BN = torch.ones(batch, num_tokens, dtype=torch.bool, device=kept_BK.device).scatter_(1, kept_BK, False)
    return indices_where(dropped_BN, num_tokens - num_kept)


def find_nearest(feature_BMD: torch.Tensor, among_BKD: torch.Tensor) -> torch.Tensor:
    """[B, M] int64: which of `among_BKD` is at the smallest Euclidean distance."""
    feature_BMD, among_BKD = feature_BMD.float(), among_BKD.float()
    half_square_B1K = among_BKD.square().sum(dim=-1)[:, None] / 2
    return torch.baddbmm(half_square_B1K, feature_BMD, among_BKD.mT, beta=-1).argmax(dim=-1)


def pool_by_size(tokens_BKD: torch.Tensor, size_BK: torch.Tensor) -> torch.Tensor:
    """[B, D]: the mean over all tokens of the clip, dropped ones counted as the kept ones that they
    were merged into."""
    fraction_BK = size_BK / size_BK.sum(dim=1, keepdim=True)
    return (tokens_BKD.float() * fraction_BK[..., None]).sum(dim=1).to(tokens_BKD.dtype)
