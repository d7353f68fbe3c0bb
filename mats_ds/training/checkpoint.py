"""Checkpoints on disk: whole or passed over. What DeepSpeed's own `latest` does not check is checked here, by sums.

Layout: checkpoints/step-00001000/{DeepSpeed's files, complete.json}, checkpoints/latest (the name of the newest whole one).
`saving.py` writes them, `resuming.py` loads them into an engine; this file needs neither an engine nor ranks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
COMPLETE = "complete.json"
LATEST = "latest"
PREFIX = "step-"
CHUNK_BYTES = 1 << 22
HASH_THREADS = 8


@dataclass(frozen=True)
class Found:
    """A whole checkpoint on disk. `zero_stage` and `global_batch` are None in those of version 0.1."""

    folder: Path
    tag: str
    step: int
    world_size: int
    zero_stage: int | None = None
    global_batch: int | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.tag


@dataclass(frozen=True)
class FileSum:
    """Size and SHA-256 of one file of a checkpoint; `name` is relative to the checkpoint's folder."""

    name: str
    num_bytes: int
    sha256: str


def seal(
    part: Path, *, step: int, world_size: int, facts: Mapping[str, Any] | None = None, known: Iterable[FileSum] = ()
) -> None:
    """Force a folder's files to disk and write their sizes and SHA-256 sums beside them.

    known: files whose writers have synced and hashed them already. facts: more keys of complete.json.
    """
    sums = {each.name: each for each in known}
    for file in sorted(path for path in part.rglob("*") if path.is_file()):
        name = str(file.relative_to(part))
        if name in sums and sums[name].num_bytes == file.stat().st_size:
            continue
        with file.open("rb") as stream:
            digest = _sha256(stream)
            os.fsync(stream.fileno())
        sums[name] = FileSum(name, file.stat().st_size, digest)
    files = {each.name: {"bytes": each.num_bytes, "sha256": each.sha256} for each in sums.values()}
    content = {"format_version": FORMAT_VERSION, "step": step, "world_size": world_size, **(facts or {}), "files": files}
    write_atomic(part / COMPLETE, json.dumps(content, indent=1))


def publish(part: Path, folder: Path, tag: str) -> None:
    """A sealed folder becomes the checkpoint `tag`, and the latest one."""
    shutil.rmtree(folder / tag, ignore_errors=True)
    os.replace(part, folder / tag)
    write_atomic(folder / LATEST, tag)


def what_is_broken(checkpoint: Path) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None when every file is there with the bytes that were written."""
    try:
        content = read_complete(checkpoint)
    except FileNotFoundError:
        return f"it has no {COMPLETE}: it was never finished"
    except (OSError, ValueError, RecursionError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    if content["format_version"] > FORMAT_VERSION:
        return f"it was written by a newer version (format {content['format_version']}, this one reads {FORMAT_VERSION})"
    with ThreadPoolExecutor(HASH_THREADS) as pool:  # the hash lets other threads run
        for problem in pool.map(lambda item: _what_is_wrong(checkpoint, *item), content["files"].items()):
            if problem is not None:
                return problem
    return None


def read_complete(checkpoint: Path) -> dict[str, Any]:
    """complete.json of a checkpoint, its types checked. Raises FileNotFoundError and ValueError."""
    content = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError('expected an object with "files"')
    for key in ("format_version", "step", "world_size"):
        if type(content.get(key)) is not int:
            raise ValueError(f'"{key}" should be a whole number, got {content.get(key)!r}')
    for name, stated in content["files"].items():
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise ValueError(f"{name!r} is no file of this folder")
        if not isinstance(stated, dict) or type(stated.get("bytes")) is not int or not isinstance(stated.get("sha256"), str):
            raise ValueError(f"{name!r} should have bytes and sha256")
    return content


def find_checkpoint(folder: Path) -> Found | None:
    """The newest whole checkpoint of a folder (`checkpoints/`, or one `step-...` inside it); None if there is none at all.

    Broken ones are passed over with a warning. Raises ValueError when there are checkpoints but all of them are broken.
    """
    itself = (folder / COMPLETE).is_file()
    candidates = [folder] if itself else sorted(folder.glob(f"{PREFIX}*"), reverse=True)
    for candidate in candidates:
        problem = what_is_broken(candidate)
        if problem is None:
            content = read_complete(candidate)
            stage, batch = content.get("zero_stage"), content.get("global_batch")
            return Found(candidate.parent, candidate.name, content["step"], content["world_size"], stage, batch)
        logger.warning("checkpoint %s is passed over: %s", candidate, problem)
    if candidates:
        raise ValueError(
            f"none of the {len(candidates)} checkpoints in {folder} is whole: start with another --out, or remove them"
        )
    return None


def prune(folder: Path, *, keep: int, keep_every_steps: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints and those at multiples of `keep_every_steps` (0: none), and what unfinished
    saves left behind.
    """
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        step = old.name.removeprefix(PREFIX)
        if not (keep_every_steps and step.isdigit() and int(step) % keep_every_steps == 0):
            shutil.rmtree(old)
    remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """What a save left behind that was killed."""
    for part in folder.glob(f".{PREFIX}*.part"):
        shutil.rmtree(part, ignore_errors=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all, also after a power cut."""
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


def _what_is_wrong(checkpoint: Path, name: str, stated: Mapping[str, Any]) -> str | None:
    file = checkpoint / name
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size != stated["bytes"]:
        return f"{name} has {file.stat().st_size} bytes instead of {stated['bytes']}"
    with file.open("rb") as stream:
        if _sha256(stream) != stated["sha256"]:
            return f"{name} does not match its checksum"
    return None


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
