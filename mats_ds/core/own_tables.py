"""Tables in a command's own folder are replaced only while they hold what the command wrote into them.

The marker of the folder (output_folder.py) keeps the SHA-256 sums of the files that the last whole call has written, by name. A
folder without them, as version 0.1 and killed calls leave it, has its files known by their names alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mats_ds.core.files import describe_wrong_kind, open_regular, write_json
from mats_ds.core.output_file import is_same_file
from mats_ds.core.output_folder import MARKER, read_marker_tree

SUMS, UNFINISHED = "sha256", "unfinished"


def refuse_losses(folder: Path, names: Iterable[str], *, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise ValueError where a file that is to be written is an input, or one that somebody else wrote or has changed since.

    names: of the files to be written, counted from the folder. Writes nothing.
    """
    tree, sums = _read(folder)
    inputs = [Path(given) for given in inputs if given is not None]
    for path, name in ((folder / name, name) for name in names):
        if not os.path.lexists(path):
            continue
        if given := next((given for given in inputs if is_same_file(path, given)), None):
            raise ValueError(f"{path} would be overwritten, and {given} is read: give another --out")
        if SUMS not in tree or tree.get(UNFINISHED) or describe_wrong_kind(path) is not None:  # links are refused by the writers
            continue
        if sums.get(name) != _sum_file(path):
            what = "was changed after this command wrote it" if name in sums else "was not written by this command"
            raise ValueError(f"{path} {what}, and would be lost: rename it, or give another --out")


def begin_writing(folder: Path, names: Iterable[str]) -> None:
    """Ask `refuse_losses` once more, and note that what the files hold is not known until `end_writing`."""
    refuse_losses(folder, names)
    tree, _ = _read(folder)
    if SUMS in tree and not tree.get(UNFINISHED):
        write_json(folder / MARKER, {**tree, UNFINISHED: True})


def end_writing(folder: Path, names: Iterable[str]) -> None:
    """Note what the files hold now; one that is not there, or is no regular file, is left out."""
    tree, sums = _read(folder)
    found = {name: _sum_file(folder / name) for name in names if (folder / name).is_file() and not (folder / name).is_symlink()}
    kept = {name: checksum for name, checksum in tree.items() if name != UNFINISHED}
    write_json(folder / MARKER, {**kept, SUMS: {**sums, **found}})


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    tree = read_marker_tree(folder)
    sums = tree.get(SUMS)
    return tree, sums if isinstance(sums, dict) else {}


def _sum_file(path: Path) -> str:
    found = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
