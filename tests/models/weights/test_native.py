"""Our own file: everything of a model but its training comes back, and what is not ours is told."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mats_ds import load_classifier, load_model
from mats_ds.models.model_spec import build_model, describe_model, dump_spec, parse_spec
from mats_ds.models.weights.load import read_weights, weights_of
from mats_ds.models.weights.native import save_weights
from tests.models.weights.conftest import GRID, outputs


def save(model, path):
    weights = weights_of(model, "a test")
    return save_weights(path, weights.spec, dict(weights.state), note="from a test")


@pytest.mark.parametrize("name", ["autoencoder", "classifier"])
def test_a_model_comes_back(tmp_path, request, name):
    model = request.getfixturevalue(name)
    path = save(model, tmp_path / "deep" / "model.safetensors")
    again = load_model(path)
    assert torch.equal(outputs(again), outputs(model))
    assert describe_model(again) == describe_model(model)
    assert read_weights(path).notes == ("from a test",)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_every_field_of_the_description_travels_as_json(classifier):
    candidates = build_model(describe_model(classifier), head_dropout=0.2)
    candidates.candidate_grid, candidates.position_grid = GRID.with_tau(5), GRID.with_tau(4)
    spec = describe_model(candidates)
    assert parse_spec(json.loads(json.dumps(dump_spec(spec)))) == spec
    rebuilt = build_model(spec)
    assert (rebuilt.candidate_grid, rebuilt.position_grid) == (GRID.with_tau(5), GRID.with_tau(4))


def test_another_clip_length_interpolates_the_positions(tmp_path, autoencoder):
    path = save(autoencoder, tmp_path / "model.safetensors")
    longer = load_model(path, grid=GRID.with_tau(5))
    assert longer.position_grid == GRID and outputs(longer).isfinite()
    again = load_model(save(longer, tmp_path / "longer.safetensors"))
    assert torch.equal(again.positions_ND, longer.positions_ND)
    assert torch.equal(outputs(again), outputs(longer))


def test_pretraining_starts_a_classifier(tmp_path, autoencoder):
    path = save(autoencoder, tmp_path / "model.safetensors")
    started = load_classifier(path, num_classes=11, keep_ratio=0.4, drop_path=0.1)
    assert started.model.keep_ratio == 0.4 and started.model.training
    assert torch.equal(started.model.patch_embed.proj.weight, autoencoder.patch_embed.proj.weight)
    assert {name.partition(".")[0] for name in started.report.fresh} == {"fc_norm", "class_head"}
    unused = {name.partition(".")[0] for name in started.report.unused}
    assert unused == {"encoder", "decoder", "to_decoder", "mask_token", "head"}


def test_a_head_of_other_classes_is_replaced_only_when_asked(tmp_path, classifier):
    path = save(classifier, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the head has 4 classes, and one of 9 is asked for.*--new-head"):
        load_classifier(path, num_classes=9)
    started = load_classifier(path, num_classes=9, new_head=True)
    assert started.report.fresh == ("class_head.weight", "class_head.bias")
    assert started.model.keep_ratio == 0.5 and started.model.class_names == ()
    assert torch.equal(started.model.fc_norm.weight, classifier.fc_norm.weight)
    same = load_classifier(path, num_classes=4)
    assert torch.equal(outputs(same.model), outputs(classifier))


def test_all_that_does_not_fit_is_listed_at_once(tmp_path, classifier):
    weights = weights_of(classifier, "a test")
    state = dict(weights.state) | {"extra": torch.zeros(2), "fc_norm.bias": torch.zeros(5)}
    del state["class_head.bias"], state["encoder.blocks.0.norm1.weight"]
    path = save_weights(tmp_path / "model.safetensors", weights.spec, state)
    with pytest.raises(ValueError) as error:
        load_model(path)
    assert str(error.value).splitlines()[1:] == [
        "  - 2 missing: encoder.blocks.0.norm1.weight, class_head.bias",
        "  - 1 unexpected: extra",
        "  - 1 of another shape: fc_norm.bias [5], the model has [24]",
    ]


def test_files_that_are_not_ours_newer_or_torn_are_refused(tmp_path, classifier):
    path = save(classifier, tmp_path / "model.safetensors")
    state = load_file(path)
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="of another program"):
        load_model(tmp_path / "theirs.safetensors")
    save_file(state, tmp_path / "newer.safetensors", metadata={"format": "mats_ds", "format_version": "9", "model": "{}"})
    with pytest.raises(ValueError, match="newer version .format 9, this one reads 1"):
        load_model(tmp_path / "newer.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="may be torn"):
        load_model(path)


def test_a_description_of_another_version_is_refused(classifier):
    tree = dump_spec(describe_model(classifier)) | {"colour": 3}
    del tree["depth"]
    with pytest.raises(ValueError, match=r"unknown \['colour'\], missing \['depth'\]"):
        parse_spec(tree)


def test_paths_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file or folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither a Hugging Face folder"):
        load_model(tmp_path)
