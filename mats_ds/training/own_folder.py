"""Whose folder is it? A run is started in a folder that holds nothing, and gone on with in one that
holds a run of its script.

Any other is refused before a byte in it changes, whatever the names in it are: they may be
somebody's only copy.
"""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mats_ds.core.checkpoint_files import CHECKPOINTS
from mats_ds.core.run_dir import DS_CONFIG_FILE, OUTCOME_FILE, RECIPE_FILE, RUN_FILE
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import WrongKindOfFile, read_bytes, refuse_wrong_kind
from mats_ds.core.storage.folder_lock import LOCK_FILE
from mats_ds.core.storage.output_folder import MARKER, NFS_LEFTOVER, NOBODYS, read_marker
from mats_ds.core.text import quote_word

logger = logging.getLogger(__name__)

RUNS = Path("runs")
RUN_FILE_BYTES = 1 << 24  # grows by some 300 bytes with every resume
# A start leaves these behind where it ends before run.json. `.claim` was version 0.1's.
LOCK_FILES = (LOCK_FILE, ".claim", MARKER)
# A run writes these only after run.json: without that file, nobody knows what run they are of.
LATER = (CHECKPOINTS, "records", "evaluation.jsonl", "best.safetensors", "result.json", OUTCOME_FILE)
WRITTEN_FILES = (
    RECIPE_FILE, DS_CONFIG_FILE, RUN_FILE, OUTCOME_FILE, "plan.json", "plan-measured.json", "bad_clips.csv",
    "evaluation.jsonl", "result.json", "best.safetensors", "reconstruction.png",
)  # fmt: skip
WRITTEN_FOLDERS = ("records", "traces", "memory_snapshots")
SHOWN_NAMES = 3
SLACK_SECONDS = 300.0  # by how much the clocks of two hosts may differ


@dataclass(frozen=True)
class PastRun:
    """The facts that a start reads from run.json. `started`: of its newest part, seconds since
    1970."""

    folder: Path
    task: str
    recipe_name: str
    started: float


def parse_out(out: str) -> Path:
    """The folder of an `--out`. Raises ValueError for an empty one, which a shell variable without
    a value leaves, and for a home folder that is not known. (A shell leaves the ~ of --out=~/run as
    it is.)
    """
    if not out.strip():
        raise ValueError("--out is empty: name a folder")
    if not out.startswith("~"):
        return Path(out)
    try:
        return Path(out).expanduser()
    except RuntimeError:
        raise ValueError(f"--out {out}: there is no such home folder; write ./{out} for a folder of that name") from None


def check_run_folder(folder: Path, *, task: str, resume: bool) -> None:
    """Raises ValueError where a run of mats_ds/`task`.py may not be started, or gone on with, in
    this folder; OSError where it cannot be looked into. Writes nothing.
    """
    if not os.path.lexists(folder):
        return
    if not folder.exists():
        raise ValueError(
            f"--out {folder} is a link to {os.readlink(folder)}, and nothing is there: mend it, or choose another name"
        )
    if not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, expected a folder: choose another name")
    if os.path.lexists(folder / RUN_FILE):
        past = read_past_run(folder)
        if past.task != task:
            hint = f", and begin with its weights: {quote_word(f'finetune.weights={folder}')}" if task == "finetune" else ""
            raise ValueError(
                f"{folder} holds a run of mats_ds/{past.task}.py, and this is mats_ds/{task}.py: name another --out{hint}"
            )
        if not resume:
            raise ValueError(f"{folder} holds a run already: add --resume auto to go on with it, or choose another --out")
        refuse_links(folder)
        return
    names = list_names(folder)
    is_ours = read_marker(folder) == task and not set(names) & set(LATER)
    if names and not is_ours:
        more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        shown = ", ".join(map(repr, names[:SHOWN_NAMES]))
        raise ValueError(
            f"--out {folder} holds {shown}{more} and no {RUN_FILE}, so it is no run of mats_ds/{task}.py; nothing in it was "
            "touched: choose a new or empty folder"
        )
    refuse_links(folder)


