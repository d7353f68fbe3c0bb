"""The folder that a command writes to: new, empty, or one that the same command has made. Any other is refused as it is.

A command leaves `.made_by.json` in its folder, so that it knows its own again. Nothing is deleted or overwritten in a folder
that something else has filled: whatever names the files there have, they may be the user's only copy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mats_ds.core.files import WrongKindOfFile, read_bytes, write_json
from mats_ds.parsing import parse_json

MARKER = ".made_by.json"
MARKER_BYTES = 10_000
NOT_COUNTED = {MARKER, ".lock", ".claim"}
SHOWN_NAMES = 3


def open_output_folder(folder: Path, *, command: str, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Make the folder, or check that it is empty or of this command, and mark it as such.

    command: e.g. "extract". is_ours: recognises a folder that this command filled before it left markers.
    Raises ValueError, before anything is written, where the folder holds something else; OSError where it cannot be written.
    """
    check_output_folder(folder, command=command, is_ours=is_ours)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MARKER).exists():
        write_json(folder / MARKER, {"made_by": command})


def check_output_folder(folder: Path, *, command: str, is_ours: Callable[[Path], bool] | None = None) -> None:
    """The check of `open_output_folder`; writes nothing."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ValueError(f"--out {folder} is no folder: choose another name")
        return
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name not in NOT_COUNTED)
    maker = read_marker(folder)
    if maker == command or (maker is None and (not names or (is_ours is not None and is_ours(folder)))):
        return
    if maker is not None:
        raise ValueError(f"--out {folder} was made by `{maker}`, and this is `{command}`: choose a new or empty folder")
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    raise ValueError(
        f"--out {folder} holds {', '.join(names[:SHOWN_NAMES])}{more}, which `{command}` did not write: "
        "choose a new or empty folder"
    )


def read_marker(folder: Path) -> str | None:
    """The command that made a folder; None where no marker says so."""
    try:
        tree = parse_json(read_bytes(folder / MARKER, max_bytes=MARKER_BYTES))
    except (OSError, WrongKindOfFile, ValueError):
        return None
    return tree["made_by"] if isinstance(tree, dict) and isinstance(tree.get("made_by"), str) else None
