"""mats_ds/probe.py from outside: figures that can be checked, features that are made once, errors
that say what to do."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier, probe
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.evaluation import probes, probing
from mats_ds.models.weights.load import weights_of
from mats_ds.models.weights.native import save_weights

GRID = TokenGrid(num_frames=4, height=32, width=32, tubelet=(2, 8, 8))
SIZES = dict(width=12, depth=1, heads=3)
DECODER = dict(decoder_width=6, decoder_heads=3, decoder_depth=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folder of 8 videos of 4 classes with train.csv and val.csv, 4 videos each."""
    folder = tmp_path_factory.mktemp("videos") / "set"
    rows = list(csv.reader(write_synthetic_set(folder, num_videos=8, num_frames=20, height=48, width=64).open()))[1:]
    for name, part in (("train", rows[::2]), ("val", rows[1::2])):
        (folder / f"{name}.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in part))
    return folder


@pytest.fixture
def model(tmp_path) -> str:
    torch.manual_seed(0)
    return save(MaskedAutoencoder(grid=GRID, **SIZES, **DECODER, keep_ratio=0.5, visible_ratio=0.25), tmp_path)


def save(module, folder) -> str:
    weights = weights_of(module, "a test")
    save_weights(folder / "w.safetensors", weights.spec, weights.state)
    return str(folder / "w.safetensors")


def save_encoder(module, folder) -> str:
    """Only what a Hugging Face encoder brings: no decoder, no head."""
    weights = weights_of(module, "a test")
    state = {name: tensor for name, tensor in weights.state.items() if name.startswith(("patch_embed.", "encoder."))}
    spec = replace(weights.spec, kind="encoder", decoder_width=0, decoder_depth=0, decoder_heads=0)
    save_weights(folder / "encoder.safetensors", spec, state)
    return str(folder / "encoder.safetensors")


@pytest.fixture
def run(videos, model, tmp_path, capsys, monkeypatch):
    """Runs it with few steps; returns the status and what it printed and said went wrong."""
    monkeypatch.setattr(probes, "MIN_STEPS", 3)
    monkeypatch.setattr(probes, "EPOCHS", 1)

    def call(*arguments: str, source=model, train="train.csv", val="val.csv", out="out") -> tuple[int, str, str]:
        given = {"--model": source, "--train": videos / train, "--val": videos / val, "--out": tmp_path / out}
        words = [str(word) for pair in given.items() for word in pair]
        status = probe.main([*words, "--device", "cpu", "--workers", "0", "--stride", "1", *arguments])
        return status, *capsys.readouterr()

    return call


def read_results(folder) -> dict:
    found = json.loads((folder / "out" / "probe.json").read_text())
    return {(result["probe"], result["weights"]): result["top1"] for result in found["results"]} | {"chance": found["chance"]}


def test_all_probes_are_told_and_written_with_their_intervals(run, tmp_path):
    status, printed, _ = run("--baseline")
    assert status == 0
    for words in ("chance", "25.00% by guessing", "knn        trained", "attentive  fresh", "95% interval", "4 train and 4 val"):
        assert words in printed
    results = read_results(tmp_path)
    assert results["chance"] == {"guessing": 0.25, "most_frequent": 0.25}
    assert {key for key in results if key != "chance"} == {
        (kind, weights) for kind in ("knn", "linear", "attentive") for weights in ("trained", "fresh")
    }
    top1 = results["knn", "trained"]
    assert top1["total"] == 4 and top1["low"] < top1["value"] < top1["high"] or top1["value"] in (0, 1)


def test_what_was_fitted_to_is_known_by_heart_and_runs_repeat_themselves(run, tmp_path):
    """Tested on the training videos themselves, the nearest neighbour is the video itself."""
    for _ in range(2):
        assert run("--neighbours", "1", "--probes", "knn", "linear", "--allow_overlap", val="train.csv")[0] == 0
        results = read_results(tmp_path)
        assert results["knn", "trained"]["value"] == 1 and results["linear", "trained"]["value"] == 1


def test_videos_in_both_manifests_are_refused_unless_told_to_warn(run, videos, tmp_path, caplog):
    rows = (videos / "val.csv").read_text() + (videos / "train.csv").read_text().splitlines()[1] + "\n"
    (videos / "mixed.csv").write_text(rows)
    status, printed, error = run("--probes", "knn", val="mixed.csv")
    assert status == 2 and error.startswith("error: 1 of 5 videos of set/mixed.csv are in set/train.csv")
    assert "--allow_overlap" in error and printed == "" and not (tmp_path / "out").exists()
    status, printed, _ = run("--probes", "knn", "--allow_overlap", val="mixed.csv")
    assert status == 0 and "1 of 5 videos" in caplog.text and "measured on 5 videos of set/mixed.csv: 1 x 1 view," in printed
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["also_trained_on"] == 1


def test_features_are_made_once_for_the_same_weights_videos_and_clips(run, monkeypatch):
    calls, extract = [], probing.extract_set
    monkeypatch.setattr(probing, "extract_set", lambda *args, **named: calls.append(named["label"]) or extract(*args, **named))
    run("--probes", "knn")
    assert calls == ["train-trained", "val-trained"]
    run("--probes", "knn", "linear")
    assert len(calls) == 2
    run()  # tokens are wanted, too
    assert len(calls) == 4
    run("--probes", "knn", "--stride", "2")
    assert len(calls) == 6
    run("--probes", "knn", "--stride", "2", "--keep_ratio", "0.5")
    assert len(calls) == 8


def test_views_are_averaged_and_their_tokens_joined(run, monkeypatch):
    found, fit_probes = [], probing.fit_probes
    monkeypatch.setattr(probing, "fit_probes", lambda *sets, **named: found.append(sets) or fit_probes(*sets, **named))
    assert run("--clips", "2", "--keep_ratio", "0.25")[0] == 0
    train = found[0][0]
    assert train.pooled_SD.shape == (4, 12) and train.tokens_SKD.shape == (4, 2 * 8, 12)
    assert train.label_S.tolist() == [0, 1, 2, 3] and train.pooled_SD.isfinite().all()


def test_a_classifier_and_an_encoder_alone_have_features_too(run, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "classifier").mkdir()
    classifier = save(VideoClassifier(grid=GRID, **SIZES, num_classes=9, keep_ratio=0.5), tmp_path / "classifier")
    encoder = save_encoder(MaskedAutoencoder(grid=GRID, **SIZES, **DECODER), tmp_path)
    assert "16 tokens a video" in run("--baseline", source=classifier)[1]  # the half that it keeps
    assert "32 tokens a video" in run("--baseline", source=encoder)[1]


def test_a_video_that_cannot_be_read_is_named_and_left_out(run, videos, tmp_path, caplog):
    shutil.copytree(videos, tmp_path / "copy")
    lines = (tmp_path / "copy" / "val.csv").read_text().splitlines()
    (tmp_path / "copy" / lines[2].split(",")[0]).write_bytes(b"no video")
    status, printed, _ = run("--probes", "knn", val=tmp_path / "copy" / "val.csv")
    assert status == 0 and "4 train and 3 val videos" in printed
    assert f"left out: {tmp_path / 'copy' / lines[2].split(',')[0]}" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "named", "said"),
    [
        ((), {"source": "nowhere"}, "there is no file or folder nowhere"),
        ((), {"train": "nowhere.csv"}, "no manifest at"),
        (("--keep_ratio", "1.5"), {}, "--keep_ratio is above 0 and at most 1, got 1.5"),
        (("--token_gib", "1e-9"), {}, "--probes knn linear"),
        (("--neighbours", "0"), {}, "--neighbours is at least 1"),
        (("--device", "nonsense"), {}, "there is no device 'nonsense'"),
        (("--clips", "0"), {}, "--clips is at least 1"),
    ],
)
def test_one_clear_error(run, tmp_path, arguments, named, said):
    status, _, error = run(*arguments, **named)
    assert status == 2 and said in error and "Traceback" not in error
    assert error.startswith("error: ") and not (tmp_path / "out" / "probe.json").exists()


