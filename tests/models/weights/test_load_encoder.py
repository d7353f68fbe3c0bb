"""The encoder of any weights: the features of a classifier, the normed tokens of pre-training,
those of transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mats_ds
from mats_ds.models.feature_extractor import average_tubelets
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD, UINT8_MAX, split_patches
from mats_ds.models.weights.load import weights_of
from mats_ds.models.weights.native import save_weights
from tests.models.weights.conftest import GRID, PUBLISHED, clips


def save(model, path, **changes):
    weights = weights_of(model, "a test")
    return save_weights(path, replace(weights.spec, **changes), weights.state)


def test_a_classifiers_features_are_what_its_head_sees(classifier, tmp_path):
    encoder = mats_ds.load_encoder(save(classifier, tmp_path / "model.safetensors"))
    features_BD = encoder(clips())
    with torch.no_grad():
        assert torch.equal(features_BD, classifier.features(clips()))
        assert torch.equal(encoder.tokens(clips()).features_BD, features_BD)
        assert torch.equal(encoder.tokens(clips()).tokens_BKD, classifier.encode(clips()).tokens_BKD)
    assert features_BD.shape == (2, encoder.width)
    assert encoder.num_frames == encoder.grid.num_frames == GRID.num_frames


def test_a_pretrained_encoder_norms_all_tokens_and_averages_them(autoencoder, tmp_path):
    encoder = mats_ds.load_encoder(save(autoencoder, tmp_path / "model.safetensors"))
    with torch.no_grad():  # by hand: no selection
        embedded_BND = autoencoder.patch_embed(split_patches(clips(), GRID)) + autoencoder.positions_ND
        wanted_BND = autoencoder.encoder(embedded_BND)
    found = encoder.tokens(clips())
    torch.testing.assert_close(found.tokens_BKD, wanted_BND, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(clips()), wanted_BND.mean(dim=1), rtol=1e-5, atol=1e-5)
    assert found.position_BK3[0, 4].tolist() == [0, 1, 1]  # 2 rows of 3 columns
    assert found.position_BK3[1, -1].tolist() == [2, 1, 2]


def test_a_fraction_of_the_tokens_on_request(autoencoder, tmp_path):
    path = save(autoencoder, tmp_path / "model.safetensors")
    encoder = mats_ds.load_encoder(path, keep_ratio=0.5)
    found = encoder.tokens(clips())
    assert found.tokens_BKD.shape[1] == GRID.num_tokens // 2
    number_BK = (found.position_BK3 * torch.tensor([6, 3, 1])).sum(-1)
    assert torch.equal(number_BK, encoder.trunk.choose(clips()).selection.visible_BV)


def test_weights_that_choose_frames_read_just_the_grids_when_all_tokens_are_wanted(autoencoder, tmp_path):
    path = save(autoencoder, tmp_path / "model.safetensors", num_candidate_frames=10)
    assert mats_ds.load_encoder(path).num_frames == 6
    assert mats_ds.load_encoder(path, keep_ratio=0.5).num_frames == 10


def test_one_clip_and_arrays_will_do(classifier, tmp_path):
    encoder = mats_ds.load_encoder(save(classifier, tmp_path / "model.safetensors"))
    both = encoder(clips())
    torch.testing.assert_close(encoder(clips()[1].numpy()), both[1:])
    with pytest.raises(ValueError, match="uint8"):
        encoder(clips().float())
    with pytest.raises(ValueError, match="frames must be"):
        encoder(np.zeros((2, 6, 16, 16, 3), np.uint8))


def test_another_grid(autoencoder, tmp_path):
    larger = mats_ds.TokenGrid(num_frames=8, height=24, width=32, tubelet=GRID.tubelet)
    encoder = mats_ds.load_encoder(save(autoencoder, tmp_path / "model.safetensors"), grid=larger)
    assert encoder(clips(larger)).shape == (2, 24)


def test_the_mean_of_each_tubelets_tokens(classifier, tmp_path):
    encoder = mats_ds.load_encoder(save(classifier, tmp_path / "model.safetensors"), keep_ratio=0.2)
    tokens = encoder.tokens(clips())
    means = average_tubelets(tokens, GRID)
    assert means.count_BT.sum(dim=1).tolist() == [3, 3]  # int(0.2 * 18)
    for clip in range(2):
        for tubelet in range(GRID.tau):
            of_it = tokens.tokens_BKD[clip][tokens.position_BK3[clip, :, 0] == tubelet]
            assert means.count_BT[clip, tubelet] == len(of_it)
            wanted = of_it.mean(dim=0) if len(of_it) else torch.zeros(24)
            torch.testing.assert_close(means.mean_BTD[clip, tubelet], wanted)


@pytest.mark.parametrize("mean_pooling", [False, True])
def test_tokens_are_those_of_transformers_encoder(tmp_path, mean_pooling):
    """VideoMAEModel norms its tokens unless a classifier is to pool them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        use_mean_pooling=mean_pooling,
    )
    torch.manual_seed(5)
    theirs = transformers.VideoMAEModel(config).eval()
    theirs.save_pretrained(tmp_path)
    frames = clips(PUBLISHED)
    pixels = (frames / UINT8_MAX - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        wanted = theirs(pixels.movedim(-1, 2)).last_hidden_state
    found = mats_ds.load_encoder(tmp_path).tokens(frames).tokens_BKD
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
