"""What every parameter is at the start, against a table of VideoMAE's rules (arXiv 2203.12602 and
its public code).

A rule is the distribution: uniform within a bound, or normal with a deviation, perhaps cut off, or
a constant. It is checked on the shares of values below nine levels (Kolmogorov-Smirnov), and on the
largest value.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.models.classifier import VideoClassifier

GRID = TokenGrid(num_frames=8, height=48, width=32, tubelet=(2, 8, 8))  # 384 values a patch
WIDTH, DECODER_WIDTH, CLASSES = 96, 64, 700


def uniform(bound: float):
    return bound, lambda level: (level + bound) / (2 * bound)


def normal(deviation: float, *, cut: float = math.inf):
    """cut: where it ends, in deviations."""

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    inside = below(cut) - below(-cut)
    # 6 deviations: beyond them lies one value in 5e8
    return deviation * min(cut, 6), lambda level: (below(level / deviation) - below(-cut)) / inside


def xavier(inputs: int, outputs: int):
    return uniform(math.sqrt(6 / (inputs + outputs)))


def blocks(name: str, width: int) -> dict:
    return {
        rf"{name}\.blocks\.\d+\.attn\.qkv\.weight": xavier(width, 3 * width),
        rf"{name}\.blocks\.\d+\.attn\.proj\.weight": xavier(width, width),
        rf"{name}\.blocks\.\d+\.mlp\.fc1\.weight": xavier(width, 4 * width),
        rf"{name}\.blocks\.\d+\.mlp\.fc2\.weight": xavier(4 * width, width),
        rf"{name}\.blocks\.\d+\.norm[12]\.weight": 1.0,
        rf"{name}\.blocks\.\d+\.(norm[12]|attn\.proj|mlp\.fc[12])\.bias": 0.0,
        rf"{name}\.blocks\.\d+\.attn\.qkv\.[qv]_bias": 0.0,
        rf"{name}\.norm\.weight": 1.0,
        rf"{name}\.norm\.bias": 0.0,
    }


EMBEDDING = {  # PyTorch's own start of a convolution, which VideoMAE leaves as it is
    r"patch_embed\.proj\.weight": uniform(1 / math.sqrt(384)),
    r"patch_embed\.proj\.bias": uniform(1 / math.sqrt(384)),
}
PRETRAINING = {
    **EMBEDDING,
    **blocks("encoder", WIDTH),
    **blocks("decoder", DECODER_WIDTH),
    # PyTorch's own start of a linear layer: VideoMAE's rule misses it
    r"to_decoder\.weight": uniform(1 / math.sqrt(WIDTH)),
    r"mask_token": normal(0.02, cut=1),
    r"head\.weight": xavier(DECODER_WIDTH, 384),
    r"head\.bias": 0.0,
}
# VideoMAE's fine-tuning begins with normal weights of deviation 0.02 in the blocks: from scratch
# ours begin as pre-training does.
CLASSIFIER = {
    **EMBEDDING,
    **blocks("encoder", WIDTH),
    r"fc_norm\.weight": 1.0,
    r"fc_norm\.bias": 0.0,
    r"class_head\.weight": normal(0.02 * 0.001),
    r"class_head\.bias": 0.0,
}


def make_model(kind: str, *, seed: int = 5):
    torch.manual_seed(seed)
    size = dict(grid=GRID, width=WIDTH, depth=3, heads=3)
    if kind == "classifier":
        return VideoClassifier(**size, num_classes=CLASSES)
    return MaskedAutoencoder(**size, decoder_width=DECODER_WIDTH, decoder_heads=2, decoder_depth=2)


def find_rule(name: str, table: dict):
    (rule,) = [rule for pattern, rule in table.items() if re.fullmatch(pattern, name)]
    return rule


@pytest.mark.parametrize(("kind", "table"), [("pretraining", PRETRAINING), ("classifier", CLASSIFIER)])
def test_every_parameter_begins_by_its_rule(kind, table):
    for name, parameter in make_model(kind).named_parameters():
        rule, values = find_rule(name, table), parameter.detach().double().flatten()
        if isinstance(rule, float):
            assert (values == rule).all(), name
            continue
        bound, share_below = rule
        assert values.abs().max() <= bound * (1 + 1e-6), name
        for level in torch.linspace(-0.9, 0.9, 9) * bound:
            share = share_below(float(level))
            # five deviations of that many draws
            slack = 5 * math.sqrt(share * (1 - share) / len(values)) + 1e-12
            assert abs(float((values <= float(level)).double().mean()) - share) <= slack, f"{name} at {float(level):.4f}"


def test_the_seed_alone_gives_the_weights():
    one, same, other = (make_model("pretraining", seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if isinstance(find_rule(name, PRETRAINING), tuple))


def test_paths_are_dropped_more_often_the_deeper_the_block_in_encoder_and_decoder():
    """Evenly from 0 to the rate, as in VideoMAE, whose pre-training hands the rate to its decoder
    too."""
    model = MaskedAutoencoder.from_name("tiny", grid=GRID, decoder_depth=3, drop_path=0.3)
    for part in (model.encoder, model.decoder):
        rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in part.blocks]
        assert rates == pytest.approx([0.3 * place / (len(rates) - 1) for place in range(len(rates))])
