"""The one file that a command writes: new, or one that the same command wrote. No other is overwritten, and no input ever."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mats_ds.core.files import NAME_CHARACTERS, refuse_wrong_kind
from mats_ds.core.output_folder import find_parts
from mats_ds.core.text import describe_error


def check_output_file(
    path: Path, *, inputs: Iterable[str | Path | None] = (), is_ours: Callable[[Path], bool] | None = None, force: bool = False
) -> None:
    """Raise ValueError where `path` may not be written; writes nothing, so that it can be asked before the work.

    inputs: files that the command reads, by whatever name or link. is_ours: tells from the content that this command wrote
    a file, which may be replaced; without it, only `force` replaces one.
    """
    for given in inputs:
        if given is not None and is_same_file(path, Path(given)):
            raise ValueError(f"{path} would overwrite {given}, which is read: give another name")
    refuse_wrong_kind(path)
    check_parent(path)
    if force or not os.path.lexists(path) or (is_ours is not None and is_ours(path)):
        return
    why = "" if is_ours is None else ", and was not written by this command"
    raise ValueError(f"{path} exists{why}: give another name, or --force")


def check_parent(path: Path) -> None:
    """Raise ValueError where `path` cannot be made, because of the nearest folder above it that is there."""
    above = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), Path("/"))
    if not above.is_dir():
        raise ValueError(f"{path} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: {above} is read-only, or not yours: give another name")


def describe_leftovers(path: Path) -> list[str]:
    """What killed writes of this file have left beside it, as lines: nobody sees hidden files, and they may be large."""
    parts = find_parts(path.parent, of=lambda name: name == path.name[:NAME_CHARACTERS])
    return [f"{part} was left by a write that was killed, unless it still runs: remove it" for part in parts]


def describe_fault(error: Exception, path: str | Path) -> str:
    """The error in words, with the file or folder that was to be written where it names none itself, as of a full disk."""
    is_nameless = isinstance(error, OSError) and error.errno is not None and error.filename is None
    return f"{path} cannot be written: {error.strerror}" if is_nameless else describe_error(error)


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two names lead to the same file, through links and hard links; False where one leads to none."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # ValueError: a NUL in a name
        return False
