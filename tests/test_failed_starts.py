"""A start that fails over its input leaves no file, folder, lock or leftover that was not there
before, whatever the program and whatever is wrong."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from types import SimpleNamespace

import pytest

from tests.trained_models import save_autoencoder, save_classifier, write_manifest, write_videos

STARTS = """
convert nowhere.pth new/x.safetensors
convert torn.safetensors new/x.safetensors
convert video.mp4 new/x
convert mae.safetensors file/x.safetensors
convert mae.safetensors new/x.safetensors --keep-ratio 7
convert mae.safetensors new/hub --to hub --license not,one
convert classifier.safetensors new/hf --to hf --class-names nowhere.txt
convert classifier.safetensors new/x.pt2 --batch 0
probe --model nowhere --train train.csv --val val.csv --out new/p
probe --model torn.safetensors --train train.csv --val val.csv --out new/p
probe --model mae.safetensors --train video.mp4 --val val.csv --out new/p
probe --model mae.safetensors --train train.csv --val train.csv --out new/p
probe --model mae.safetensors --train train.csv --val val.csv --out file/p
probe --model mae.safetensors --train train.csv --val val.csv --out new/p --keep_ratio 7
probe --model mae.safetensors --train train.csv --val val.csv --out empty --keep_ratio 7
probe --model mae.safetensors --train train.csv --val val.csv --out new/p --stride -1
probe --model mae.safetensors --train train.csv --val val.csv --out new/p --token_gib 0
extract --model torn.safetensors --manifest train.csv --out new/f
extract --model mae.safetensors --manifest video.mp4 --out new/f
extract --model mae.safetensors --manifest gone.csv --out new/f
extract --model mae.safetensors --manifest train.csv --out file/f
extract --model mae.safetensors --manifest train.csv --out new/f --keep_ratio 0.0001
extract --model mae.safetensors --manifest train.csv --out new/f --shard_videos 0
evaluate --model mae.safetensors --manifest train.csv --out new/e
evaluate --model classifier.safetensors --manifest train.csv --stride -1
evaluate --model classifier.safetensors --manifest gone.csv
evaluate --model classifier.safetensors --manifest train.csv --out file/e
visualize nowhere.mp4 --out new/x.gif
visualize video.mp4 --out new/x.gif --weights torn.safetensors
visualize video.mp4 --out new/x.gif --weights mae.safetensors --stride 0
visualize video.mp4 --out new/x.gif --weights mae.safetensors --clips 0
visualize video.mp4 --out file/x.gif --weights mae.safetensors
visualize video.mp4 --out new/x.gif --recipe typo.yaml
prepare import nowhere.txt --out x.csv
prepare import video.mp4 --out x.csv
prepare import file --out file/x.csv
prepare check nowhere.csv --out new/x.csv
prepare check gone.csv --out new/x.csv
prepare check train.csv --out file/x.csv
prepare check train.csv --out new/x.csv --workers 0
prepare check train.csv --out new/x.csv --timeout 0
prepare transcode video.mp4 --out new/t
prepare transcode gone.csv --out new/t
prepare transcode train.csv --out file/t
prepare transcode train.csv --out new/t --workers 0
prepare transcode train.csv --out new/t --short_side 1
prepare transcode train.csv --out new/t --segment 0
prepare pack video.mp4 --out new/s
prepare pack gone.csv --out new/s
prepare pack train.csv --out file/s
prepare pack train.csv --out new/s --shard_size big
prepare pack train.csv --out new/s --workers 0
plan --recipe typo.yaml
plan --recipe tiny --ds_config video.mp4
plan --recipe tiny optim.steps=
report nowhere
report video.mp4
report --compare nowhere empty --html new/x.html
docs --build file
docs --build file/x
docs --port 70000
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a small input of every kind, right and wrong ones."""
    folder = tmp_path_factory.mktemp("inputs")
    save_autoencoder(folder / "mae.safetensors")
    save_classifier(folder / "classifier.safetensors")
    videos = write_videos(folder / "videos", num_videos=8)
    write_manifest(folder / "train.csv", videos[:4])
    write_manifest(folder / "val.csv", videos[4:])
    (folder / "video.mp4").write_bytes(videos[0][0].read_bytes())
    (folder / "torn.safetensors").write_bytes((folder / "mae.safetensors").read_bytes()[:-100])
    (folder / "gone.csv").write_text("path,label\nnowhere.mp4,0\n")
    (folder / "typo.yaml").write_text("optm:\n  epochs: 3\n")
    (folder / "file").write_text("hello\n")
    (folder / "empty").mkdir()
    return folder


def list_all(folder):
    return {
        os.path.join(parent, name): None if name in folders else os.stat(os.path.join(parent, name)).st_mtime_ns
        for parent, folders, files in os.walk(folder)
        for name in folders + files
    }


@pytest.mark.parametrize("start", STARTS.strip().splitlines())
def test_a_failed_start_leaves_nothing(inputs, monkeypatch, capsys, start):
    verb, *arguments = start.split()
    monkeypatch.chdir(inputs)
    monkeypatch.setattr(sys, "argv", [f"mats {verb}", *arguments])
    before = list_all(inputs)
    assert importlib.import_module(f"mats_ds.{verb}").main(arguments) == 2
    told = capsys.readouterr().err
    assert "error:" in told and "Traceback" not in told
    assert list_all(inputs) == before


@pytest.mark.parametrize("task", ["transcode", "pack"])
def test_a_full_disk_that_is_seen_before_the_work_leaves_nothing(inputs, monkeypatch, capsys, task):
    from mats_ds import prepare

    monkeypatch.chdir(inputs)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10, used=10, free=0))
    before = list_all(inputs)
    assert prepare.main([task, "train.csv", "--out", "new/x"]) == 2
    assert "0 B free" in capsys.readouterr().err
    assert list_all(inputs) == before
