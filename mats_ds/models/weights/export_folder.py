"""Write a Hugging Face folder: all of it or nothing, and never mixed with another model's files.

config.json makes a folder a model, so it gets its name last, and an older one goes first: whenever
a write is killed, the folder holds one complete export or none. Ours is recognised by its config
(it describes our model, and transformers has not saved it since), or, where a kill left none, by
the metadata of its weights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import NAME_CHARACTERS, read_bytes, refuse_wrong_kind, replace_file
from mats_ds.core.storage.folder_lock import hold_folder, release_folder
from mats_ds.core.storage.output_folder import NOT_COUNTED, PART, remove_parts
from mats_ds.core.storage.tensor_file import save_tensors
from mats_ds.models.weights.source import CONFIG

PREPROCESSOR, WEIGHTS = "preprocessor_config.json", "model.safetensors"
EXPORTED = (WEIGHTS, PREPROCESSOR, CONFIG)  # in the order in which they get their names
SPEC_KEY = "mats_ds"  # in config.json
# in config.json of everything that transformers itself has saved
SAVED_BY_TRANSFORMERS = "transformers_version"
# metadata of the weights; transformers wants the first
MADE_BY = {"format": "pt", "made_by": "mats_ds"}
# what a new repository of the hub begins with
OF_A_CLONE = {".git", ".gitattributes", ".gitignore", "README.md", "LICENSE"}
OTHER_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".index.json")
MAX_CONFIG_BYTES = 10_000_000  # names of classes are the most of it
SHOWN_NAMES = 3


def check_export_folder(folder: Path) -> None:
    """Raise ValueError where the folder holds anything but an export of ours; writes nothing."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise ValueError(f"{folder} is no folder, and a Hugging Face model is one: give another name")
        return
    names = {path.name for path in folder.iterdir() if not PART.fullmatch(path.name)} - NOT_COUNTED - OF_A_CLONE
    unknown = {name for name in names - set(EXPORTED) if name.endswith(OTHER_WEIGHTS)} if is_our_export(folder) else names
    if unknown:
        shown = ", ".join(sorted(unknown)[:SHOWN_NAMES])
        more = f" and {len(unknown) - SHOWN_NAMES:,} more" if len(unknown) > SHOWN_NAMES else ""
        raise ValueError(f"{folder} holds {shown}{more}, which is no model written by this command: give a new or empty folder")
    for name in EXPORTED:
        refuse_wrong_kind(folder / name)


def is_our_export(folder: Path) -> bool:
    """Whether `write_export` has filled the folder, perhaps not to its end."""
    if os.path.lexists(folder / CONFIG):
        try:
            config = parse_json(read_bytes(folder / CONFIG, max_bytes=MAX_CONFIG_BYTES))
        except (OSError, ValueError):
            return False
        return isinstance(config, dict) and SPEC_KEY in config and SAVED_BY_TRANSFORMERS not in config
    try:
        refuse_wrong_kind(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="np") as file:
            return file.metadata() == MADE_BY
    except (OSError, ValueError, SafetensorError):
        return False


def write_export(folder: Path, *, texts: Mapping[str, str], save: Callable[[Path, Mapping[str, str]], None]) -> None:
    """Write all files under temporary names, then rename them.

    texts: of CONFIG, PREPROCESSOR and any others, by their names. save: writes the weights to a
    path, with the metadata that it is given.
    Raises ValueError as `check_export_folder` does and where another process is writing there, and
    OSError where it cannot be written: then an older export is as it was.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        hold_folder(folder, command="convert")
        try:
            check_export_folder(folder)
            names = (*(name for name in texts if name not in EXPORTED), *EXPORTED)
            for name in names:
                refuse_wrong_kind(folder / name)
            remove_parts(folder, of={name[:NAME_CHARACTERS] for name in names}.__contains__)
            with contextlib.ExitStack() as unfinished:  # what is entered last is renamed first
                aside = {name: unfinished.enter_context(replace_file(folder / name)) for name in reversed(names)}
                for name, text in texts.items():
                    aside[name].write_text(text, encoding="utf-8")
                save_tensors(aside[WEIGHTS], lambda path: save(path, MADE_BY))
                (folder / CONFIG).unlink(missing_ok=True)
        finally:
            release_folder(folder)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
