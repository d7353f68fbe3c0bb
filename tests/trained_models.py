"""Small models on disk, and labelled videos, for the tests of scripts that run trained models."""

from __future__ import annotations

from pathlib import Path

import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.models.weights.load import weights_of
from mats_ds.models.weights.native import save_weights
from mats_ds.models.weights.origin import Origin

GRID = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 8, 8))  # 2 tubelets of 4 x 6 places
SIZES = dict(grid=GRID, width=24, depth=2, heads=3)
CLASSES = ("along", "down", "fall", "rise", "stand", "turn")  # the synthetic set has the first four


def save_model(model, path: Path, *, origin: Origin | None = None) -> str:
    weights = weights_of(model, "a test")
    return str(save_weights(path, weights.spec, weights.state, origin=origin))


def save_classifier(path: Path, *, origin: Origin | None = None, **options) -> str:
    """A classifier with random weights, large enough that it does not say the same of every
    clip."""
    torch.manual_seed(11)
    options = {"num_classes": len(CLASSES), "class_names": CLASSES, "keep_ratio": 0.5, "head_init_scale": 20.0, **options}
    return save_model(VideoClassifier(**SIZES, **options), path, origin=origin)


def save_autoencoder(path: Path, **options) -> str:
    torch.manual_seed(12)
    decoder = dict(decoder_width=12, decoder_depth=1, decoder_heads=2)
    return save_model(MaskedAutoencoder(**SIZES, **decoder, **options), path)


def write_videos(folder: Path, *, num_videos: int) -> list[tuple[Path, int]]:
    """(path, label) of synthetic videos of 24 frames of 48 x 80."""
    manifest = write_synthetic_set(folder, num_videos=num_videos, num_frames=24, height=48, width=80)
    rows = [line.split(",")[:2] for line in manifest.read_text().splitlines()[1:]]
    return [(manifest.parent / path, int(label)) for path, label in rows]


def write_manifest(path: Path, videos) -> str:
    path.write_text("path,label\n" + "".join(f"{file},{label}\n" for file, label in videos))
    return str(path)
