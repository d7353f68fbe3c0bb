"""The lines of README and docs run: those for a notebook on a model and a video of the test's own,
the whole way on few clips."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trained_models import GRID, save_autoencoder, write_videos

ROOT = Path(__file__).resolve().parents[1]
README, EVALUATE, LAPTOP = ROOT / "README.md", ROOT / "docs" / "evaluate.md", ROOT / "docs" / "laptop.md"
PAGES = (README, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
MAX_README_LINES = 150


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_readme_is_read_in_one_sitting():
    assert len(README.read_text(encoding="utf-8").splitlines()) < MAX_README_LINES


def test_every_link_leads_to_a_file():
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.name}: {target}")
    assert dead == []


def test_every_file_that_a_page_names_is_there():
    """Of ours, named with a folder: `mats_ds/data/manifest.py`, `core/storage/files.py`,
    `docs/data.md`."""
    missing = []
    for page in PAGES:
        text = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
        for name in set(re.findall(r"(?<![\w./-])((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|yaml|json|sh))\b", text)):
            if not any((folder / name).exists() for folder in (ROOT, ROOT / "mats_ds", ROOT / "mats_ds" / "data")):
                missing.append(f"{page.name}: {name}")
    assert [name for name in missing if "runs/" not in name] == []


def test_the_tree_of_readme_names_every_room():
    tree = README.read_text(encoding="utf-8").partition("## Where everything is")[2]
    rooms = {path.parent.name for path in (ROOT / "mats_ds").glob("*/__init__.py")}
    programs = {path.name for path in (ROOT / "mats_ds").glob("*.py")} - {"__init__.py"}
    assert {name for name in rooms if f"  {name}/" not in tree} == set()
    assert {name for name in programs if name not in tree} == set()


def test_the_lines_that_take_features_of_a_video_run(tmp_path):
    (code,) = [block for block in python_blocks(EVALUATE) if "load_encoder" in block]
    model = save_autoencoder(tmp_path / "model.safetensors")
    video, _ = write_videos(tmp_path / "set", num_videos=1)[0]
    assert code.count('"runs/k400"') == code.count('"clip.mp4"') == 1
    names = {}
    exec(code.replace('"runs/k400"', repr(model)).replace('"clip.mp4"', repr(str(video))), names)
    assert names["features"].shape == (1, 24)
    assert names["tokens"].tokens_BKD.shape == (1, GRID.num_tokens, 24)


def test_the_lines_that_select_tokens_run():
    (code,) = [block for block in python_blocks(README) if "select_tokens" in block]
    names = {}
    exec(code.replace("torch.randint(0, 256, (2, 16,", "torch.randint(0, 256, (1, 16,"), names)
    assert names["loss"].ndim == 0 and names["kept"].visible_BV.shape == (2, 156)


def whole_way() -> list[str]:
    """The commands of docs/laptop.md, one line each."""
    block = re.search(r"```\n(.*?)```", LAPTOP.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    return block.replace("\\\n", " ").splitlines()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_way_runs_word_by_word(tmp_path):
    """Only with fewer videos and steps."""
    for name in ("mats_ds", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    commands = whole_way()
    scripts = [script for command in commands for script in re.findall(r"mats_ds/(\w+)\.py", command)]
    assert scripts == ["pretrain", "finetune", "evaluate", "probe", "extract", "visualize"]
    for command in commands:
        command = command.replace("num_videos=512", "num_videos=8").replace("num_videos=128", "num_videos=6")
        if "--recipe" in command:
            command += " optim.steps=4 optim.warmup_steps=1 optim.global_batch=4"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "moving.png").read_bytes().startswith(b"\x89PNG")
