"""The whole way as a user goes it, command by command, in one folder: pre-train, fine-tune,
evaluate, probe, extract, visualize.

Small clips and a few steps of one rank on synthetic videos: it shows that each command takes what
the one before left, not how well a model learns.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.data.synthetic import write_synthetic_set

ROOT = Path(__file__).resolve().parents[1]
DS_CONFIG = ["--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json")]
SMALL = ["clip.num_frames=8", "clip.height=32", "clip.width=48", "optim.steps=6", "optim.warmup_steps=2", "optim.global_batch=4"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(script, *arguments, folder):
    """Standard output of `python mats_ds/SCRIPT.py ARGUMENTS`, started in `folder`; fails with all
    that it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(ROOT / "mats_ds" / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_each_command_takes_what_the_one_before_left(tmp_path):
    train = write_synthetic_set(tmp_path / "train", num_videos=8, num_frames=24, height=48, width=80)
    val = write_synthetic_set(tmp_path / "val", num_videos=4, num_frames=24, height=48, width=80, seed=1)

    run("pretrain", "--recipe", "tiny", *DS_CONFIG, "--out", "pre", f"data.manifest={train}", *SMALL, folder=tmp_path)
    assert json.loads((tmp_path / "pre" / "outcome.json").read_text())["outcome"] == "finished"

    tested = [f"data.manifest={train}", f"evaluation.manifest={val}", "evaluation.every_epochs=1", "finetune.weights=pre"]
    run("finetune", "--recipe", "finetune_tiny", *DS_CONFIG, "--out", "ft", *tested, *SMALL, folder=tmp_path)
    assert (tmp_path / "ft" / "best.safetensors").is_file()

    run("evaluate", "--model", "ft", "--manifest", val, "--clips", 2, "--crops", 1, "--out", "ev", folder=tmp_path)
    with open(tmp_path / "ev" / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4

    run("probe", "--model", "pre", "--train", train, "--val", val, "--out", "pr", "--probes", "knn", folder=tmp_path)
    run("extract", "--model", "pre", "--manifest", val, "--out", "fe", folder=tmp_path)
    with open(tmp_path / "fe" / "index.csv", newline="") as file:
        assert len({row["path"] for row in csv.DictReader(file)}) == 4

    with open(val, newline="") as file:
        video = val.parent / next(csv.DictReader(file))["path"]
    run("visualize", video, "--weights", "pre", "--out", "seen.png", folder=tmp_path)
    assert (tmp_path / "seen.png").stat().st_size > 1000
