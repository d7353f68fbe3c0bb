"""Shards of features: named arrays <-> one .safetensors or .npz file, that says what it was made with and notices damage.

Arrays of a shard, R rows, one a view that could be read: features [R, D], [R, T, D] or [R, K, D]; sample, clip, crop [R]: which
view of which row of the manifest; tubelets [R, T]: which tubelets of the frames that were read; by pooling, count [R, T]: tokens
behind each tubelet's mean, or position [R, K, 3]: (tubelet, row, column) of each token.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mats_ds.clips import BadClip
from mats_ds.core.archives import open_archive
from mats_ds.core.files import refuse_wrong_kind, replace_file
from mats_ds.interop.file_content import check_header
from mats_ds.interop.tensor_file import write_tensor_file
from mats_ds.interop.weights import Weights
from mats_ds.parsing import parse_json

SUFFIXES = {"safetensors": ".safetensors", "npz": ".npz"}
MAX_ARRAYS = 100  # a shard has seven
ABOUT = "about"  # JSON: an entry of the metadata, or an array of one string


@dataclass(frozen=True)
class Shard:
    """`settings`: digest of what it was made with. `bad`: the videos of this shard that could not be read."""

    arrays: Mapping[str, np.ndarray]
    settings: str
    bad: tuple[BadClip, ...]


def write_shard(path: Path, shard: Shard) -> None:
    """Write the file aside and rename it when it is whole."""
    about = json.dumps(
        {
            "settings": shard.settings,
            "sha256": digest_arrays(shard.arrays),
            "bad": [[clip.path, clip.sample, clip.reason] for clip in shard.bad],
        }
    )
    if path.suffix == SUFFIXES["npz"]:
        with replace_file(path) as aside, aside.open("wb") as stream:  # by name, numpy would add a suffix
            np.savez(stream, **shard.arrays, **{ABOUT: np.array(about)})
    else:
        arrays = {name: np.ascontiguousarray(array) for name, array in shard.arrays.items()}
        write_tensor_file(path, lambda file: save_file(arrays, file, metadata={ABOUT: about}))


def read_shard(path: Path) -> Shard:
    """Raises ValueError for a file that is torn, damaged or of another program."""
    try:
        if path.suffix == SUFFIXES["npz"]:
            arrays = _read_npz(path)
            text = str(arrays.pop(ABOUT))
        else:
            check_header(path)
            with safe_open(path, framework="np") as file:
                text = (file.metadata() or {})[ABOUT]
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        about = parse_json(text)
        stated, settings, bad = about["sha256"], about["settings"], tuple(BadClip(*clip) for clip in about["bad"])
    except (SafetensorError, zipfile.BadZipFile, KeyError, TypeError, OSError, EOFError, MemoryError, ValueError) as error:
        raise ValueError(f"{path} is no whole shard of features: {error}") from None
    if digest_arrays(arrays) != stated:
        raise ValueError(f"{path} does not hold the numbers that were written: it is damaged")
    return Shard(arrays, settings, bad)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file. Raises ValueError, before any is unpacked, for a file that unfolds to more than its bytes."""
    with path.open("rb") as stream, open_archive(stream) as archive:
        infos = archive.infolist()
        if len(infos) > MAX_ARRAYS:
            raise ValueError(f"it has {len(infos):,} arrays, expected {MAX_ARRAYS} at most")
        for info in infos:
            with archive.open(info) as member:
                _check_array(member, info)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check_array(member: IO[bytes], info: zipfile.ZipInfo) -> None:
    """Raises ValueError for an array that says it has more numbers than are stored: NumPy would make
    room for them first.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(
            f"{info.filename} is an array of NumPy's format {version}, expected one of {', '.join(map(str, readers))}"
        )
    shape, _, dtype = readers[version](member)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > info.file_size:
        raise ValueError(f"{info.filename} says it has {claimed:.6g} bytes, and {info.file_size:,} are stored")


def is_finished(path: Path, settings: str) -> bool:
    """Whether the file is there, whole, and made with these settings.

    Raises WrongKindOfFile where it is not, and cannot be written either: a folder or a link has its name.
    """
    if path.is_file():
        try:
            if read_shard(path).settings == settings:
                return True
        except ValueError:
            pass  # torn or damaged: made anew
    refuse_wrong_kind(path)
    return False


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes."""
    return digest(
        part
        for name in sorted(arrays)
        for part in (f"{name} {arrays[name].dtype} {arrays[name].shape}".encode(), np.ascontiguousarray(arrays[name]).data)
    )


def digest_weights(weights: Weights) -> str:
    """sha256 over the names and values of the weights."""
    return digest_arrays({name: tensor.numpy() for name, tensor in weights.state.items()})


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """sha256 over all parts, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