def list_names(folder: Path) -> list[str]:
    """The names in a folder, without those that do not count and the files that this program's own
    output goes to."""
    outputs = [os.fstat(number) for number in (1, 2) if _is_open(number)]
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name not in NOBODYS
        and entry.name not in LOCK_FILES
        and not entry.name.startswith(NFS_LEFTOVER)
        and not any(os.path.samestat(entry.stat(follow_symlinks=False), output) for output in outputs)
    )


def refuse_links(folder: Path) -> None:
    """Raises WrongKindOfFile (a ValueError) where a link, or no file, has the name of a file that a
    run writes: it would lead to somewhere else. The folder of checkpoints may be a link, to a
    bigger disk; that disk has to be there.
    """
    checkpoints = folder / CHECKPOINTS
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        link = f"a link to {os.readlink(checkpoints)}, and no folder is there" if checkpoints.is_symlink() else "no folder"
        raise WrongKindOfFile(f"{checkpoints} is {link}: mount the disk that it lies on, or remove or rename it, then try again")
    for name in WRITTEN_FILES:
        refuse_wrong_kind(folder / name)
    for name in WRITTEN_FOLDERS:
        inner = folder / name
        if inner.is_symlink() or (inner.exists() and not inner.is_dir()):
            raise WrongKindOfFile(
                f"{inner} is a link or a file, expected a folder or nothing: remove it or rename it, then try again"
            )
        if inner.is_dir():
            for entry in os.scandir(inner):
                refuse_wrong_kind(Path(entry.path))


def read_past_run(folder: Path) -> PastRun:
    """Raises ValueError for a run.json that no training script of ours wrote."""
    path = folder / RUN_FILE
    fix = "choose another --out"
    try:
        tree = parse_json(read_bytes(path, max_bytes=RUN_FILE_BYTES))
    except WrongKindOfFile:
        raise
    except ValueError as error:
        raise ValueError(f"{path} cannot be read, so this is no run to go on with: {str(error)[:200]}; {fix}") from None
    if not isinstance(tree, dict) or not (isinstance(tree.get("recipe_name"), str) and type(tree.get("total_steps")) is int):
        raise ValueError(f"{path} is not of a run of mats_ds: expected an object with recipe_name and total_steps; {fix}")
    task = tree.get("task", "pretrain")  # which was all that there was before fine-tuning
    if task not in ("pretrain", "finetune"):
        raise ValueError(f"{path} is of a task {str(task)[:40]!r}, expected pretrain or finetune: update mats_ds, or {fix}")
    return PastRun(folder, task, tree["recipe_name"], _read_started(tree, path))


def find_newest_run(runs: Path, *, recipe_name: str, task: str) -> Path:
    """The run of this recipe and script below `runs` that was started or gone on with last, by what
    it wrote down itself: the times of files change when a folder is copied.

    Raises ValueError where there is none, and where a time is in the future: a clock was wrong, and
    the order is unknown.
    """
    runs_of_recipe = []
    for path in sorted(runs.glob(f"{glob.escape(recipe_name)}-*/{RUN_FILE}")):
        try:
            past = read_past_run(path.parent)
        except (OSError, ValueError) as error:
            logger.warning("skipped: %s", error)
            continue
        if (past.recipe_name, past.task) == (recipe_name, task):
            runs_of_recipe.append(past)
    if not runs_of_recipe:
        raise ValueError(
            f"--resume auto found no run of {recipe_name} below {runs}/: "
            "name its folder with --out, or begin one without --resume"
        )
    newest = max(runs_of_recipe, key=lambda past: past.started)
    if len(runs_of_recipe) > 1 and newest.started > time.time() + SLACK_SECONDS:
        raise ValueError(
            f"{newest.folder} says that it was started in the future, so a clock is or was wrong and the newest of "
            f"{len(runs_of_recipe):,} runs of {recipe_name} is unknown: name its folder with --out"
        )
    if len(runs_of_recipe) > 1:
        logger.info("going on with %s, the newest of %d runs of %s", newest.folder, len(runs_of_recipe), recipe_name)
    return newest.folder


def _read_started(tree: Mapping[str, Any], path: Path) -> float:
    """`started` is the same as that of the newest part; the file's own time where it is missing or
    something else."""
    try:
        return datetime.strptime(str(tree.get("started")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (ValueError, OverflowError):
        return path.stat().st_mtime


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
