""".pth files of VideoMAE and EVEREST, as their scripts write them."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier, load_classifier, load_model
from mats_ds.models.weights.load import read_weights, weights_of
from mats_ds.models.weights.videomae import write_videomae
from tests.models.weights.conftest import DECODER, GRID, SIZES, outputs, shake, videomae_names

HINTS = {"heads": 3, "decoder_heads": 2}
CLIP = {"num_frames": 6, "height": 16, "width": 24}
PRETRAIN_ARGS = argparse.Namespace(num_frames=6, input_size=16, mask_type="tube", mask_ratio=0.5, decoder_depth=2, device="cuda")


def square(kind, **options):
    grid = TokenGrid(6, 16, 16, (2, 8, 8))
    if kind == "classifier":
        return shake(VideoClassifier(grid=grid, **SIZES, num_classes=5, **options))
    return shake(MaskedAutoencoder(grid=grid, **SIZES, **DECODER, **options))


@pytest.mark.parametrize("key", ["model", "module", None])
def test_a_pretraining_checkpoint_gives_the_models_outputs(tmp_path, autoencoder, key):
    state = OrderedDict(videomae_names(autoencoder))
    torch.save({key: state, "epoch": 3, "optimizer": {"state": {}}} if key else state, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", **CLIP, **HINTS)
    loaded = load_model(weights, strategy="mats", keep_ratio=0.7, visible_ratio=0.3)
    assert torch.equal(outputs(loaded), outputs(autoencoder))
    assert (weights.spec.kind, weights.spec.pruning.strategy, weights.spec.pruning.visible_ratio) == ("pretrain", "tube", 0.1)
    assert "masking" in weights.notes[-1]


def test_a_finetuning_checkpoint_gives_the_models_outputs(tmp_path, classifier):
    torch.save({"module": videomae_names(classifier)}, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", **CLIP, heads=3)
    assert weights.spec.pruning.keep_ratio == 1.0  # VideoMAE encodes all
    assert torch.equal(outputs(load_model(weights, keep_ratio=0.5)), outputs(classifier))


def test_args_tell_clip_and_masking(tmp_path):
    model = square("pretrain", strategy="tube", visible_ratio=0.5)
    torch.save({"model": videomae_names(model), "args": PRETRAIN_ARGS}, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", **HINTS)
    assert weights.spec.grid == model.grid and weights.notes == ()
    assert torch.equal(outputs(load_model(weights)), outputs(model))


@pytest.mark.parametrize(
    "kind, options, expected",
    [
        ("pretrain", {"mask_type": "motion-centric", "motion_centric_masking_ratio": 0.7, "mask_ratio": 0.9}, ("mats", 0.3, 0.1)),
        ("pretrain", {"mask_type": "random", "mask_ratio": 0.75}, ("random", 1.0, 0.25)),
        ("classifier", {"mcm": True, "mcm_ratio": 0.4}, ("mats", 0.6, 0.6)),
        ("classifier", {"mcm": False, "num_segments": 1}, ("mats", 1.0, 1.0)),
    ],
)
def test_everests_options_become_the_selection(tmp_path, kind, options, expected):
    arguments = argparse.Namespace(num_frames=6, input_size=16, **options)
    torch.save({"model": videomae_names(square(kind)), "args": arguments}, tmp_path / "c.pth")
    spec = read_weights(tmp_path / "c.pth", heads=3, **({"decoder_heads": 2} if kind == "pretrain" else {})).spec
    assert (spec.pruning.strategy, spec.pruning.keep_ratio, spec.pruning.visible_ratio) == expected


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "_orig_mod.", "module.backbone."])
def test_wrappers_names_are_seen_through(tmp_path, classifier, prefix):
    torch.save({f"{prefix}{name}": tensor for name, tensor in videomae_names(classifier).items()}, tmp_path / "c.pth")
    loaded = load_model(read_weights(tmp_path / "c.pth", **CLIP, heads=3), keep_ratio=0.5)
    assert torch.equal(outputs(loaded), outputs(classifier))


def test_half_precision_is_read_exactly(tmp_path, classifier):
    halved = classifier.to(torch.float16)
    torch.save({"model": videomae_names(halved)}, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", **CLIP, heads=3)
    assert torch.equal(weights.state["class_head.weight"], halved.class_head.weight.float())


def test_heads_of_published_sizes_are_known(tmp_path):
    model = MaskedAutoencoder.from_name("small", grid=TokenGrid(4, 32, 32), decoder_depth=1, visible_ratio=0.2)
    torch.save({"model": videomae_names(model)}, tmp_path / "small.pth")
    spec = read_weights(tmp_path / "small.pth").spec
    assert (spec.size_name, spec.heads, spec.decoder_heads, spec.decoder_depth) == ("small", 6, 3, 1)
    assert spec.grid == TokenGrid()


def test_an_encoder_without_decoder_starts_a_classifier(tmp_path, autoencoder):
    state = {name: tensor for name, tensor in videomae_names(autoencoder).items() if name.startswith("encoder.")}
    torch.save(state, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", **CLIP, heads=3)
    with pytest.raises(ValueError, match="load_classifier"):
        load_model(weights)
    started = load_classifier(weights, num_classes=9)
    assert torch.equal(started.model.encoder.blocks[1].mlp.fc2.weight, autoencoder.encoder.blocks[1].mlp.fc2.weight)
    assert started.report.describe() == "28 tensors loaded; fresh: fc_norm, class_head; not used: encoder.norm"


@pytest.mark.parametrize("name", ["autoencoder", "classifier"])
def test_what_is_written_has_videomaes_names_and_comes_back(tmp_path, request, name):
    model = request.getfixturevalue(name)
    write_videomae(tmp_path / "c.pth", weights_of(model, "a test"))
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    expected = videomae_names(model)
    assert set(content["model"]) == set(expected)
    assert all(torch.equal(content["model"][key], expected[key]) for key in expected)
    again = load_model(tmp_path / "c.pth")
    assert torch.equal(outputs(again), outputs(model)) and again.grid == GRID


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path, classifier):
    torch.save({"model": videomae_names(classifier), "args": Bomb(str(tmp_path / "exploded"))}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="would run code from the file .*mkdir"):
        read_weights(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda state: state | {"tokens": torch.zeros(1, 9, 24), "blocks.0.gamma_3": torch.zeros(24)},
            "2 tensors .*tokens, bl",
        ),
        (lambda state: without(state, "fc_norm.weight", "fc_norm.bias"), "only mean pooling"),
        (lambda state: {"weight": torch.zeros(3)}, "holds no weights of VideoMAE: its keys are weight"),
        (lambda state: state | {"blocks.0.mlp.fc1.weight": torch.zeros(100, 24)}, "only 4 times is supported"),
        (lambda state: without(state, "patch_embed.proj.weight"), "no patch embedding"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, classifier, change, reason):
    torch.save(change(videomae_names(classifier)), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=reason):
        read_weights(tmp_path / "c.pth", heads=3)


def test_every_missing_tensor_is_listed(tmp_path, classifier):
    torch.save(without(videomae_names(classifier), "blocks.1.attn.q_bias", "head.bias"), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"2 missing: encoder\.blocks\.1\.attn\.qkv\.q_bias, class_head\.bias"):
        load_model(read_weights(tmp_path / "c.pth", **CLIP, heads=3))


def test_a_width_of_no_published_size_asks_for_heads(tmp_path, classifier):
    torch.save(videomae_names(classifier), tmp_path / "c.pth")
    with pytest.raises(ValueError, match="width 24 is of no published size.*--heads"):
        read_weights(tmp_path / "c.pth")


def test_a_torn_file_is_refused(tmp_path, classifier):
    torch.save(videomae_names(classifier), tmp_path / "c.pth")
    (tmp_path / "c.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:-200])
    with pytest.raises(ValueError, match="may be torn"):
        read_weights(tmp_path / "c.pth")
