"""Every command and snippet of docs/ runs: page after page, in one folder, as a reader types them.

Only fewer videos, fewer steps and one rank: what is appended to a command is in `shorten`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.model_spec import describe_model
from mats_ds.models.weights.model_weights import Weights
from mats_ds.models.weights.native import save_weights
from mats_ds.models.weights.videomae import write_videomae
from tests.docs.blocks import DOCS, ROOT, commands_of, list_pages, read_blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LAPTOP = DOCS / "start" / "laptop.md"
RUNS = {
    page: [b for b in read_blocks(page) if b.language in ("bash", "console", "python") and not b.reason] for page in list_pages()
}
PAGES = [LAPTOP, *(page for page, blocks in RUNS.items() if blocks and page not in (LAPTOP, ROOT / "README.md"))]
IN_CHECKOUT = ("mats_ds", "ds_configs", "profiling", "benchmarks", "examples", "launch.sh")
ON_RANKS = ("mats pretrain", "mats finetune", "mats evaluate", "mats extract")


def shorten(command: str) -> str:
    """The command with less to do."""
    command = command.replace("num_videos=512", "num_videos=16").replace("num_videos=128", "num_videos=8")
    if command.startswith(ON_RANKS) and "--video" not in command:
        command += " --num_gpus 1"
    if command.startswith(("mats pretrain", "mats finetune")):
        command += " optim.steps=3 optim.warmup_steps=1 optim.global_batch=4"
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A reader's folder: the checkout's own folders, and the files that pages assume to be
    there."""
    path = tmp_path_factory.mktemp("reader")
    for name in IN_CHECKOUT:
        if (ROOT / name).exists():
            (path / name).symlink_to(ROOT / name)
    (path / "bin").mkdir()
    mats = path / "bin" / "mats"
    mats.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "mats_ds" / "__main__.py"}" "$@"\n')
    mats.chmod(0o755)
    (path / "runs").mkdir()
    (path / "runs" / "k400").symlink_to("moving")  # of the laptop page
    (path / "clip.mp4").symlink_to("data/moving/val/synthetic_004_falling.mp4")
    clips = path / "data" / "clips"  # two class folders
    for name in ("falling", "rising"):
        (clips / name).mkdir(parents=True)
        (clips / name / f"{name}.mp4").symlink_to(path / "data" / "moving" / "val" / "synthetic_004_falling.mp4")
    torch.manual_seed(0)
    model = MaskedAutoencoder.from_name("tiny", grid=TokenGrid(16, 32, 32), keep_ratio=0.6, visible_ratio=0.2)
    spec, state = describe_model(model), model.state_dict()
    save_weights(path / "k400.safetensors", spec, state, note="of a test")
    write_videomae(path / "videomae.pth", Weights(spec, state, source="a test"))
    return path


def run_shell(command: str, folder: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{binaries}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(["bash", "-c", shorten(command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\nstatus {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in RUNS[page]:
        if block.language == "python":
            exec(compile(block.text, block.name, "exec"), names)
            continue
        for command in commands_of(block):
            run_shell(command, folder)


def test_the_laptop_page_leaves_what_the_guides_go_on_from(folder):
    """After the pages above, in the order of this file."""
    assert (folder / "runs" / "moving.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "runs" / "moving-features" / "index.csv").is_file()
    assert (folder / "runs" / "moving" / "report.html").is_file()
