"""The folder beside the checkpoints that holds one of them re-sharded for another number of ranks,
while a run starts.

It bears a mark, and a name that nothing else has; what a killed start left is known by the mark,
and deleted by the next start.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path

from mats_ds.core.checkpoint_files import step_of_name
from mats_ds.core.storage.files import write_json
from mats_ds.core.storage.output_folder import MARKER, read_marker

COMMAND = "resume with another number of ranks"
NAME = re.compile(r"\.universal-[0-9a-f]{12}")
OLD_NAME = ".universal"  # of version 0.1, without a mark
OLD_PARTS = {"zero", "tmp"}  # and DeepSpeed's own files
OLD_FILES = re.compile(r"latest_universal|.*\.pt")


def make_converted(folder: Path) -> Path:
    """A new folder in `folder` (checkpoints/)."""
    made = folder / f".universal-{secrets.token_hex(6)}"
    made.mkdir()
    write_json(made / MARKER, {"made_by": COMMAND})
    return made


def remove_converted(converted: Path) -> None:
    """Delete a folder of `make_converted`, as far as the disk lets it go."""
    is_marked = NAME.fullmatch(converted.name) and not converted.is_symlink() and read_marker(converted) == COMMAND
    if is_marked or _is_of_old_version(converted):
        with contextlib.suppress(OSError):
            for name in os.listdir(converted):
                # the last to go: a kill in between leaves a folder that is known
                if name != MARKER:
                    _remove(converted / name)
            (converted / MARKER).unlink(missing_ok=True)
            converted.rmdir()


def remove_left_converted(folder: Path) -> None:
    """Delete what killed starts left in `folder` (checkpoints/)."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name == OLD_NAME or NAME.fullmatch(name):
            remove_converted(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_of_old_version(folder: Path) -> bool:
    """Whether a folder holds nothing but what DeepSpeed's converter writes, in a folder named like
    a checkpoint."""
    if folder.name != OLD_NAME or folder.is_symlink() or not folder.is_dir():
        return False
    for path in folder.iterdir():
        if path.is_symlink() or not (path.name == "latest_universal" or (step_of_name(path.name) is not None and path.is_dir())):
            return False
        if path.is_dir() and not all(part.name in OLD_PARTS or OLD_FILES.fullmatch(part.name) for part in path.iterdir()):
            return False
    return True
