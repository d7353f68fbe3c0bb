"""Hugging Face's VideoMAE of one of our sizes, for one batch: what the step of this project stands
beside."""

from __future__ import annotations

import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from mats_ds import TokenGrid
from mats_ds.models.sizes import MODEL_SIZES

SHOWN_SHARE = 0.1  # of the tokens, by a tube: VideoMAE's published mask (arXiv 2203.12602)


def build_peer(task: str, size_name: str, *, grid: TokenGrid, batch: int, num_classes: int):
    """The model, and the mask [batch, N] that it is pre-trained with (None in fine-tuning)."""
    size = MODEL_SIZES[size_name]
    shared = dict(
        image_size=grid.height,
        patch_size=grid.tubelet[1],
        num_frames=grid.num_frames,
        tubelet_size=grid.tubelet[0],
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
    )
    if task == "finetune":
        return VideoMAEForVideoClassification(VideoMAEConfig(**shared, num_labels=num_classes)), None
    decoder = dict(
        decoder_hidden_size=size.decoder_width,
        decoder_num_attention_heads=size.decoder_heads,
        decoder_num_hidden_layers=size.decoder_depth,
        decoder_intermediate_size=4 * size.decoder_width,
    )
    model = VideoMAEForPreTraining(VideoMAEConfig(**shared, **decoder, norm_pix_loss=True, use_mean_pooling=False))
    is_hidden = torch.ones(grid.tokens_per_tubelet, dtype=torch.bool)
    shown = torch.randperm(grid.tokens_per_tubelet, generator=torch.Generator().manual_seed(0))
    is_hidden[shown[: max(1, round(SHOWN_SHARE * grid.tokens_per_tubelet))]] = False
    return model, is_hidden.repeat(grid.tau).expand(batch, -1)