def test_a_place_that_cannot_be_written_is_one_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, error = run("--probes", "knn", out="file/x")
    assert status == 2 and error.startswith("error: ") and str(tmp_path / "file") in error


def test_labels_that_do_not_fit_are_told_before_anything_is_decoded(run, videos):
    rows = (videos / "train.csv").read_text()
    (videos / "odd.csv").write_text(rows.replace(",0\n", ",7\n"))
    status, printed, error = run(val="odd.csv")
    assert status == 2 and "has videos of class 7" in error and printed == ""


class TestOut:
    """--out DIR: new, empty or of an earlier probe; anything else stays as it is."""

    def test_a_foreign_folder_is_refused_before_the_weights_are_read(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(probing, "read_model_weights", None)
        for number, (name, text) in enumerate(
            {"probe.json": '{"model": 1}', "train-trained.safetensors": "theirs", "index.csv": "", "notes.txt": ""}.items()
        ):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / name).write_text(text)
            status, printed, error = run(out=str(number))
            assert (status, printed) == (2, "") and f"holds {name}" in error and "new or empty folder" in error
            assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == text

    @pytest.mark.parametrize("left", ["everything", "features alone"])
    def test_a_folder_of_version_0_1_is_known_by_what_it_holds(self, run, tmp_path, monkeypatch, left):
        assert run("--probes", "knn")[0] == 0
        (tmp_path / "out" / ".made_by.json").unlink()
        if left != "everything":
            (tmp_path / "out" / "probe.json").unlink()
        monkeypatch.setattr(probing, "extract_set", None)
        assert run("--probes", "knn")[0] == 0  # with the features of before
        names = {".made_by.json", "probe.json", "train-trained.safetensors", "val-trained.safetensors"}
        assert {path.name for path in (tmp_path / "out").iterdir()} == names

    @pytest.mark.parametrize("name", ["probe.json", "val-fresh.safetensors", "val-trained.safetensors"])
    def test_what_somebody_has_put_there_or_changed_is_not_overwritten(self, run, tmp_path, monkeypatch, name):
        assert run("--probes", "knn")[0] == 0
        (tmp_path / "out" / name).write_text('{"model": "mine"}')
        monkeypatch.setattr(probing, "read_model_weights", None)
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        status, printed, error = run("--probes", "knn")
        assert (status, printed) == (2, "") and f"{name} " in error and "rename it" in error and error.count("\n") == 1
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    @pytest.mark.parametrize("name", ["probe.json", "val-trained.safetensors"])
    def test_a_link_is_not_followed(self, run, tmp_path, name):
        precious = tmp_path / "precious"
        precious.write_text("precious")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".made_by.json").write_text('{"made_by": "probe"}')
        (tmp_path / "out" / name).symlink_to(precious)
        status, _, error = run("--probes", "knn")
        assert status == 2 and error.startswith("error: ") and "symbolic link" in error
        assert precious.read_text() == "precious" and (tmp_path / "out" / name).is_symlink()

    def test_without_room_for_the_features_the_figures_are_still_there(self, run, tmp_path, file_limit, caplog):
        with file_limit(500):  # the features have 600 bytes, the marker 30
            status, printed, error = run("--probes", "knn")
        assert "knn        trained" in printed and caplog.text.count("not kept for the next time") == 2
        assert status == 2 and str(tmp_path / "out") in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()  # nothing was written into it
