"""Compare the outputs of two sets of weights: random clips through both models -> the largest
difference.

A classifier is compared by its logits with all tokens kept, a masked autoencoder by the pixels it
predicts under a random mask: as VideoMAE and transformers compute them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mats_ds.models.model_spec import ModelSpec
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD, UINT8_MAX
from mats_ds.models.weights.load import load_model
from mats_ds.models.weights.model_weights import Weights

NUM_CLIPS = 2
SEED = 20221110
# of the largest output: float32 rounding of a deep model stays below, a misplaced tensor does not
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference between two outputs, and the largest output."""

    largest: float
    scale: float

    @property
    def is_rounding(self) -> bool:
        return self.largest <= TOLERANCE * self.scale

    def describe(self) -> str:
        return f"largest difference {self.largest:.3g}, largest output {self.scale:.3g}"


def random_clips(spec: ModelSpec) -> torch.Tensor:
    """frames_BTHWC uint8 of noise, always the same for a grid."""
    shape = (NUM_CLIPS, spec.grid.num_frames, spec.grid.height, spec.grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def compute(weights: Weights) -> torch.Tensor:
    """Our model's output for the random clips, float32: logits [B, classes] or predicted pixels [B,
    M, P]."""
    frames, seed_B = random_clips(weights.spec), torch.arange(NUM_CLIPS)
    plain = {"num_candidate_frames": weights.spec.grid.num_frames}
    if weights.spec.kind == "classifier":
        return load_model(weights, keep_ratio=1.0, **plain)(frames)
    model = load_model(weights, strategy="random", **plain)
    return model.predict(model.choose(frames, seed_B))


def compare(one: Weights, other: Weights) -> Difference:
    """Both through our models."""
    return measure_difference(compute(one), compute(other))


@torch.no_grad()
def compare_with_transformers(weights: Weights, folder: str | Path) -> Difference:
    """Our model against transformers' own of a folder. The last LayerNorm's eps, which is no
    weight, is set to ours.

    Raises ImportError where transformers is not installed.
    """
    import transformers

    spec = weights.spec
    pixels = (random_clips(spec) / UINT8_MAX - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    pixels_BTCHW = pixels.movedim(-1, 2)
    if spec.kind == "classifier":
        model = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
        model.fc_norm.eps = spec.last_norm_eps
        return measure_difference(compute(weights), model(pixels_BTCHW).logits)
    model = transformers.VideoMAEForPreTraining.from_pretrained(folder).eval()
    model.decoder.norm.eps = spec.last_norm_eps
    ours = load_model(weights, strategy="random", num_candidate_frames=spec.grid.num_frames)
    chosen = ours.choose(random_clips(spec), torch.arange(NUM_CLIPS))
    masked_BN = torch.ones(NUM_CLIPS, spec.grid.num_tokens, dtype=torch.bool)
    masked_BN.scatter_(1, chosen.selection.visible_BV, False)
    return measure_difference(ours.predict(chosen), model(pixels_BTCHW, bool_masked_pos=masked_BN).logits)


def measure_difference(one: torch.Tensor, other: torch.Tensor) -> Difference:
    if one.shape != other.shape:
        raise ValueError(f"the outputs have different shapes: {list(one.shape)} and {list(other.shape)}")
    return Difference(float((one - other).abs().max()), float(one.abs().max()))
