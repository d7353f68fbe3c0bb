"""The folder of a run: its name, and what is written into it before the first step."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mats_ds.core.checkpoint_files import CHECKPOINTS
from mats_ds.core.run_dir import DS_CONFIG_FILE, OUTCOME_OF_RANK, RECIPE_FILE
from mats_ds.core.storage.documents import parse_json, parse_yaml
from mats_ds.core.storage.files import read_bytes, write_json, write_text
from mats_ds.core.storage.folder_lock import admit_ranks, call_on_release, hold_folder, join_hold, release_folder
from mats_ds.core.storage.output_folder import MARKER, PART, make_new_folder
from mats_ds.core.storage.undo import FolderBefore, remember
from mats_ds.distributed.collectives import Ranks, ask_first
from mats_ds.training.checkpoints.converted import remove_left_converted
from mats_ds.training.checkpoints.match import show_value
from mats_ds.training.own_folder import RUNS, WRITTEN_FILES, WRITTEN_FOLDERS, check_run_folder, find_newest_run, parse_out

logger = logging.getLogger(__name__)

INPUT_BYTES = 1 << 20
REWRITTEN = tuple(name for name in WRITTEN_FILES if not name.endswith((".safetensors", ".png")))


def choose_run_folder(out: str | None, ranks: Ranks, *, recipe_name: str, task: str, resume: bool) -> Path:
    """The folder that all ranks write to: `--out`, else the newest run of this recipe (to resume),
    else a new one below `runs/`. This run holds it until it ends (core/storage/folder_lock.py).

    Raises ValueError when --resume finds nothing to go on with, when --out holds a run that is not
    being resumed or anything else, when another process is at work in it, and when the folder
    cannot be written. A folder that is refused is as it was; so is one that is let go before
    `keep_run_folder`, and one that was made for this start goes again.
    """

    def choose() -> tuple[Path, FolderBefore]:
        try:
            return _begin(out, recipe_name, task, resume)
        except OSError as error:
            raise ValueError(f"the run folder cannot be written: {error}: choose another --out") from None

    folder, before = ask_first(choose, ranks)
    if ranks.rank != 0:
        join_hold(folder, rank=ranks.rank)
        call_on_release(folder, after=before.remove_made)  # the last of the ranks finds it empty
    return folder


def keep_run_folder(folder: Path) -> None:
    """The first step begins: what is written from now on stays, however the run ends."""
    call_on_release(folder)


def _choose(out: str | None, recipe_name: str, task: str, resume: bool) -> Path:
    return _begin(out, recipe_name, task, resume)[0]


def _begin(out: str | None, recipe_name: str, task: str, resume: bool) -> tuple[Path, FolderBefore]:
    made_above: tuple[Path, ...] = ()
    if out is not None:
        folder = parse_out(out)
    elif resume:
        folder = find_newest_run(RUNS, recipe_name=recipe_name, task=task)
    else:
        made_above = remember(RUNS, rewritten=()).made
        folder = make_new_folder(RUNS, f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}")
        made_above = (Path(os.path.abspath(folder)), *made_above)
    check_run_folder(folder, task=task, resume=resume)
    outcomes = [path.name for path in folder.glob("outcome*.json")] if folder.is_dir() else []
    before = remember(folder, rewritten=(*REWRITTEN, *outcomes))
    before = replace(before, made=before.made or made_above)
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
        before.remove_made()
        raise
    call_on_release(folder, before=partial(_put_back, before), after=before.remove_made)
    return folder, before


def _put_back(before: FolderBefore) -> None:
    remove_left_converted(before.folder / CHECKPOINTS)
    before.put_back(is_ours=_is_ours)


def _is_ours(name: str) -> bool:
    """Whether a start writes a file of this name, or has left a part of it."""
    first, *inside = Path(name).parts
    part = PART.fullmatch(first)
    first = part[1] if part else first
    return (
        (first in (*WRITTEN_FILES, MARKER) or OUTCOME_OF_RANK.fullmatch(first) is not None)
        if not inside
        else first in WRITTEN_FOLDERS
    )


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
        return [] if before == after else [f"{path} {show_value(before)} -> {show_value(after)}"]
    keys = [*after, *(key for key in before if key not in after)]
    pairs = [(before.get(key), after.get(key), f"{path}.{key}" if path else str(key)) for key in keys]
    return [change for old, new, name in pairs for change in name_changes(old, new, path=name)]
