"""Frozen features of a set of videos <-> one .safetensors file that knows what it was made from, so that it is used again.

The key is a digest of all that the features depend on: every weight, every row of the manifest with its file's size and time, how
clips are taken. A file with another key is passed over, and written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mats_ds.core.files import read_bytes, refuse_wrong_kind
from mats_ds.interop.file_content import check_header
from mats_ds.interop.plain import write_tensors
from mats_ds.parsing import parse_json

KEY, TOKENS = "key", "tokens_SKD"
RESULTS = "probe.json"  # beside the features
FEATURES = tuple(f"{part}-{name}.safetensors" for part in ("train", "val") for name in ("trained", "fresh"))
MAX_RESULT_BYTES = 1_000_000


@dataclass(frozen=True)
class FrozenSet:
    """Features of S videos that could be read. pooled_SD float32: the mean over a video's views. tokens_SKD float16: normalised
    tokens of all its views, None where nobody asked for them. label_S and sample_S (row of the manifest) int64.
    """

    pooled_SD: torch.Tensor
    label_S: torch.Tensor
    sample_S: torch.Tensor
    tokens_SKD: torch.Tensor | None = None


def make_key(state: Mapping[str, torch.Tensor], paths: Sequence[str], settings: Mapping[str, Any]) -> str:
    """The digest. `settings`: anything that JSON can hold. A file that is missing counts as such."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    for path in paths:
        status = os.stat(path) if os.path.exists(path) else None
        digest.update(f"{path}\0{status and (status.st_size, status.st_mtime_ns)}\0".encode())
    return digest.hexdigest()


def save_features(path: str | Path, features: FrozenSet, *, key: str) -> None:
    """Write the file; it appears at once."""
    named = {name: tensor for name, tensor in vars(features).items() if tensor is not None}
    write_tensors(Path(path), named, {KEY: key})


def holds_features(path: Path) -> bool:
    """Whether `save_features` has written the file."""
    try:
        refuse_wrong_kind(path)
        with safe_open(path, framework="np") as file:
            return KEY in (file.metadata() or {}) and "pooled_SD" in file.keys()  # noqa: SIM118 (it is no dictionary)
    except (OSError, ValueError, SafetensorError):
        return False


def is_probe_folder(folder: Path) -> bool:
    """Whether a probe of version 0.1 has made the folder, which left no marker: by its results, or by features that it kept."""
    try:
        tree = parse_json(read_bytes(folder / RESULTS, max_bytes=MAX_RESULT_BYTES))
        return isinstance(tree, dict) and {"model", "train", "val", "chance", "results"} <= tree.keys()
    except FileNotFoundError:
        return any(holds_features(folder / name) for name in FEATURES)
    except (OSError, ValueError):
        return False


def load_features(path: str | Path, *, key: str, needs_tokens: bool) -> FrozenSet | None:
    """The features of the file; None where there is none, it was made from something else, or lacks the tokens."""
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
        return None  # torn, or not what was written: made anew
