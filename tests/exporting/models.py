"""Small models with every option of the selection, and clips that tell them apart."""

from __future__ import annotations

import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.models.weights.load import weights_of
from mats_ds.models.weights.model_weights import Weights

GRID = TokenGrid(num_frames=6, height=32, width=48, tubelet=(2, 8, 8))  # 3 tubelets of 4 x 6 places
CANDIDATES = TokenGrid(num_frames=10, height=32, width=48, tubelet=(2, 8, 8))
SIZES = dict(grid=GRID, width=24, depth=2, heads=3)
OPTIONS = {
    "mats": {},
    "all": {"keep_ratio": 1.0},
    "camera": {"compensate_camera": True},
    "l1": {"distance": "l1"},
    "cosine": {"distance": "cosine"},
    "pixels": {"feature": "pixels"},
    "random_drop": {"strategy": "random_drop"},
    "run_length": {"strategy": "run_length"},
    "merged": {"merge_dropped": True},
    "frames": {"candidate_grid": CANDIDATES},
}


def make_classifier(**options) -> VideoClassifier:
    torch.manual_seed(3)
    options = {"keep_ratio": 0.4, **options}
    return VideoClassifier(**SIZES, num_classes=5, class_names=tuple("abcde"), head_init_scale=20.0, **options).eval()


def make_autoencoder(**options) -> MaskedAutoencoder:
    torch.manual_seed(4)
    return MaskedAutoencoder(**SIZES, decoder_width=12, decoder_depth=1, decoder_heads=2, **options).eval()


def weights(model) -> Weights:
    """With parameters that are no initial values: biases of zero would hide a misplaced one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return weights_of(model, "a test")


def make_clips(num_frames: int, *, batch: int = 3) -> torch.Tensor:
    """frames_BTHWC uint8: noise; noise of which the left two thirds never change, so that most
    scores are equal; and a clip without any motion."""
    generator = torch.Generator().manual_seed(6)
    clips = torch.randint(0, 256, (batch, num_frames, 32, 48, 3), dtype=torch.uint8, generator=generator)
    clips[1, :, :, :32] = clips[1, :1, :, :32]
    clips[2] = clips[2, :1]
    return clips
