"""The exported computation: uint8 frames [B, T, H, W, 3] -> logits [B, classes] or features [B, D],
and the kept tokens [B, K].

As `evaluate` and `extract` compute it, in evaluation mode: normalisation, motion scores, top-k and
gather are inside, shapes are fixed. Selection is that of the code for the Hub, which has plain
operators only. One thing is left out: where motion is scored by patch embeddings, the kept tokens
take theirs from the scoring instead of being embedded again.
"""

from __future__ import annotations

import torch
from torch import nn

from mats_ds.exporting.hub.remote_code.token_selection_mats import SelectionOptions, gather_rows, select_tokens
from mats_ds.models.classifier import EncodedClip, VideoClassifier
from mats_ds.models.feature_extractor import VideoEncoder
from mats_ds.models.vit import split_patches

INPUT = "frames"
KEPT = "kept_tokens"
SEED = 20221110


class NetworkProgram(nn.Module):
    """A module to trace: forward(frames) -> (logits or features, kept tokens)."""

    def __init__(self, network: VideoEncoder, head: nn.Module | None) -> None:
        """head: of a classifier, None for features."""
        super().__init__()
        self.trunk, self.head = network.trunk, head
        self.options = selection_options(self.trunk)

    def forward(self, frames_BTHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        trunk = self.trunk
        patches_BNP = split_patches(frames_BTHWC, trunk.candidate_grid)
        chosen = select_tokens(patches_BNP, trunk.patch_embed, num_tubelets=trunk.candidate_grid.tau, options=self.options)
        if chosen.merged_BKP is not None:
            embedding_BKD = trunk.patch_embed(chosen.merged_BKP)
        elif chosen.feature_BNX is not None and self.options.feature == "embedding":
            embedding_BKD = gather_rows(chosen.feature_BNX, chosen.index_BK)
        elif self.options.keep_ratio == 1:
            embedding_BKD = trunk.patch_embed(chosen.patches_BNP)
        else:
            embedding_BKD = trunk.patch_embed(gather_rows(chosen.patches_BNP, chosen.index_BK))
        tokens_BKD = trunk.encoder(embedding_BKD + trunk.positions_ND[chosen.index_BK])
        sizes = {} if chosen.size_BK is None else {"size_BK": chosen.size_BK}
        feature_BD = trunk.pool(EncodedClip(tokens_BKD, chosen.index_BK, chosen.tubelets_BT, **sizes))
        # a copy: where all are kept, the numbers are a constant, which no program may give back
        kept_BK = chosen.index_BK + torch.zeros_like(chosen.index_BK)
        return (feature_BD if self.head is None else self.head(feature_BD)), kept_BK


def selection_options(trunk: VideoClassifier) -> SelectionOptions:
    """The selection of a classifier, or of an encoder's trunk."""
    pruning, grid = trunk.pruning, trunk.grid
    return SelectionOptions(
        keep_ratio=pruning.keep_ratio,
        num_tubelets=grid.tau,
        tubelet_frames=grid.tubelet[0],
        strategy=pruning.strategy,
        distance=pruning.distance,
        feature=pruning.feature,
        compensate_camera=pruning.compensate_camera,
        run_threshold=pruning.run_threshold,
        merge_dropped=pruning.merge_dropped,
    )


def example_frames(network: VideoEncoder, *, batch: int) -> torch.Tensor:
    """frames_BTHWC of the fixed shape of a program: noise, always the same."""
    grid = network.trunk.candidate_grid
    shape = (batch, grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))
