"""Checkpoints on disk: complete or skipped. What DeepSpeed's own `latest` does not check is checked
here, by checksums.

`core/checkpoint_files.py` says what a checkpoint is; `saver.py` writes them, `pruning.py` deletes
the old ones, and `resume.py` loads them into an engine. This file needs neither an engine nor
ranks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.core.checkpoint_files import (
    COMPLETE,
    FORMAT_VERSION,
    LATEST,
    FileSum,
    Verdict,
    examine,
    is_checkpoint,
    list_checkpoints,
    name_lookalikes,
)
from mats_ds.core.format import format_count
from mats_ds.core.storage.files import hash_stream, open_regular, sync_to_disk, write_json, write_text
from mats_ds.training.checkpoints.removal import foreign_names, new_part_name, remove_part

logger = logging.getLogger(__name__)

SHOWN_NAMES = 5


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk. `zero_stage` and `global_batch` are None in those of version
    0.1."""

    folder: Path
    tag: str
    step: int
    world_size: int
    zero_stage: int | None = None
    global_batch: int | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.tag


def seal(
    part: Path, *, step: int, world_size: int, facts: Mapping[str, Any] | None = None, known: Iterable[FileSum] = ()
) -> None:
    """Force a folder's files to disk and write their sizes and SHA-256 sums beside them.

    known: files whose writers have synced and hashed them already. facts: more keys of
    complete.json.
    """
    sums = {file_sum.name: file_sum for file_sum in known}
    for file in sorted(path for path in part.rglob("*") if path.is_file()):
        name = str(file.relative_to(part))
        if name in sums and sums[name].num_bytes == file.stat().st_size:
            continue
        with open_regular(file) as stream:
            digest = hash_stream(stream)
            os.fsync(stream.fileno())
        sums[name] = FileSum(name, file.stat().st_size, digest)
    files = {name: {"bytes": file_sum.num_bytes, "sha256": file_sum.sha256} for name, file_sum in sums.items()}
    content = {"format_version": FORMAT_VERSION, "step": step, "world_size": world_size, **(facts or {}), "files": files}
    write_json(part / COMPLETE, content, durable=True)


def publish(part: Path, folder: Path, tag: str) -> None:
    """A sealed folder becomes the checkpoint `tag`, and the latest one.

    A damaged checkpoint of that name is deleted; anything else of that name is the user's and is
    renamed, with a warning. Raises OSError where the folder cannot be renamed; after that the
    checkpoint counts, whatever becomes of `latest`.
    """
    target, old = folder / tag, None
    if os.path.lexists(target):
        old = _move_aside(target)
    os.rename(part, target)
    sync_to_disk(folder)  # before anything older may go
    try:
        write_text(folder / LATEST, tag, durable=True)
    except (OSError, ValueError) as error:  # no room for a name, or a link of the user's
        logger.warning("step %s is saved, but %s does not name it: %s", tag.removeprefix("step-"), folder / LATEST, error)
    if old is not None:
        remove_part(old)


def _move_aside(target: Path) -> Path | None:
    """Free the name of a checkpoint; returns what may be deleted then."""
    verdict = examine(target) if target.is_dir() and not target.is_symlink() else Verdict(None)
    if verdict.problem is not None and verdict.is_certain and not foreign_names(target):
        old = target.with_name(new_part_name(target.name))
        os.rename(target, old)
        return old
    number = 1
    while os.path.lexists(aside := target.with_name(f"{target.name}.kept-{number}")):
        number += 1
    os.rename(target, aside)
    logger.warning("%s was there and was not written by this run: it is now called %s", target, aside.name)
    return None


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a folder (`checkpoints/`, or one checkpoint itself); None
    if there is none at all.

    Damaged ones are skipped with a warning, and so are copies and links. Raises ValueError when
    there are checkpoints but all of them are damaged.
    """
    candidates = list_checkpoints(folder) or ([folder] if is_checkpoint(folder) else [])
    for name in name_lookalikes(folder)[:SHOWN_NAMES]:
        logger.warning("%r in %s is left alone: a checkpoint is a folder named step- and eight digits, no link", name, folder)
    for candidate in candidates:
        verdict = examine(candidate)
        if verdict.complete is not None:
            complete = verdict.complete
            sizes = dict(zero_stage=complete.zero_stage, global_batch=complete.global_batch)
            return Checkpoint(candidate.parent, candidate.name, complete.step, complete.world_size, **sizes)
        logger.warning("checkpoint %s is skipped: %s", candidate, verdict.problem)
    if candidates:
        raise ValueError(
            f"{folder} has {format_count(len(candidates), 'checkpoint')}, none of them complete: "
            "start with another --out, or remove them"
        )
    return None
