"""The folder of a run: its name, and what is written into it before the first step."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mats_ds import __version__

RUNS = Path("runs")
PACKAGES = ("torch", "deepspeed", "timm", "av", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "pydantic", "nvidia-ml-py")


def choose_run_folder(out: str | None, *, recipe_name: str, resume: bool) -> Path:
    """The folder that all ranks write to: `--out`, else the newest run of this recipe (to resume), else a new one below `runs/`.

    Raises ValueError when --resume finds nothing to go on with, or when --out holds a run that is not being resumed.
    """
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            choice = [_choose(out, recipe_name, resume)]
        except ValueError as error:
            choice = [error]
    dist.broadcast_object_list(choice, src=0)
    if isinstance(choice[0], ValueError):
        raise choice[0]
    return choice[0]


def _choose(out: str | None, recipe_name: str, resume: bool) -> Path:
    if out is not None:
        folder = Path(out)
        if not resume and (folder / "run.json").exists():
            raise ValueError(f"{folder} holds a run already: add --resume auto to go on with it, or choose another --out")
    elif resume:
        runs = sorted(RUNS.glob(f"{recipe_name}-*/run.json"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ValueError(f"--resume auto found no run of {recipe_name} below {RUNS}/: name its folder with --out")
        folder = runs[-1].parent
    else:
        name = f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
        taken = sum(1 for _ in RUNS.glob(f"{name}*"))  # runs that start in the same second
        folder = RUNS / (f"{name}-{taken + 1}" if taken else name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_inputs(folder: Path, *, recipe: str, ds_config: Mapping[str, Any]) -> None:
    """The resolved recipe and the DeepSpeed JSON, as this run uses them."""
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "ds_config.json").write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")


def collect_versions() -> dict[str, str]:
    """Versions of everything that a result depends on, and the commit where there is one."""
    versions = {"mats_ds": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).resolve().parents[2])
    if commit:
        versions["commit"] = commit
    return versions


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{' with uncommitted changes' if changed else ''}"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", os.fspath(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
