"""Files that a command writes: new, or its own of an earlier call. No other file is overwritten,
and no input ever.

One file by itself is checked with `check_output_file`. For named files in a folder of
`output_folder`, the folder's marker holds their sums: `refuse_losses` before the work,
`begin_writing` and `end_writing` around the writing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mats_ds.core.storage.files import (
    NAME_CHARACTERS,
    describe_wrong_kind,
    hash_file,
    is_same_file,
    refuse_wrong_kind,
    write_json,
)
from mats_ds.core.storage.output_folder import MARKER, check_parent, find_parts, read_marker_tree
from mats_ds.core.storage.package_files import describe_missing
from mats_ds.core.text import describe_error

SUMS, UNFINISHED = "sha256", "unfinished"  # keys of the marker


def check_output_file(
    path: Path,
    *,
    inputs: Iterable[str | Path | None] = (),
    is_ours: Callable[[Path], bool] | None = None,
    force: bool | None = False,
) -> None:
    """Raise ValueError where `path` may not be written; writes nothing, so that it can be asked
    before the work.

    inputs: files that the command reads, by whatever name or link. is_ours: knows by its content a
    file that this command wrote, which may be replaced; without it, only `force` replaces one.
    force: None where the command has no such option.
    """
    for given in inputs:
        if given is not None and is_same_file(path, Path(given)):
            raise ValueError(f"{path} would overwrite {given}, which is read: give another name")
    refuse_wrong_kind(path)
    check_parent(path)
    if force or not os.path.lexists(path) or (is_ours is not None and is_ours(path)):
        return
    why = "" if is_ours is None else ", and was not written by this command"
    raise ValueError(f"{path} exists{why}: give another name{'' if force is None else ', or --force'}")


def describe_leftovers(path: Path) -> list[str]:
    """Leftovers of killed writes beside this file, as lines: nobody sees hidden files, and
    they may be large."""
    parts = find_parts(path.parent, of=lambda name: name == path.name[:NAME_CHARACTERS])
    return [f"{part} was left by a write that was killed, unless it still runs: remove it" for part in parts]


def describe_fault(error: Exception, path: str | Path) -> str:
    """The error as one line, with the file or folder that was to be written where it names none
    itself, as of a full disk."""
    if lacking := describe_missing(error):
        return lacking
    is_nameless = isinstance(error, OSError) and error.errno is not None and error.filename is None
    return f"{path} cannot be written: {error.strerror}" if is_nameless else describe_error(error)


def refuse_losses(folder: Path, names: Iterable[str], *, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ValueError where a file that is to be written is an input, or one that somebody else
    wrote or has changed since.

    names: of the files to be written, counted from the folder. Writes nothing.
    """
    tree, sums = _read(folder)
    inputs = [Path(given) for given in inputs if given is not None]
    for path, name in ((folder / name, name) for name in names):
        if not os.path.lexists(path):
            continue
        if given := next((given for given in inputs if is_same_file(path, given)), None):
            raise ValueError(f"{path} would be overwritten, and {given} is read: give another --out")
        # links are refused by the writers
        if SUMS not in tree or tree.get(UNFINISHED) or describe_wrong_kind(path) is not None:
            continue
        if sums.get(name) != hash_file(path):
            what = "was changed after this command wrote it" if name in sums else "was not written by this command"
            raise ValueError(f"{path} {what}, and would be lost: rename it, or give another --out")


def begin_writing(folder: Path, names: Iterable[str]) -> None:
    """Ask `refuse_losses` once more, and note that what the files hold is not known until
    `end_writing`."""
    refuse_losses(folder, names)
    tree, _ = _read(folder)
    if SUMS in tree and not tree.get(UNFINISHED):
        write_json(folder / MARKER, {**tree, UNFINISHED: True})


def end_writing(folder: Path, names: Iterable[str]) -> None:
    """Note what the files hold now; one that is not there, or is no regular file, is left out."""
    tree, sums = _read(folder)
    written = {name: hash_file(folder / name) for name in names if (folder / name).is_file() and not (folder / name).is_symlink()}
    kept = {name: checksum for name, checksum in tree.items() if name != UNFINISHED}
    write_json(folder / MARKER, {**kept, SUMS: {**sums, **written}})


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tree = read_marker_tree(folder)
    sums = tree.get(SUMS)
    return tree, sums if isinstance(sums, dict) else {}
