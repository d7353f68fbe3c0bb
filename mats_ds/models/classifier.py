"""The video classifier with motion-aware token selection: frames [B, T, H, W, 3] uint8 -> logits
[B, classes].

Source: arXiv 2211.10636 (METHOD section 2: all int(0.6 N) kept tokens go through the encoder) on
VideoMAE's fine-tuning model (arXiv 2203.12602): no class token, the encoder's final norm is gone,
tokens are averaged, normalised (`fc_norm`) and classified by one linear layer. `patch_embed` and
`encoder.blocks` bear the names of the masked autoencoder, so that pre-trained weights load as a
plain subset.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from mats_ds.core.format import format_count
from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO, TokenGrid, TokenPruning
from mats_ds.models.layers import NORM_EPS, KeepsTables, init_linear, make_positions
from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.models.token_merging import pool_by_size
from mats_ds.models.token_pruning import PrunedClip, prune_clip
from mats_ds.models.vit import UINT8_MAX, PatchEmbed, Transformer, embed_patches, gather_tokens
from mats_ds.tokens.frames import select_fullest_frames

HEAD_INIT_STD = 0.02  # VideoMAE's
HEAD_INIT_SCALE = 0.001  # VideoMAE's factor on the fresh head


@dataclass(frozen=True)
class EncodedClip:
    """The encoder's output: tokens_BKD, index_BK int64 (which tokens of the frames used they are),
    tubelets_BT int64 (which tubelets of the candidates those frames are). size_BK float32: how many
    tokens each of them averages, where dropped ones are merged.
    """

    tokens_BKD: torch.Tensor
    index_BK: torch.Tensor
    tubelets_BT: torch.Tensor
    size_BK: torch.Tensor | None = None


class VideoClassifier(KeepsTables):
    """Classifier of one size on one token grid; build it with `from_name`."""

    def __init__(
        self,
        *,
        grid: TokenGrid,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        class_names: Sequence[str] = (),
        pruning: TokenPruning | None = None,
        candidate_grid: TokenGrid | None = None,
        position_grid: TokenGrid | None = None,
        head_dropout: float = 0.0,
        head_init_scale: float = HEAD_INIT_SCALE,
        drop_path: float = 0.0,
        recompute: str = "none",
        checkpoint_blocks: str | int = "none",
        **options: Any,
    ) -> None:
        """pruning, options, candidate_grid, position_grid: as for the masked autoencoder, with 0.6
        of the tokens kept; all kept tokens are visible. `keep_ratio` 1 keeps all tokens and scores
        nothing. `merge_dropped` averages every dropped token into the kept one that it resembles
        most (arXiv 2210.09461).
        Raises ValueError for options that do not go together.
        """
        super().__init__()
        self.grid, self.candidate_grid, self.position_grid = grid, candidate_grid or grid, position_grid or grid
        check_classes(num_classes, class_names)
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        pruning = replace(pruning or TokenPruning().keeping(FINETUNE_KEEP_RATIO), **options)
        self.pruning = pruning.keeping(pruning.keep_ratio)
        self.pruning.check_finetuning(grid, self.candidate_grid)
        self.patch_embed = PatchEmbed(grid, width)
        policy = {"recompute": recompute, "checkpoint_blocks": checkpoint_blocks}
        self.encoder = Transformer(width, depth, heads, drop_path=drop_path, **policy)
        # pre-training's last norm gives way to fc_norm, after the pooling
        self.encoder.norm = nn.Identity()
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head_dropout = nn.Dropout(head_dropout)
        self.class_head = nn.Linear(width, num_classes)
        self.register_buffer("positions_ND", make_positions(grid, width, made_for=position_grid), persistent=False)
        # As pre-training begins, at any width. VideoMAE starts every linear layer of fine-tuning at
        # a deviation of 0.02, which is for wide models: at width 192 a run from scratch was still
        # at chance after 320 steps.
        self.encoder.apply(init_linear)
        nn.init.trunc_normal_(self.class_head.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.class_head.bias)
        with torch.no_grad():
            self.class_head.weight.mul_(head_init_scale)

    @classmethod
    def from_name(cls, name: str, *, num_classes: int, grid: TokenGrid | None = None, **options: Any) -> VideoClassifier:
        """A classifier of size "tiny", "small", "base", "large" or "huge" on `grid` (16 x 224 x 224
        if None).

        `options` are the constructor's. Raises ValueError for an unknown name.
        """
        if name not in MODEL_SIZES:
            raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODEL_SIZES)}")
        size = MODEL_SIZES[name]
        return cls(
            grid=grid or TokenGrid(), width=size.width, depth=size.depth, heads=size.heads, num_classes=num_classes, **options
        )

    def forward(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        """logits [B, classes]. Arguments and errors as for `encode`."""
        return self.class_head(self.head_dropout(self.features(frames_BTHWC, seed_B)))

    def features(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        """features_BD: the input of the head. Arguments and errors as for `encode`."""
        return self.pool(self.encode(frames_BTHWC, seed_B))

    def pool(self, encoded: EncodedClip) -> torch.Tensor:
        """features_BD: the normalised mean of the kept tokens; with `merge_dropped` the mean of
        all, each dropped one counted as the one that it was merged into.
        """
        if encoded.size_BK is None:
            return self.fc_norm(encoded.tokens_BKD.mean(dim=1))
        return self.fc_norm(pool_by_size(encoded.tokens_BKD, encoded.size_BK))

    def encode(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> EncodedClip:
        """All kept tokens after the encoder's blocks, and where they come from.

        frames_BTHWC: uint8 RGB of the candidate grid's size. seed_B: int64 random seed of each
        clip, for strategies that sample tokens and, in training, for the sampling of frames; None
        samples seeds from torch's global generator in training and is one fixed seed in evaluation
        mode, which also takes the fullest frames instead of sampling: the same clip then always
        gives the same output. Raises ValueError for frames of another shape or type.
        """
        chosen = self.choose(frames_BTHWC, seed_B)
        index_BK = chosen.selection.visible_BV
        if chosen.merged is None:
            patches_BKP, size_BK = gather_tokens(chosen.patches_BNP, index_BK), None
        else:
            patches_BKP, size_BK = chosen.merged.patches_BKP, chosen.merged.size_BK
        how = {"positions_ND": self.positions_ND, "recompute": self.encoder.recompute}
        tokens_BKD = embed_patches(self.patch_embed, patches_BKP, index_BK, **how)
        return EncodedClip(self.encoder(tokens_BKD), index_BK, chosen.tubelets_BT, size_BK)

    def choose(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> PrunedClip:
        """The frames and tokens that are computed; all kept tokens are visible, the `target_BM` of
        the selection are dropped."""
        if seed_B is None and not self.training:
            seed_B = torch.zeros(len(frames_BTHWC), dtype=torch.int64, device=frames_BTHWC.device)
        return prune_clip(
            frames_BTHWC,
            pruning=self.pruning,
            grid=self.grid,
            candidate_grid=self.candidate_grid,
            motion_feature=self.motion_feature,
            seed_B=seed_B,
            pick_frames=None if self.training else select_fullest_frames,
        )

    def motion_feature(self, patches_BNP: torch.Tensor) -> torch.Tensor:
        """The features whose distances are the motion: patch embeddings, or pixels (0 to 1)."""
        return self.patch_embed(patches_BNP) if self.pruning.feature == "embedding" else patches_BNP.float() / UINT8_MAX

    @property
    def keep_ratio(self) -> float:
        """The fraction of the tokens that is kept."""
        return self.pruning.keep_ratio

    def with_keep_ratio(self, keep_ratio: float) -> VideoClassifier:
        """A classifier with the same weights, shared, that keeps another fraction of the tokens.

        Raises ValueError for an impossible fraction.
        """
        other = copy.copy(self)
        other.pruning = self.pruning.keeping(keep_ratio)
        other.pruning.check_finetuning(self.grid, self.candidate_grid)
        return other


def check_classes(num_classes: int, class_names: Sequence[str]) -> None:
    """Raises ValueError for no class, or another number of names than of classes."""
    if num_classes < 1:
        raise ValueError(f"num_classes is at least 1, got {num_classes}")
    if class_names and len(class_names) != num_classes:
        raise ValueError(
            f"{format_count(len(class_names), 'class name')} for {format_count(num_classes, 'class')}: give one name a "
            "class, or none"
        )
