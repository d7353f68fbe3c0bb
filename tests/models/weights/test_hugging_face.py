"""Hugging Face folders: written and read, with both versions' names, and loaded by transformers
itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mats_ds import MaskedAutoencoder, TokenGrid, load_model
from mats_ds.models.weights.hugging_face import write_hugging_face
from mats_ds.models.weights.load import read_weights, weights_of
from mats_ds.models.weights.verify import compare_with_transformers
from tests.models.weights.conftest import DECODER, GRID, SIZES, outputs, shake

BOTH = pytest.mark.parametrize("name", ["autoencoder", "classifier"])


@pytest.fixture
def write(tmp_path, request):
    def written(name):
        model = request.getfixturevalue(name)
        folder = tmp_path / "model"
        notes = write_hugging_face(folder, weights_of(model, "a test"))
        return model, folder, notes

    return written


@BOTH
def test_what_is_written_comes_back(write, name):
    model, folder, _ = write(name)
    again = load_model(folder)
    assert torch.equal(outputs(again), outputs(model))
    assert weights_of(again, "").spec == weights_of(model, "").spec


def test_every_option_of_the_method_comes_back(classifier, write):
    classifier.pruning = replace(classifier.pruning, compensate_camera=True, run_threshold=0.07, merge_dropped=True)
    _, folder, _ = write("classifier")
    assert load_model(folder).pruning == classifier.pruning


@BOTH
def test_transformers_computes_the_same_from_a_written_folder(write, name):
    pytest.importorskip("transformers")
    model, folder, notes = write(name)
    difference = compare_with_transformers(weights_of(model, "a test"), folder)
    assert difference.largest < 1e-5 < 0.1 < difference.scale
    assert "always 1e-05 in transformers" in notes[-1]
    assert any("encodes all 18 tokens, not 0.5" in note for note in notes) == (name == "classifier")


@BOTH
def test_transformers_own_folder_comes_back(write, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    model, folder, _ = write(name)
    kind = "VideoMAEForPreTraining" if name == "autoencoder" else "VideoMAEForVideoClassification"
    theirs = getattr(transformers, kind).from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(outputs(load_model(tmp_path / "theirs")), outputs(model))


@BOTH
def test_version_5s_names_are_read_too(write, name):
    model, folder, _ = write(name)
    state = load_file(folder / "model.safetensors")
    # written are version 4's
    assert any(key.endswith("attention.attention.q_bias") for key in state)
    renamed = {key.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): tensor for key, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(outputs(load_model(folder)), outputs(model))


@BOTH
def test_bin_files_and_shards_are_read_too(write, name):
    model, folder, _ = write(name)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(outputs(load_model(folder)), outputs(model))
    (folder / "pytorch_model.bin").unlink()
    shards = {key: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, key in enumerate(state)}
    for shard in set(shards.values()):
        save_file({key: state[key] for key in state if shards[key] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert torch.equal(outputs(load_model(folder)), outputs(model))


def test_an_encoder_that_was_saved_alone_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, use_mean_pooling=False,
    )  # fmt: skip
    transformers.VideoMAEModel(config).save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert (weights.spec.kind, weights.spec.heads, weights.spec.grid) == ("encoder", 3, TokenGrid(4, 32, 32))
    assert "encoder.norm.weight" in weights.state
    assert "all query and value biases are zero" in weights.notes[0]


def test_classes_keep_their_names_and_pictures_their_normalisation(write):
    _, folder, _ = write("classifier")
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"]["3"] == "böse" and config["label2id"]["jump"] == 1
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == [0.485, 0.456, 0.406]
    assert read_weights(folder).spec.class_names == ("run", "jump", "sit", "böse")
    config["id2label"] = {str(label): f"LABEL_{label}" for label in range(4)}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_weights(folder).spec.class_names == ()


@pytest.mark.parametrize(
    "table, names, words",
    [
        ({"3": "d", "0": "a"}, ("a", "LABEL_1", "LABEL_2", "d"), "no name for 2 of 4 classes.*LABEL_1"),
        (
            {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e", "7": "f"},
            ("a", "b", "c", "d"),
            r"2 classes that the head of 4 has not",
        ),
        ({"1": "a", "2": "b", "3": "c", "4": "d"}, ("LABEL_0", "a", "b", "c"), "no name for 1 of 4"),
        ({"run": "a", "0": "b"}, ("b", "LABEL_1", "LABEL_2", "LABEL_3"), "has 1 id .* such as 'run': left out"),
        ({"run": 0, "sit": 1}, (), "has 2 ids .*: left out"),
        ({"0": 5, "1": None, "2": "c", "3": "d"}, ("5", "None", "c", "d"), None),
        (["a", "b"], (), "id2label is a list"),
    ],
)
def test_names_belong_to_their_ids(write, table, names, words):
    _, folder, _ = write("classifier")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": table}))
    weights = read_weights(folder)
    assert weights.spec.class_names == names
    assert words is None and not weights.notes or re.search(words, "\n".join(weights.notes))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"model_type": "vit"}, "describes a 'vit'"),
        ({"hidden_act": "relu", "num_channels": 1}, "num_channels is 1, only 3.*\n.*hidden_act is 'relu'"),
        ({"use_mean_pooling": False}, "classifies the first token"),
        ({"qkv_bias": False}, "qkv_bias is False"),
    ],
)
def test_models_that_ours_cannot_be_are_refused(write, change, reason):
    _, folder, _ = write("classifier")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=reason):
        read_weights(folder)


def test_a_folder_without_weights_or_with_torn_ones_is_refused(write):
    _, folder, _ = write("classifier")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="may be torn"):
        read_weights(folder)
    file.unlink()
    with pytest.raises(ValueError, match="has none of model.safetensors"):
        read_weights(folder)


def test_what_transformers_cannot_be_is_refused(tmp_path, autoencoder):
    moved = load_model(weights_of(autoencoder, "a test"), grid=GRID.with_tau(5))
    with pytest.raises(ValueError, match="made for 6 frames of 16 x 24"):
        write_hugging_face(tmp_path / "a", weights_of(moved, "a test"))
    tall = shake(MaskedAutoencoder(grid=TokenGrid(6, 16, 24, (2, 4, 8)), **SIZES, **DECODER))
    with pytest.raises(ValueError, match="square patches, these are 4 x 8"):
        write_hugging_face(tmp_path / "b", weights_of(tall, "a test"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
