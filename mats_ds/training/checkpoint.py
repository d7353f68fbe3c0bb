"""Checkpoints that are whole or not there: written aside, hashed, renamed, and only then called the latest.

DeepSpeed itself moves `latest` without looking at the files, and starts from scratch without a word when it finds none; here
a torn checkpoint is passed over with a warning and a missing one is an error.
Layout: checkpoints/step-00001000/{DeepSpeed's files, complete.json}, checkpoints/latest (the name of the newest whole one).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
COMPLETE = "complete.json"
LATEST = "latest"
PREFIX = "step-"
CHUNK_BYTES = 1 << 22
# What DeepSpeed's converter to world-size-independent checkpoints asks for.
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}


@dataclass(frozen=True)
class Found:
    """A whole checkpoint on disk."""

    folder: Path
    tag: str
    step: int
    world_size: int


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on: `step` steps are finished, `state` is what was stored beside the engine."""

    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(
    engine: Any, folder: Path, *, step: int, recipe: str, keep: int, extra: Mapping[str, Any] | None = None
) -> Path:
    """Save the engine after `step` finished steps; called by every rank; the last `keep` checkpoints stay.

    recipe: the resolved recipe as YAML, stored inside, and with it what `extra` holds. Returns the checkpoint's folder.
    """
    tag = f"{PREFIX}{step:08d}"
    aside = f".{tag}.part"
    first = dist.get_rank() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / aside, ignore_errors=True)
    dist.barrier()
    state = {"step": step, "world_size": dist.get_world_size(), "format_version": FORMAT_VERSION, "recipe": recipe}
    state.update(UNIVERSAL_INFO)
    state.update(extra or {})
    engine.save_checkpoint(str(folder), tag=aside, client_state=state, save_latest=False)
    dist.barrier()
    if first:
        seal(folder / aside, step=step, world_size=dist.get_world_size())
        shutil.rmtree(folder / tag, ignore_errors=True)
        os.replace(folder / aside, folder / tag)
        _write_atomic(folder / LATEST, tag)
        prune(folder, keep=keep)
    dist.barrier()
    return folder / tag


def seal(part: Path, *, step: int, world_size: int) -> None:
    """Force a folder's files to disk and write their sizes and SHA-256 sums beside them."""
    files = {}
    for file in sorted(path for path in part.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest = _sha256(stream)
            os.fsync(stream.fileno())
        files[str(file.relative_to(part))] = {"bytes": file.stat().st_size, "sha256": digest}
    content = {"format_version": FORMAT_VERSION, "step": step, "world_size": world_size, "files": files}
    _write_atomic(part / COMPLETE, json.dumps(content, indent=1))


def what_is_broken(checkpoint: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None when every file is there with the bytes that were written."""
    try:
        content = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        if content["format_version"] > FORMAT_VERSION:
            return f"it was written by a newer version (format {content['format_version']}, this one reads {FORMAT_VERSION})"
        for name, stated in content["files"].items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != stated["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {stated['bytes']}"
            with file.open("rb") as stream:
                if _sha256(stream) != stated["sha256"]:
                    return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"it has no {COMPLETE}: it was never finished"
    except (KeyError, TypeError, ValueError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    return None


def find_checkpoint(folder: Path) -> Found | None:
    """The newest whole checkpoint of a folder (`checkpoints/`, or one `step-...` inside it); None if there is none at all.

    Broken ones are passed over with a warning. Raises ValueError when there are checkpoints but all of them are broken.
    """
    itself = (folder / COMPLETE).is_file()
    candidates = [folder] if itself else sorted(folder.glob(f"{PREFIX}*"), reverse=True)
    for candidate in candidates:
        problem = what_is_broken(candidate)
        if problem is None:
            content = json.loads((candidate / COMPLETE).read_text(encoding="utf-8"))
            return Found(candidate.parent, candidate.name, content["step"], content["world_size"])
        logger.warning("checkpoint %s is passed over: %s", candidate, problem)
    if candidates:
        raise ValueError(
            f"none of the {len(candidates)} checkpoints in {folder} is whole: start with another --out, or remove them"
        )
    return None


def resume_engine(engine: Any, folder: Path) -> Resumed:
    """Load the newest whole checkpoint of `folder` into the engine; where there is none yet, say so and begin at the first step.

    Raises ValueError as `find_checkpoint` and `load_checkpoint` do.
    """
    found = find_checkpoint(folder)
    if found is None:
        logger.warning("no checkpoint in %s yet: starting from the first step", folder)
        return Resumed()
    return load_checkpoint(engine, found)


def load_checkpoint(engine: Any, found: Found) -> Resumed:
    """Load it into the engine on every rank.

    Raises ValueError for another number of ranks than it was saved with.
    """
    if found.world_size != dist.get_world_size():
        raise ValueError(
            f"{found.folder / found.tag} was saved by {found.world_size} ranks and this run has {dist.get_world_size()}: "
            f"resume with --num_gpus {found.world_size}"
        )
    path, state = engine.load_checkpoint(str(found.folder), tag=found.tag)
    if path is None:
        raise ValueError(f"DeepSpeed could not load {found.folder / found.tag}")
    return Resumed(int(state["step"]), state)


def prune(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what unfinished saves left behind."""
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        shutil.rmtree(old)
    for part in folder.glob(f".{PREFIX}*.part"):
        shutil.rmtree(part)


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _write_atomic(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
