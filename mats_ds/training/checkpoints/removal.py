"""Delete checkpoints and what unfinished saves left behind: file by file, and only what a save has
written.

A folder that holds anything else (a note, a link, converted weights) stays as it is: it is the
user's, whatever its name. A checkpoint first loses its name, so that a kill in the middle leaves no
part of one under the name of a complete one.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
from pathlib import Path

from mats_ds.core.checkpoint_files import COMPLETE, LATEST, MODEL_FILE, OPTIMIZER_FILE, STEP_NAME, name_of_step, read_complete
from mats_ds.core.storage.files import read_bytes

logger = logging.getLogger(__name__)

BLOCK_BYTES = 512  # the unit of st_blocks
# without a random part: of version 0.1
PART_NAME = re.compile(r"\.step-[0-9]{8}(?:\.[0-9a-f]{12})?\.part")
# core/storage/files.py's
ASIDE_NAME = re.compile(rf"\.(?:{re.escape(LATEST)}|{re.escape(COMPLETE)})(?:\.[0-9a-f]{{12}})?\.part")
SHOWN_NAMES = 3


def new_part_name(tag: str) -> str:
    """A name for a folder that is to become the checkpoint `tag`, or was it."""
    return f".{tag}.{secrets.token_hex(6)}.part"


def foreign_names(folder: Path) -> list[str]:
    """Entries of a checkpoint's folder that no save writes: relative names, also of what
    cannot be looked into."""
    try:
        listed = set(read_complete(folder).files)
    except (OSError, ValueError):
        listed = set()
    parents = {str(parent) for name in listed for parent in Path(name).parents}
    foreign: list[str] = []
    for root, folders, files in os.walk(folder, onerror=lambda error: foreign.append(os.path.relpath(error.filename, folder))):
        for name in [*folders, *files]:
            path = Path(root, name)
            relative, mode = str(path.relative_to(folder)), path.lstat().st_mode
            if stat.S_ISDIR(mode):
                is_ours = relative in parents
            else:
                is_ours = stat.S_ISREG(mode) and (relative in listed or _is_written_by_save(relative))
            if not is_ours:
                foreign.append(relative)
    return sorted(foreign)


def removable_bytes(checkpoint: Path) -> int:
    """Bytes that the disk gets back when a checkpoint goes: none where it may not go, or where its
    files have other names."""
    if foreign_names(checkpoint):
        return 0
    states = [Path(root, name).lstat() for root, _, files in os.walk(checkpoint) for name in files]
    return sum(state.st_blocks * BLOCK_BYTES for state in states if state.st_nlink == 1)


def remove_checkpoint(checkpoint: Path) -> bool:
    """Delete a checkpoint; False, with a warning, where it holds something of the user's or the
    disk does not let it go."""
    assert STEP_NAME.fullmatch(checkpoint.name), checkpoint
    try:
        foreign = foreign_names(checkpoint)
        if foreign:
            more = f" and {len(foreign) - SHOWN_NAMES:,} more" if len(foreign) > SHOWN_NAMES else ""
            names = ", ".join(map(repr, foreign[:SHOWN_NAMES]))
            logger.warning("%s stays: %s%s in it is no file of a checkpoint", checkpoint, names, more)
            return False
        part = checkpoint.with_name(new_part_name(checkpoint.name))
        os.rename(checkpoint, part)
        _remove_files(part)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", checkpoint, error)
        return False
    return True


def remove_part(part: Path) -> bool:
    """Delete what a save has begun, or a removal has not ended; False where the folder is not ours,
    or the disk does not let it go."""
    try:
        if not PART_NAME.fullmatch(part.name) or not stat.S_ISDIR(part.lstat().st_mode) or foreign_names(part):
            return False
        _remove_files(part)
    except FileNotFoundError:
        return False
    except OSError as error:
        logger.warning("%s cannot be removed: %s", part, error)
        return False
    return True


def remove_unfinished(folder: Path) -> None:
    """Delete what killed saves and removals left behind in `folder` (checkpoints/)."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        path = folder / name
        if PART_NAME.fullmatch(name):
            remove_part(path)
        elif ASIDE_NAME.fullmatch(name) and name.startswith(f".{LATEST}"):
            try:
                begun = re.sub("[0-9]", "0", read_bytes(path, max_bytes=20).decode("ascii"))
                if name_of_step(0).startswith(begun):  # a name, or the beginning of one
                    path.unlink()
            except (OSError, ValueError):  # longer, a link, a folder: not ours
                continue


def _is_written_by_save(name: str) -> bool:
    patterns = (MODEL_FILE, OPTIMIZER_FILE, ASIDE_NAME)
    return name == COMPLETE or any(pattern.fullmatch(name) for pattern in patterns)


def _remove_files(folder: Path) -> None:
    """Unlink the files of a folder without anything foreign; complete.json last, which says what is
    ours. A file that came in the meantime makes the folder stay."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            if Path(root, name) != folder / COMPLETE:
                os.unlink(Path(root, name))
        if Path(root) != folder:
            os.rmdir(root)
    if (folder / COMPLETE).exists():
        os.unlink(folder / COMPLETE)
    os.rmdir(folder)
