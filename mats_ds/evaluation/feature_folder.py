"""The folder of an extraction: whose it is, what its features were made with, and what a killed start has left in it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import open_regular, read_bytes, write_json
from mats_ds.core.storage.output_file import begin_writing, refuse_losses
from mats_ds.core.storage.output_folder import hold_output_folder, remove_parts

logger = logging.getLogger("mats_ds")

COMMAND = "extract"
SETTINGS, SHARD = "features.json", "features-"
MAX_SETTINGS_BYTES = 10_000_000


def begin_folder(
    out: Path,
    *,
    asked: Mapping[str, object],
    told: Mapping[str, object],
    tables: Mapping[str, Sequence[str]],
    inputs: Sequence[str | Path | None] = (),
) -> None:
    """Take the folder and write down what is asked for; what a killed start left unfinished is removed.

    told: what else features.json says. tables: names and columns of the tables that will be written. inputs: what is read.
    Raises ValueError, and changes nothing, when `out` holds something else or features made otherwise, is in use, or a file
    of the user's would be lost in it.
    """
    written = (SETTINGS, *tables)
    for _ in range(2):  # before the folder is held, so that a foreign one stays as it is, and after, when nobody else writes
        refuse_other_settings(out / SETTINGS, asked)
        refuse_other_tables(out, tables)
        refuse_losses(out, written, inputs=inputs)
        hold_output_folder(out, command=COMMAND, is_ours=is_features_folder)
    begin_writing(out, written)
    write_json(out / SETTINGS, {**asked, **told}, indent=2)
    if num_removed := remove_parts(out, of=lambda name: name in written or name.startswith(SHARD)):
        logger.info("removed %d unfinished files of an earlier start", num_removed)


def refuse_other_settings(path: Path, asked: Mapping[str, object]) -> None:
    """Raises ValueError when a folder was begun with other settings, and says which."""
    if not os.path.lexists(path):
        return
    there = read_settings(path)
    if there is None:
        raise ValueError(f"{path} does not say how the features beside it were made: use another --out")
    other = [
        f"{name} is {there.get(name)!r} there and {value!r} here" for name, value in asked.items() if there.get(name) != value
    ]
    if other:
        raise ValueError(f"{path.parent} holds features made otherwise ({'; '.join(other)}): use another --out")


def refuse_other_tables(out: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError where a table with one of our names does not begin as ours does: somebody has put or changed it there."""
    for name, columns in tables.items():
        if not os.path.lexists(out / name):
            continue
        with open_regular(out / name) as stream:
            begins = stream.readline(MAX_SETTINGS_BYTES).decode(errors="replace").strip()
        if begins != ",".join(columns):
            raise ValueError(f"{out / name} is another table than the one that would be written there: rename it")


def read_settings(path: Path) -> dict[str, Any] | None:
    """What features.json says; None where it is none of ours."""
    try:
        tree = parse_json(read_bytes(path, max_bytes=MAX_SETTINGS_BYTES))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) and {"weights_sha256", "manifest_sha256"} <= tree.keys() else None


def is_features_folder(folder: Path) -> bool:
    """Whether an extraction of version 0.1 has made the folder, which left no marker."""
    return read_settings(folder / SETTINGS) is not None
