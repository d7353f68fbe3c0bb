"""Small models with nothing at its usual start, and files in the layouts of other programs, written
from them by hand."""

from __future__ import annotations

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier

GRID = TokenGrid(num_frames=6, height=16, width=24, tubelet=(2, 8, 8))  # 3 tubelets of 2 x 3 places
PUBLISHED = TokenGrid(num_frames=4, height=32, width=32, tubelet=(2, 16, 16))
SIZES = dict(width=24, depth=2, heads=3)
DECODER = dict(decoder_width=12, decoder_depth=2, decoder_heads=2)


def shake(model):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture
def autoencoder():
    return shake(MaskedAutoencoder(grid=GRID, **SIZES, **DECODER, keep_ratio=0.7, visible_ratio=0.3))


@pytest.fixture
def classifier():
    return shake(VideoClassifier(grid=GRID, **SIZES, num_classes=4, class_names=("run", "jump", "sit", "böse"), keep_ratio=0.5))


def clips(grid=GRID, batch=2):
    shape = (batch, grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def outputs(model):
    """What a model computes for two fixed clips."""
    with torch.no_grad():
        return model.eval()(clips(model.grid), torch.tensor([1, 2]))


def videomae_names(model):
    """The weights of a model under VideoMAE's names, written out by hand: an independent copy of
    what interop must do."""
    is_classifier = isinstance(model, VideoClassifier)
    stem = "" if is_classifier else "encoder."
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "patch_embed.proj.weight":
            tensor = tensor.view(-1, *model.grid.tubelet, 3).permute(0, 4, 1, 2, 3).contiguous()
        name = name.replace("attn.qkv.q_bias", "attn.q_bias").replace("attn.qkv.v_bias", "attn.v_bias")
        if name.startswith("encoder."):
            name = name.replace("encoder.", stem, 1)
        elif name.startswith("patch_embed."):
            name = stem + name
        elif name.startswith("class_head."):
            name = name.replace("class_head", "head")
        elif name.startswith("head."):
            name = f"decoder.{name}"
        elif name.startswith("to_decoder."):
            name = name.replace("to_decoder", "encoder_to_decoder")
        state[name] = tensor
    return state
