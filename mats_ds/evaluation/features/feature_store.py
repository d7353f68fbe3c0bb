"""Files of frozen features with a digest of their settings: shards (extract.py), sets (probe.py).

The digest covers all that the features depend on: weights, videos, sampling. A file with another
digest is replaced; a file of another program with one of our names is refused, never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mats_ds.core.clips import BadClip
from mats_ds.core.shards.members import file_exists, stat_file
from mats_ds.core.storage.archives import open_archive
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import read_bytes, refuse_wrong_kind, replace_file
from mats_ds.core.storage.tensor_file import begins_with, write_tensor_file
from mats_ds.evaluation.features.extract_options import SUFFIXES

if TYPE_CHECKING:  # imported where it is used: to know a folder of features needs no torch
    import torch

    from mats_ds.models.weights.model_weights import Weights

KEY, TOKENS = "key", "tokens_SKD"
RESULTS = "probe.json"  # beside the features
FEATURES = tuple(f"{part}-{name}.safetensors" for part in ("train", "val") for name in ("trained", "fresh"))
MAX_RESULT_BYTES = 1_000_000


@dataclass(frozen=True)
class FrozenSet:
    """Features of S readable videos.

    pooled_SD float32: the mean over a video's views. tokens_SKD
    float16: normalised tokens of all its views, None if no probe needs them. label_S and sample_S
    (row of the manifest) int64.
    """

    pooled_SD: torch.Tensor
    label_S: torch.Tensor
    sample_S: torch.Tensor
    tokens_SKD: torch.Tensor | None = None


def make_key(state: Mapping[str, torch.Tensor], paths: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The digest of weights, videos (with their sizes and times) and settings (anything for
    JSON)."""
    import torch

    def parts() -> Iterator[bytes | memoryview]:
        yield json.dumps(settings, sort_keys=True).encode()
        for name in sorted(state):
            yield name.encode()
            yield state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        for path in paths:
            status = stat_file(path) if file_exists(path) else None
            yield f"{path}\0{status and (status.num_bytes, status.modified_ns)}\0".encode()

    return digest(parts())


def save_features(path: str | Path, features: FrozenSet, *, key: str) -> None:
    """Write the file atomically."""
    from mats_ds.models.weights.native import write_tensors

    named = {name: tensor for name, tensor in vars(features).items() if tensor is not None}
    write_tensors(Path(path), named, {KEY: key})


def holds_features(path: Path) -> bool:
    """Whether the file was written by `save_features`."""
    try:
        refuse_wrong_kind(path)
        with safe_open(path, framework="np") as file:
            return KEY in (file.metadata() or {}) and "pooled_SD" in file.keys()  # noqa: SIM118 (it is no dictionary)
    except (OSError, ValueError, SafetensorError):
        return False


def refuse_foreign_features(folder: Path) -> None:
    """Raise ValueError if a file with one of our names is of another program and would be lost."""
    for name in FEATURES:
        refuse_foreign(folder / name, marker=KEY)


def is_probe_folder(folder: Path) -> bool:
    """Whether a probe of version 0.1, which left no marker, made the folder."""
    try:
        tree = parse_json(read_bytes(folder / RESULTS, max_bytes=MAX_RESULT_BYTES))
        return isinstance(tree, dict) and {"model", "train", "val", "chance", "results"} <= tree.keys()
    except FileNotFoundError:
        return any(holds_features(folder / name) for name in FEATURES)
    except (OSError, ValueError):
        return False


def load_features(path: str | Path, *, key: str, needs_tokens: bool) -> FrozenSet | None:
    """The features of the file; None if it is missing, damaged, without tokens or of another
    key."""
    from mats_ds.models.weights.file_content import check_header

    if not Path(path).is_file():
        return None
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
            if (file.metadata() or {}).get(KEY) != key or (needs_tokens and TOKENS not in stored):
                return None
            names = stored if needs_tokens else stored - {TOKENS}
            return FrozenSet(**{name: file.get_tensor(name) for name in names})
    except (SafetensorError, ValueError, TypeError):
        return None


ZIP_MARK = b"PK\x03\x04"
MAX_ARRAYS = 100  # a shard has seven
ABOUT = "about"  # JSON: an entry of the metadata, or an array of one string


@dataclass(frozen=True)
class Shard:
    """`settings`: digest of the settings of the extraction. `bad`: unreadable videos of this
    shard."""

    arrays: Mapping[str, np.ndarray]
    settings: str
    bad: tuple[BadClip, ...]


def write_shard(path: Path, shard: Shard) -> None:
    """Write the file atomically, as .npz or .safetensors by its suffix."""
    about = json.dumps(
        {
            "settings": shard.settings,
            "sha256": digest_arrays(shard.arrays),
            "bad": [[clip.path, clip.sample, clip.reason] for clip in shard.bad],
        }
    )
    if path.suffix == SUFFIXES["npz"]:
        # by name, numpy would add a suffix
        with replace_file(path) as aside, aside.open("wb") as stream:
            np.savez(stream, **shard.arrays, **{ABOUT: np.array(about)})
    else:
        arrays = {name: np.ascontiguousarray(array) for name, array in shard.arrays.items()}
        write_tensor_file(path, lambda file: save_file(arrays, file, metadata={ABOUT: about}))


def read_shard(path: Path) -> Shard:
    """Raises ValueError for a file that is torn, damaged or of another program."""
    from mats_ds.models.weights.file_content import check_header

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
        raise ValueError(f"{path} is no complete shard of features: {error}") from None
    if digest_arrays(arrays) != stated:
        raise ValueError(f"{path} does not hold the numbers that were written: it is damaged")
    return Shard(arrays, settings, bad)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the file. Raises ValueError, before reading, for more bytes than are stored."""
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
    """Raise ValueError for an array that claims more bytes than are stored."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(
            f"{info.filename} is an array of NumPy's format {version}, expected one of {', '.join(map(str, readers))}"
        )
    shape, _, dtype = readers[version](member)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > info.file_size:
        raise ValueError(f"{info.filename} claims {claimed:.6g} bytes, and {info.file_size:,} are stored")


def is_finished(path: Path, settings: str) -> bool:
    """Whether the file is an undamaged shard of these settings.

    Raises ValueError if it is not and may not be overwritten either: a folder, a link or a file of
    another program.
    """
    if path.is_file():
        try:
            if read_shard(path).settings == settings:
                return True
        except ValueError:
            pass  # damaged: extracted again
    refuse_foreign(path, marker=ABOUT)
    return False


def refuse_foreign(path: Path, *, marker: str) -> None:
    """Raise ValueError for a folder, a link, or a file that cannot be (a damaged) one of ours."""
    refuse_wrong_kind(path)
    if path.is_file() and not _may_hold_features(path, marker):
        raise ValueError(f"{path} holds no features of this command, and would be lost: rename it, or give another --out")


def _may_hold_features(path: Path, marker: str) -> bool:
    if path.suffix != SUFFIXES["npz"]:
        return begins_with(path, marker)
    with path.open("rb") as stream:
        if not ZIP_MARK.startswith(stream.read(len(ZIP_MARK))):
            return False
    try:
        with path.open("rb") as stream, open_archive(stream) as archive:
            return f"{marker}.npy" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError):  # incomplete
        return True


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
    """sha256 over the concatenated parts, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
