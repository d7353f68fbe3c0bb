"""The folder that a command writes to: new, empty, or one that the same command has made. Any other
is refused as it is.

A command leaves `.made_by.json` in its folder, so that it knows its own again. Nothing is deleted
or overwritten in a folder that something else has filled: whatever names the files there have, they
may be the user's only copy.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import WrongKindOfFile, read_bytes, write_json
from mats_ds.core.storage.folder_lock import call_on_release, hold_folder, release_folder
from mats_ds.core.storage.undo import FolderBefore, remember

MARKER = ".made_by.json"
MARKER_BYTES = 1_000_000  # output_file.py keeps a sum a file in it
# What file systems and file managers put into any folder; nothing here touches them.
NOBODYS = {".DS_Store", ".directory", ".gitignore", ".gitkeep", ".keep", ".snapshot", "Thumbs.db", "desktop.ini", "lost+found"}
NFS_LEFTOVER = ".nfs"  # a file that was removed while a process had it open
NOT_COUNTED = {MARKER, ".lock", ".claim", *NOBODYS}  # `.claim` was version 0.1's lock
# how files.replace_file calls what is not finished
PART = re.compile(r"\.(.+)\.[0-9a-f]{12}\.part", re.DOTALL)
OLD_PART = re.compile(r"\.(.+)\.part", re.DOTALL)  # and version 0.1 did
SHOWN_NAMES = 3


def hold_output_folder(
    folder: Path, *, command: str, is_ours: Callable[[Path], bool] | None = None, bookkeeping: Iterable[str] = ()
) -> None:
    """`open_output_folder`, and keep other processes out until `release_folder` or the end of this
    one.

    Where nothing is written into a new or empty folder until then, it is as it was before.
    bookkeeping: names of files that the command makes at once, and that are nothing without others.
    Raises ValueError where the folder holds something else, is in use or cannot be written.
    """
    check_output_folder(folder, command=command, is_ours=is_ours)
    was_used = folder.is_dir() and any(os.scandir(folder))
    before = None if was_used else remember(folder, rewritten=())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold_folder(folder, command=command)
        if before is not None:
            call_on_release(folder, before=partial(_put_back_unused, before, {MARKER, *bookkeeping}), after=before.remove_made)
        try:
            # another command may have had it until now
            open_output_folder(folder, command=command, is_ours=is_ours)
        except BaseException:
            release_folder(folder)
            raise
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written: {error}: make room there, or choose another folder") from None


def open_output_folder(folder: Path, *, command: str, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Make the folder, or check that it is empty or of this command, and mark it as such.

    command: e.g. "extract". is_ours: recognises a folder that this command filled before it left
    markers.
    Raises ValueError, before anything is written, where the folder holds something else; OSError
    where it cannot be written.
    """
    check_output_folder(folder, command=command, is_ours=is_ours)
    folder.mkdir(parents=True, exist_ok=True)
    if read_marker(folder) != command:
        write_json(folder / MARKER, {"made_by": command})


def check_output_folder(folder: Path, *, command: str, is_ours: Callable[[Path], bool] | None = None) -> None:
    """The check of `open_output_folder`; writes nothing."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ValueError(f"--out {folder} is no folder: choose another name")
        check_parent(folder, shown=f"--out {folder}")
        return
    try:
        listed = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be read ({error.strerror}): choose another folder") from None
    names = [
        name for name in listed if name not in NOT_COUNTED and not PART.fullmatch(name) and not name.startswith(NFS_LEFTOVER)
    ]
    maker = read_marker(folder)
    if maker == command or (maker is None and (not names or (is_ours is not None and is_ours(folder)))):
        return
    if maker is not None:
        raise ValueError(f"--out {folder} was made by `{maker}`, and this is `{command}`: choose a new or empty folder")
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    raise ValueError(
        f"--out {folder} holds {', '.join(names[:SHOWN_NAMES])}{more}, which `{command}` did not write: "
        "choose a new or empty folder"
    )


def check_parent(path: Path, *, shown: str | None = None) -> None:
    """Raise ValueError where `path` cannot be made, because of the nearest folder above it that is
    there. shown: the path with its option, for the message."""
    shown = shown or str(path)
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), Path("/"))
    if not above.is_dir():
        raise ValueError(f"{shown} cannot be written: {above} is no folder: give another name")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{shown} cannot be written: {above} is read-only, or not yours: give another name")


def make_new_folder(parent: Path, name: str) -> Path:
    """A folder that nobody else has made: of those that begin in the same second, the later ones
    get a number.

    It goes when this process ends and has written nothing into it, as after an error in the first
    seconds.
    """
    made_above = None if parent.is_dir() else remember(parent, rewritten=())
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise
            continue
        atexit.register(_remove_unused, Path(os.path.abspath(folder)), made_above, os.getpid())
        return folder
    raise AssertionError


def _put_back_unused(before: FolderBefore, bookkeeping: Collection[str]) -> None:
    """Take our bookkeeping out of a folder that was empty, where nothing else came into it."""
    if {entry.name for entry in os.scandir(before.folder)} - NOT_COUNTED <= set(bookkeeping):
        before.put_back(is_ours=bookkeeping.__contains__)


def _remove_unused(folder: Path, made_above: FolderBefore | None, process: int) -> None:
    if os.getpid() != process:  # in a child
        return
    with contextlib.suppress(OSError):
        if {entry.name for entry in os.scandir(folder)} <= {MARKER}:
            (folder / MARKER).unlink(missing_ok=True)
            folder.rmdir()
            if made_above is not None:
                made_above.remove_made()


def make_subfolder(folder: Path, name: str) -> Path:
    """A folder within one's own. Raises WrongKindOfFile for a link: it would lead out of it."""
    inside = folder / name
    if inside.is_symlink():
        raise WrongKindOfFile(f"{inside} is a symbolic link to {os.readlink(inside)}, expected a folder: remove the link")
    inside.mkdir(exist_ok=True)
    return inside


def find_parts(folder: Path, *, of: Callable[[str], bool]) -> list[Path]:
    """Leftovers of killed or running writes beside the files in `folder` whose names `of`
    accepts."""
    if not folder.is_dir():
        return []
    named = ((path, PART.fullmatch(path.name) or OLD_PART.fullmatch(path.name)) for path in folder.iterdir())
    return sorted(path for path, match in named if match and of(match[1]))


def remove_parts(folder: Path, *, of: Callable[[str], bool]) -> int:
    """Remove what killed writes have left (see `find_parts`) in a folder that this process holds;
    returns how many there were."""
    num_removed = 0
    for part in find_parts(folder, of=of):
        with contextlib.suppress(OSError):  # what cannot be removed is not ours, or hurts nobody
            # of a library that has its own unfinished file: core/storage/tensor_file.py
            if stat.S_ISDIR(part.lstat().st_mode):
                for file in part.iterdir():
                    file.unlink()
                part.rmdir()
            else:
                part.unlink()
            num_removed += 1
    return num_removed


def read_marker(folder: Path) -> str | None:
    """The command that made a folder, by its marker; None where there is none."""
    maker = read_marker_tree(folder).get("made_by")
    return maker if isinstance(maker, str) else None


def read_marker_tree(folder: Path) -> dict[str, Any]:
    """All values in a folder's marker; empty where there is none."""
    try:
        tree = parse_json(read_bytes(folder / MARKER, max_bytes=MARKER_BYTES))
    except (OSError, WrongKindOfFile, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
