"""convert.py --to hub, onnx and export as its users run it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from mats_ds import load_model
from mats_ds.convert import main
from mats_ds.core.cli import FINISHED, USAGE_ERROR
from mats_ds.core.storage.package_files import install_command
from mats_ds.exporting.programs import target
from mats_ds.models.weights.native import save_weights
from tests.exporting.models import make_autoencoder, make_classifier, make_clips, weights

HUB_FILES = {
    "README.md", "config.json", "image_processing_mats.py", "model.safetensors", "modeling_mats.py", "preprocessor_config.json",
    "token_selection_mats.py",
}  # fmt: skip


def store(model, path):
    source = weights(model)
    return str(save_weights(path, source.spec, dict(source.state)))


@pytest.fixture
def classifier(tmp_path):
    return store(make_classifier(), tmp_path / "source.safetensors")


def test_a_hub_folder_is_complete_and_reads_again_as_the_same_model(tmp_path, classifier, capsys):
    dest = tmp_path / "hub"
    assert main([classifier, str(dest), "--to", "hub"]) == FINISHED
    assert {path.name for path in dest.iterdir()} - {".lock"} >= HUB_FILES
    assert not [path for path in dest.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".part")]
    told = capsys.readouterr().out
    assert "selection: mats, keep 0.4" in told and "--license" in told
    clips = make_clips(6)
    with torch.no_grad():
        torch.testing.assert_close(load_model(dest)(clips), load_model(classifier)(clips), rtol=1e-4, atol=1e-3)
    assert load_model(dest).keep_ratio == 0.4


def test_the_fraction_of_the_exported_model_can_be_chosen(tmp_path, classifier, capsys):
    pretrained = store(make_autoencoder(keep_ratio=0.3, visible_ratio=0.1), tmp_path / "pretrained.safetensors")
    for number, source in enumerate((classifier, pretrained)):
        dest = tmp_path / f"hub{number}"
        assert main([source, str(dest), "--to", "hub", "--keep-ratio", "0.05"]) == FINISHED
        config = json.loads((dest / "config.json").read_text())
        assert config["keep_ratio"] == 0.05
        assert "0.05 (this model)" in (dest / "README.md").read_text() or "no published size" in (dest / "README.md").read_text()
    assert config["mats_ds"]["keep_ratio"] == 0.3, "pre-training's own is kept, for whoever goes on with it"


def test_an_export_is_replaced_only_with_force_and_a_card_of_the_user_s_never(tmp_path, classifier, capsys):
    dest = tmp_path / "hub"
    command = [classifier, str(dest), "--to", "hub"]
    assert main(command) == FINISHED and main(command) == USAGE_ERROR
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--force", "--license", "mit"]) == FINISHED
    assert "license: mit" in (dest / "README.md").read_text()
    (dest / "README.md").write_text("mine")
    assert main([*command, "--force"]) == USAGE_ERROR
    assert (dest / "README.md").read_text() == "mine" and "move it away" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "option", "home"),
    [
        ("hub", ["--batch", "2"], "onnx or export"),
        ("export", ["--license", "mit"], "hub"),
        ("mats", ["--data-name", "UCF101"], "hub"),
        ("onnx", ["--results", "."], "hub"),
    ],
)
def test_options_of_another_format_are_refused(tmp_path, classifier, capsys, target, option, home):
    assert main([classifier, str(tmp_path / "x.safetensors"), "--to", target, *option]) == USAGE_ERROR
    told = capsys.readouterr().err
    assert option[0] in told and f"is for --to {home}" in told and not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(("name", "target"), [("x.pt2", "export"), pytest.param("x.onnx", "onnx", marks=pytest.mark.slow)])
def test_a_program_is_written_by_its_suffix_and_verified(tmp_path, classifier, capsys, name, target):
    if target == "onnx":
        pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    assert main([classifier, str(tmp_path / name), "--batch", "2", "--verify"]) == FINISHED
    told = capsys.readouterr()
    assert f"wrote {tmp_path / name}" in told.out and "2 x 6 x 32 x 48 x 3" in told.out and ": equal" in told.out
    assert "28 of 72 tokens" in told.out
    with pytest.raises(ValueError, match="a program to run and no weights"):
        load_model(tmp_path / name)
    assert main([classifier, str(tmp_path / name)]) == USAGE_ERROR  # it exists
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source.safetensors", name])


def test_without_the_packages_of_onnx_one_line_says_how_to_get_them(tmp_path, classifier, capsys, monkeypatch):
    for name in target.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    assert main([classifier, str(tmp_path / "x.onnx")]) == USAGE_ERROR
    told = capsys.readouterr().err
    assert install_command(*target.PACKAGES) in told and "Traceback" not in told and not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("ratio", ["0", "1.5", "0.001"])
@pytest.mark.parametrize("target", ["hub", "export"])
def test_an_impossible_fraction_is_named(tmp_path, classifier, capsys, ratio, target):
    assert main([classifier, str(tmp_path / "x"), "--to", target, "--keep-ratio", ratio]) == USAGE_ERROR
    told = capsys.readouterr().err
    assert ratio in told and "Traceback" not in told and not (tmp_path / "x").exists()


def test_weights_of_interpolated_positions_are_refused_by_the_hub_and_exported_as_it_says(tmp_path, capsys):
    from mats_ds import TokenGrid

    source = store(make_classifier(position_grid=TokenGrid(8, 32, 48, (2, 8, 8))), tmp_path / "longer.safetensors")
    assert main([source, str(tmp_path / "hub"), "--to", "hub"]) == USAGE_ERROR
    told = capsys.readouterr().err
    assert "interpolated" in told and "--to onnx or --to export" in told and not (tmp_path / "hub").exists()
    assert main([source, str(tmp_path / "x.pt2"), "--to", "export", "--verify"]) == FINISHED
