"""The video classifier with motion-aware token selection: frames [B, T, H, W, 3] uint8 -> logits [B, classes].

Source: arXiv 2211.10636 (METHOD section 2: all int(0.6 N) kept tokens go through the encoder) on VideoMAE's fine-tuning model
(arXiv 2203.12602): no class token, the encoder's final norm is gone, tokens are averaged, normalised (`fc_norm`) and
classified by one linear layer. `patch_embed` and `encoder.blocks` bear the names of the masked autoencoder, so that
pre-trained weights load as a plain subset.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mats_ds.core.token_grid import RUN_THRESHOLD, TokenGrid, count_tokens
from mats_ds.models.layers import NORM_EPS, KeepsTables, init_linear, make_positions
from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.models.token_merging import pool_by_size
from mats_ds.models.token_pruning import PrunedClip, prune_clip
from mats_ds.models.vit import UINT8_MAX, PatchEmbed, Transformer, embed_chosen, embed_patches
from mats_ds.tokens.frames import select_fullest_frames
from mats_ds.tokens.motion import check_compensation

HEAD_INIT_STD = 0.02  # VideoMAE's
HEAD_INIT_SCALE = 0.001  # VideoMAE's factor on the fresh head


@dataclass(frozen=True)
class EncodedClip:
    """The encoder's output: tokens_BKD, index_BK int64 (which tokens of the frames used they are), tubelets_BT int64 (which
    tubelets of the candidates those frames are). size_BK float32: how many tokens each stands for, where dropped ones are merged.
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
        strategy: str = "mats",
        keep_ratio: float = 0.6,
        distance: str = "l2",
        feature: str = "embedding",
        candidate_grid: TokenGrid | None = None,
        position_grid: TokenGrid | None = None,
        head_dropout: float = 0.0,
        head_init_scale: float = HEAD_INIT_SCALE,
        compensate_camera: bool = False,
        run_threshold: float = RUN_THRESHOLD,
        merge_dropped: bool = False,
        **encoder_options: Any,
    ) -> None:
        """strategy, distance, feature, candidate_grid, position_grid, compensate_camera, run_threshold: as for the masked
        autoencoder; `keep_ratio` 1 keeps all tokens and scores nothing. `merge_dropped` averages every dropped token into the
        kept one that it resembles most (arXiv 2210.09461). `encoder_options` are the Transformer's (drop_path, recompute,
        checkpoint_blocks).
        Raises ValueError for options that do not go together.
        """
        super().__init__()
        self.grid, self.candidate_grid, self.position_grid = grid, candidate_grid or grid, position_grid or grid
        check_options(num_classes, class_names, keep_ratio, feature, adaptive=self.candidate_grid.tau > grid.tau)
        if compensate_camera:
            check_compensation(distance=distance, strategy=strategy)
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.strategy, self.keep_ratio = strategy, keep_ratio
        self.distance, self.feature = distance, feature
        self.compensate_camera, self.run_threshold, self.merge_dropped = compensate_camera, run_threshold, merge_dropped
        self.patch_embed = PatchEmbed(grid, width)
        self.encoder = Transformer(width, depth, heads, **encoder_options)
        self.encoder.norm = nn.Identity()  # pre-training's last norm gives way to fc_norm, after the pooling
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head_dropout = nn.Dropout(head_dropout)
        self.class_head = nn.Linear(width, num_classes)
        self.register_buffer("positions_ND", make_positions(grid, width, made_for=position_grid), persistent=False)
        # As pre-training begins, at any width. VideoMAE starts every linear layer of fine-tuning at a deviation of 0.02, which is
        # for wide models: at width 192 a run from scratch was still at chance after 320 steps.
        self.encoder.apply(init_linear)
        nn.init.trunc_normal_(self.class_head.weight, std=HEAD_INIT_STD)
        nn.init.zeros_(self.class_head.bias)
        with torch.no_grad():
            self.class_head.weight.mul_(head_init_scale)

    @classmethod
    def from_name(cls, name: str, *, num_classes: int, grid: TokenGrid | None = None, **options: Any) -> VideoClassifier:
        """A classifier of size "tiny", "small", "base", "large" or "huge" on `grid` (16 x 224 x 224 if None).

        `options` are the constructor's. Raises ValueError for an unknown name.
        """
        if name not in MODEL_SIZES:
            raise ValueError(f"unknown model {name!r}: choose one of {', '.join(MODEL_SIZES)}")
        size = MODEL_SIZES[name]
        return cls(
            grid=grid or TokenGrid(), width=size.width, depth=size.depth, heads=size.heads, num_classes=num_classes, **options
        )

    def with_keep_ratio(self, keep_ratio: float) -> VideoClassifier:
        """A classifier with the same weights, shared, that keeps another fraction of the tokens.

        Raises ValueError for an impossible fraction.
        """
        check_options(self.num_classes, (), keep_ratio, self.feature, adaptive=self.candidate_grid.tau > self.grid.tau)
        if count_tokens(keep_ratio, self.grid.num_tokens) < 1:
            raise ValueError(f"keep_ratio {keep_ratio} of {self.grid.num_tokens} tokens is no token at all")
        other = copy.copy(self)
        other.keep_ratio = keep_ratio
        return other

    def forward(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        """logits [B, classes]. Arguments and errors as for `encode`."""
        return self.class_head(self.head_dropout(self.features(frames_BTHWC, seed_B)))

    def features(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        """features_BD: what the head sees. Arguments and errors as for `encode`."""
        return self.pool(self.encode(frames_BTHWC, seed_B))

    def pool(self, encoded: EncodedClip) -> torch.Tensor:
        """features_BD: the normalised mean of the kept tokens; with `merge_dropped` the mean of all, each dropped one counted as
        the one that it was merged into.
        """
        if encoded.size_BK is None:
            return self.fc_norm(encoded.tokens_BKD.mean(dim=1))
        return self.fc_norm(pool_by_size(encoded.tokens_BKD, encoded.size_BK))

    def encode(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> EncodedClip:
        """All kept tokens after the encoder's blocks, and where they come from.

        frames_BTHWC: uint8 RGB of the candidate grid's size. seed_B: int64 random key of each clip, for strategies that draw
        tokens and, in training, for the draw of frames; None draws keys from torch's global generator in training and is
        one fixed key in evaluation mode, which also takes the fullest frames instead of drawing: the same clip then always
        gives the same output. Raises ValueError for frames of another shape or type.
        """
        chosen = self.choose(frames_BTHWC, seed_B)
        index_BK = chosen.selection.visible_BV
        how = {"positions_ND": self.positions_ND, "recompute": self.encoder.recompute}
        if chosen.merged is None:
            tokens_BKD = embed_chosen(self.patch_embed, chosen.patches_BNP, index_BK, **how)
            return EncodedClip(self.encoder(tokens_BKD), index_BK, chosen.tubelets_BT)
        tokens_BKD = embed_patches(self.patch_embed, chosen.merged.patches_BKP, index_BK, **how)
        return EncodedClip(self.encoder(tokens_BKD), index_BK, chosen.tubelets_BT, chosen.merged.size_BK)

    def choose(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> PrunedClip:
        """The frames and tokens that are used; all kept tokens are visible, what `selection` calls targets is dropped."""
        if seed_B is None and not self.training:
            seed_B = torch.zeros(len(frames_BTHWC), dtype=torch.int64, device=frames_BTHWC.device)
        return prune_clip(
            frames_BTHWC,
            grid=self.grid,
            candidate_grid=self.candidate_grid,
            motion_feature=self.motion_feature,
            strategy="random_drop" if self.keep_ratio == 1 else self.strategy,  # keeps all as well, and scores nothing
            keep_ratio=self.keep_ratio,
            visible_ratio=self.keep_ratio,
            distance=self.distance,
            seed_B=seed_B,
            pick_frames=None if self.training else select_fullest_frames,
            compensate_camera=self.compensate_camera,
            run_threshold=self.run_threshold,
            merge=self.merge_dropped and self.keep_ratio < 1,
        )

    def motion_feature(self, patches_BNP: torch.Tensor) -> torch.Tensor:
        """What distances are taken of: the patch embedding, or the pixels (0 to 1) themselves."""
        return self.patch_embed(patches_BNP) if self.feature == "embedding" else patches_BNP.float() / UINT8_MAX


def check_options(num_classes: int, class_names: Sequence[str], keep_ratio: float, feature: str, *, adaptive: bool) -> None:
    """Raises ValueError for options of a classifier that do not go together."""
    if num_classes < 1:
        raise ValueError(f"num_classes is at least 1, got {num_classes}")
    if class_names and len(class_names) != num_classes:
        raise ValueError(f"{len(class_names)} class names for {num_classes} classes: give one name a class, or none")
    if feature not in ("embedding", "pixels"):
        raise ValueError(f"feature is embedding or pixels, got {feature!r}")
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio is above 0 and at most 1, got {keep_ratio}")
    if adaptive and keep_ratio == 1:
        raise ValueError(
            "frames are chosen by where the kept tokens lie, and keep_ratio 1 keeps all of every frame: lower keep_ratio, or use "
            "as many candidate frames as frames"
        )
