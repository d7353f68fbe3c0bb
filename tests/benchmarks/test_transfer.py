"""The transfer benchmark from end to end on a few synthetic videos, and what it does not do
twice."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import transfer
from mats_ds.models.weights.load import load_model
from mats_ds.models.weights.native import load_weights


def test_the_first_weights_are_those_that_pretraining_begins_with(tmp_path):
    from mats_ds.config.load import load_recipe
    from mats_ds.models.mae import MaskedAutoencoder

    small = ["clip.num_frames=4", "clip.height=32", "clip.width=48"]
    transfer.write_first_weights(tmp_path / "fresh.safetensors", overrides=small, seed=3)
    torch.manual_seed(3)  # as mats_ds/pretrain.py does
    expected = MaskedAutoencoder.from_recipe(load_recipe("tiny", small)).state_dict()
    stored = load_weights(tmp_path / "fresh.safetensors").state
    assert all(stored[name].equal(tensor) for name, tensor in expected.items())
    assert load_model(tmp_path / "fresh.safetensors").grid.num_tokens == 48


def test_a_folder_without_lists_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"train\.csv is missing"):
        transfer.open_set(str(tmp_path), tmp_path / "work", num_train=4, num_val=4)


@pytest.mark.slow
def test_a_command_that_fails_is_shown_with_what_it_said(tmp_path):
    with pytest.raises(SystemExit, match=r"status 2(.|\n)*no recipe at nowhere"):
        transfer.run_once(tmp_path / "run", "pretrain.py", ["--recipe", "nowhere", "--ds_config", "none.json"])
    assert not (tmp_path / "run.done.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_measures_both_arms_and_writes_the_page(tmp_path, capsys):
    command = ["--seeds", "1", "--pretrain_steps", "41", "--finetune_steps", "21", "--train_videos", "8", "--val_videos", "4"]
    command += ["--clip", "clip.num_frames=4", "clip.height=32", "clip.width=32", "--micro_batch", "8"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert transfer.main(command) == 0
    assert capsys.readouterr().out.count(".py -> ") == 5
    (page,) = (tmp_path / "out").glob("transfer-*.md")
    assert "| 0 | from scratch |" in page.read_text() and "--pretrain_steps 41" in page.read_text()
    figures = json.loads(page.with_suffix(".json").read_text())
    assert {len(run["hits"]) for run in figures["sets"][0]["runs"]} == {4}

    assert transfer.main(command) == 0
    assert ".py -> " not in capsys.readouterr().out, "all of it was done before"


def test_what_was_made_from_a_folder_is_made_anew_after_it(tmp_path, monkeypatch, capsys):
    """A test of weights that were trained anew once kept the figures of those before."""
    (tmp_path / "mats_ds").mkdir()
    (tmp_path / "mats_ds" / "quick.py").touch()
    monkeypatch.setattr(transfer, "ROOT", tmp_path)
    source, out = tmp_path / "tuned", tmp_path / "tested"
    for number in range(2):
        transfer.done_file(source).write_text(json.dumps({"arguments": ["finetune.py"], "ended": number}))
        for _ in range(2):
            transfer.run_once(out, "quick.py", [], made_from=source)
        assert capsys.readouterr().out.count("quick.py -> ") == 1


def test_a_work_folder_of_somebody_else_is_left_as_it_is(tmp_path):
    """Runs are kept in WORK/SET/train and the like, which are removed before they are made anew: so
    may lie the videos."""
    mine = tmp_path / "synthetic" / "train" / "mine.mp4"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"video")
    with pytest.raises(SystemExit, match="--work .* holds synthetic"):
        transfer.main(["--work", str(tmp_path), "--out", str(tmp_path / "out")])
    assert mine.read_bytes() == b"video" and [path.name for path in tmp_path.iterdir()] == ["synthetic"]
