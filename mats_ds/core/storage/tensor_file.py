"""Tensors -> one .safetensors file, complete or not there at all.

The library writes into a file of its own, `.tmpXXXXXX`, which only its owner may read and which
stays behind when it is killed. So it gets a folder of its own, with a name that a later run knows,
and can remove.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from mats_ds.core.storage.files import open_regular, replace_file

LENGTH_BYTES = 8  # of the header, before it


def write_tensor_file(path: Path, save: Callable[[Path], None]) -> None:
    """Write the file as `files.replace_file` does, with the mode that the umask gives.

    save: writes the tensors to a path with the library's save_file. Raises OSError where there is
    no room, which that does not.
    """
    with replace_file(path) as aside:
        save_tensors(aside, save)


def begins_with(path: Path, key: str) -> bool:
    """Whether a .safetensors file may have been written with `key` as its first metadata, perhaps
    torn or damaged since; an empty file may. False for a file of another program.
    """
    wanted = b'{"__metadata__":{"%s":' % key.encode()
    with open_regular(path) as stream:
        start = stream.read(LENGTH_BYTES + len(wanted))
    return not start or (len(start) > LENGTH_BYTES and wanted.startswith(start[LENGTH_BYTES:]))


def save_tensors(aside: Path, save: Callable[[Path], None]) -> None:
    """Fill an empty file that `files.replace_file` has made."""
    usual_mode = aside.stat().st_mode
    stem = aside.name.removesuffix(".part").rpartition(".")[0]
    inside = aside.with_name(f"{stem}.{secrets.token_hex(6)}.part")
    inside.mkdir()
    try:
        save(inside / "tensors")
        os.chmod(inside / "tensors", usual_mode)
        os.replace(inside / "tensors", aside)
    except SafetensorError as error:
        raise OSError(f"{aside.parent / stem[1:]} cannot be written: {error}") from None
    finally:
        shutil.rmtree(inside, ignore_errors=True)
