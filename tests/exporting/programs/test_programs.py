"""Programs of fixed shapes: the outputs of our models, and metadata that says what they are."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from mats_ds.core.token_grid import count_tokens
from mats_ds.exporting.programs import onnx_program
from mats_ds.exporting.programs.network_program import NetworkProgram
from mats_ds.exporting.programs.target import PACKAGES, check_target
from mats_ds.exporting.programs.write import export_program, make_program
from mats_ds.models.weights.load import load_encoder, load_model
from mats_ds.models.weights.origin import Origin
from tests.exporting.models import OPTIONS, make_autoencoder, make_classifier, make_clips, weights

# of onnxruntime's products beside torch's, outputs of size 1 to 5
RTOL, ATOL = 1e-4, 1e-4


def load_program(path):
    extra = {"mats_ds.json": ""}
    with path.open("rb") as file:
        return torch.export.load(file, extra_files=extra).module(), json.loads(extra["mats_ds.json"])


def open_session(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["mats_ds"])


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_the_traced_module_computes_what_the_classifier_computes(name):
    source = weights(make_classifier(**OPTIONS[name]))
    ours, (_, module) = load_model(source), make_program(source, keep_ratio=None)
    clips = make_clips(ours.candidate_grid.num_frames)
    logits, kept = module(clips)
    assert isinstance(module, NetworkProgram) and not module.training
    assert torch.equal(kept, ours.choose(clips).selection.visible_BV)
    torch.testing.assert_close(logits, ours(clips), rtol=RTOL, atol=ATOL)


@torch.no_grad()
def test_a_torch_export_program_is_loaded_without_our_package_s_operators(tmp_path):
    source = weights(make_classifier())
    export_program(tmp_path / "x.pt2", source, target="export", keep_ratio=None, batch=3, run=None)
    program, about = load_program(tmp_path / "x.pt2")
    assert "torch.ops.aten" in program.code and "torch.ops.mats_ds" not in program.code
    clips, ours = make_clips(6), load_model(source)
    logits, kept = program(clips)
    torch.testing.assert_close(logits, ours(clips), rtol=RTOL, atol=ATOL)
    assert torch.equal(kept, ours.choose(clips).selection.visible_BV)
    assert about["classes"] == list("abcde") and about["keep_ratio"] == 0.4 and about["input_shape"] == [3, 6, 32, 48, 3]
    assert about["num_tokens"] == 72 and about["num_kept_tokens"] == count_tokens(0.4, 72) == 28
    with pytest.raises((RuntimeError, AssertionError)):  # shapes are fixed
        program(make_clips(6, batch=3)[:2])


@pytest.mark.parametrize("name", ["mats", *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS if name != "mats")])
@torch.no_grad()
def test_an_onnx_file_gives_the_logits_and_keeps_the_tokens_of_the_classifier(name, tmp_path):
    pytest.importorskip("onnxscript")
    source = weights(make_classifier(**OPTIONS[name]))
    ours = load_model(source)
    clips = make_clips(ours.candidate_grid.num_frames)
    export_program(tmp_path / "x.onnx", source, target="onnx", keep_ratio=None, batch=3, run=None)
    session, about = open_session(tmp_path / "x.onnx")
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("frames", "tensor(uint8)", [3, ours.candidate_grid.num_frames, 32, 48, 3])
    ]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        ("logits", [3, 5]),
        ("kept_tokens", [3, about["num_kept_tokens"]]),
    ]
    logits, kept = session.run(None, {"frames": clips.numpy()})
    # clips 1 and 2 have equal scores; the cosine of two equal tokens is 1 but for its rounding,
    # which ranks them differently in every library
    compared = slice(0, 1) if name == "cosine" else slice(None)
    assert torch.equal(torch.from_numpy(kept)[compared], ours.choose(clips).selection.visible_BV[compared])
    torch.testing.assert_close(torch.from_numpy(logits)[compared], ours(clips)[compared], rtol=RTOL, atol=ATOL)
    assert about["onnx_opset"] == next(imported.version for imported in read_opsets(tmp_path / "x.onnx") if not imported.domain)


def read_opsets(path):
    import onnx

    return onnx.load(path).opset_import


@pytest.mark.parametrize(("target", "suffix"), [("export", ".pt2"), pytest.param("onnx", ".onnx", marks=pytest.mark.slow)])
@torch.no_grad()
def test_features_of_pre_trained_weights_are_those_of_extract(target, suffix, tmp_path):
    if target == "onnx":
        pytest.importorskip("onnxscript")
    source = weights(make_autoencoder(keep_ratio=0.5))
    path = tmp_path / f"x{suffix}"
    lines = export_program(path, source, target=target, keep_ratio=0.25, batch=2, run=None)
    assert "features and kept_tokens; 18 of 72 tokens" in lines[1]
    clips = make_clips(6)[:2]
    expected = load_encoder(source, keep_ratio=0.25, visible_ratio=0.25)(clips)
    if target == "export":
        program, about = load_program(path)
        features = program(clips)[0]
    else:
        session, about = open_session(path)
        features = torch.from_numpy(session.run(["features"], {"frames": clips.numpy()})[0])
    torch.testing.assert_close(features, expected.clone(), rtol=RTOL, atol=ATOL)
    assert about["outputs"] == ["features", "kept_tokens"] and about["classes"] == []


def test_metadata_hold_the_run_and_no_path(tmp_path):
    from dataclasses import replace

    origin = Origin(step=7, averaged=True, trained_on="/home/me/secret/train.csv", trained_root="/home/me", clip={"stride": 3})
    source = replace(weights(make_classifier()), origin=origin, source="/home/me/run")
    export_program(tmp_path / "x.pt2", source, target="export", keep_ratio=None, batch=1, run=None)
    _, about = load_program(tmp_path / "x.pt2")
    assert about["step"] == 7 and about["averaged"] is True and about["sampling"] == {"stride": 3}
    assert about["normalisation"] == {"inside": True, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert "secret" not in json.dumps(about) and "/home" not in json.dumps(about)
    assert b"/home/me" not in (tmp_path / "x.pt2").read_bytes()


def test_without_the_packages_of_onnx_the_other_format_is_left(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="--to export needs nothing more.*onnx and onnxscript"):
        check_target("onnx", batch=1)
    check_target("export", batch=1)
    with pytest.raises(ValueError, match="--batch is at least 1, got 0"):
        check_target("export", batch=0)


def test_a_model_too_large_for_one_onnx_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_program, "MAX_MODEL_BYTES", 1000)
    with pytest.raises(ValueError, match="one ONNX file holds 1,000: use --to export"):
        export_program(tmp_path / "x.onnx", weights(make_classifier()), target="onnx", keep_ratio=None, batch=1)
    assert list(tmp_path.iterdir()) == []
