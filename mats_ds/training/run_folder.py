"""The folder of a run: its name, and what is written into it before the first step."""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mats_ds import __version__
from mats_ds.parsing import parse_json, parse_yaml
from mats_ds.training.run_claim import claim_new_run

logger = logging.getLogger(__name__)

RUNS = Path("runs")
PACKAGES = ("torch", "deepspeed", "timm", "av", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "pydantic", "nvidia-ml-py")


def choose_run_folder(out: str | None, *, recipe_name: str, resume: bool) -> Path:
    """The folder that all ranks write to: `--out`, else the newest run of this recipe (to resume), else a new one below `runs/`.

    Raises ValueError when --resume finds nothing to go on with, when --out holds a run that is not being resumed or in which
    another process is starting one, and when the folder cannot be written.
    """
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            choice = [_choose(out, recipe_name, resume)]
        except ValueError as error:
            choice = [error]
        except OSError as error:
            choice = [ValueError(f"the run folder cannot be written: {error}: choose another --out")]
    dist.broadcast_object_list(choice, src=0)
    if isinstance(choice[0], ValueError):
        raise choice[0]
    return choice[0]


def _choose(out: str | None, recipe_name: str, resume: bool) -> Path:
    if out is not None:
        folder = Path(out)
    elif resume:
        runs = sorted(RUNS.glob(f"{recipe_name}-*/run.json"), key=lambda path: path.stat().st_mtime)
        if not runs:
            raise ValueError(f"--resume auto found no run of {recipe_name} below {RUNS}/: name its folder with --out")
        folder = runs[-1].parent
    else:
        folder = _make_new(f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir(parents=True, exist_ok=True)
    claim_new_run(folder, resume=resume)
    with tempfile.TemporaryFile(dir=folder):  # the one way to know: permissions, quotas and read-only disks all speak up here
        pass
    return folder


def _make_new(name: str) -> Path:
    """A folder below RUNS that nobody else has made: of runs that start in the same second, the later ones get a number."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def write_inputs(folder: Path, *, recipe: str, ds_config: Mapping[str, Any]) -> None:
    """The resolved recipe and the DeepSpeed JSON, as this run uses them; says what differs from those that it goes on with."""
    file = folder / "recipe.yaml"
    if file.exists():
        changes = name_changes(parse_yaml(file.read_text(encoding="utf-8")), parse_yaml(recipe))
        if changes:
            logger.warning("going on with other settings than before: %s", "; ".join(changes))
    file.write_text(recipe, encoding="utf-8")
    file = folder / "ds_config.json"
    if file.exists():
        changes = name_changes(parse_json(file.read_text(encoding="utf-8")), dict(ds_config))
        if changes:
            logger.warning("going on with another DeepSpeed JSON than before: %s", "; ".join(changes))
    file.write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")


def name_changes(before: Any, after: Any, *, path: str = "") -> list[str]:
    """What differs between two resolved recipes, as "optim.base_lr 0.001 -> 0.002"; all keys count, also those of one alone."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{path} {before} -> {after}"]
    keys = [*after, *(key for key in before if key not in after)]
    pairs = [(before.get(key), after.get(key), f"{path}.{key}" if path else str(key)) for key in keys]
    return [change for old, new, name in pairs for change in name_changes(old, new, path=name)]


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
