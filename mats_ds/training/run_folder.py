"""The folder of a run: its name, and what is written into it before the first step."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mats_ds.core.checkpoint_files import CHECKPOINTS
from mats_ds.core.run_dir import DS_CONFIG_FILE, RECIPE_FILE
from mats_ds.core.storage.documents import parse_json, parse_yaml
from mats_ds.core.storage.files import read_bytes, write_json, write_text
from mats_ds.core.storage.folder_lock import admit_ranks, hold_folder, join_hold, release_folder
from mats_ds.core.storage.output_folder import MARKER, make_new_folder
from mats_ds.distributed.collectives import Ranks, ask_first
from mats_ds.training.own_folder import check_run_folder, find_newest_run

logger = logging.getLogger(__name__)

RUNS = Path("runs")
INPUT_BYTES = 1 << 20


def choose_run_folder(out: str | None, ranks: Ranks, *, recipe_name: str, task: str, resume: bool) -> Path:
    """The folder that all ranks write to: `--out`, else the newest run of this recipe (to resume),
    else a new one below `runs/`. This run holds it until it ends (core/storage/folder_lock.py).

    Raises ValueError when --resume finds nothing to go on with, when --out holds a run that is not
    being resumed or anything else, when another process is at work in it, and when the folder
    cannot be written. A folder that is refused is as it was.
    """

    def choose() -> Path:
        try:
            return _choose(out, recipe_name, task, resume)
        except OSError as error:
            raise ValueError(f"the run folder cannot be written: {error}: choose another --out") from None

    folder = ask_first(choose, ranks)
    if ranks.rank != 0:
        join_hold(folder, rank=ranks.rank)
    return folder


def _choose(out: str | None, recipe_name: str, task: str, resume: bool) -> Path:
    if out is not None:
        folder = parse_out(out)
    elif resume:
        folder = find_newest_run(RUNS, recipe_name=recipe_name, task=task)
    else:
        folder = make_new_folder(RUNS, f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}")
    check_run_folder(folder, task=task, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    hold_folder(folder, command=f"mats_ds/{task}.py")
    try:
        check_run_folder(folder, task=task, resume=resume)  # another one may just have begun in it
        if (folder / CHECKPOINTS).is_symlink():  # a copy of this run folder has the same link
            hold_folder(folder / CHECKPOINTS, command=f"mats_ds/{task}.py")
        if not (folder / MARKER).exists():
            write_json(folder / MARKER, {"made_by": task})
        # the one way to find out: permissions, quotas, read-only disks
        with tempfile.TemporaryFile(dir=folder):
            pass
        admit_ranks(folder)
    except BaseException:
        release_folder(folder / CHECKPOINTS)
        release_folder(folder)
        raise
    return folder


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


def write_inputs(folder: Path, *, recipe: str, ds_config: Mapping[str, Any]) -> None:
    """The resolved recipe and the DeepSpeed JSON, as this run uses them; logs what differs from
    those that it goes on with."""
    inputs = (
        (RECIPE_FILE, recipe, parse_yaml, "going on with other settings than before"),
        (
            DS_CONFIG_FILE,
            json.dumps(ds_config, indent=2) + "\n",
            parse_json,
            "going on with another DeepSpeed JSON than before",
        ),
    )
    for name, text, parse, warning in inputs:
        try:
            changes = name_changes(parse(read_bytes(folder / name, max_bytes=INPUT_BYTES).decode()), parse(text))
        except FileNotFoundError:
            changes = []
        except ValueError as error:
            changes = [f"what {name} held cannot be read ({str(error)[:200]})"]
        if changes:
            logger.warning("%s: %s", warning, "; ".join(changes))
        write_text(folder / name, text)


def name_changes(before: Any, after: Any, *, path: str = "") -> list[str]:
    """The differences of two resolved recipes, as "optim.base_lr 0.001 -> 0.002"; all keys count,
    also those of one alone."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{path} {before} -> {after}"]
    keys = [*after, *(key for key in before if key not in after)]
    pairs = [(before.get(key), after.get(key), f"{path}.{key}" if path else str(key)) for key in keys]
    return [change for old, new, name in pairs for change in name_changes(old, new, path=name)]
