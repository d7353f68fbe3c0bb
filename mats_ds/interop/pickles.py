"""Pickles of torch -> a dictionary, without running any code of theirs (`weights_only`), or not at all.

Beside tensors, numbers and texts a checkpoint may hold `args` (argparse.Namespace), paths and NumPy's single numbers: these are
made without calling anything that the file could choose.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mats_ds.core.archives import MAX_EXPANSION
from mats_ds.core.stored_bytes import count_stored_bytes
from mats_ds.interop.file_content import AGAIN, check_content

NUMPY_TYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
SHOWN = 160
CUT_OFF = ("truncated", "Ran out of input", "central directory", "unexpected end", "EOF", "PytorchStreamReader")


def unpickle(path: Path) -> Mapping[str, Any]:
    """The dictionary in a `.pth` file; no code in it is run. Raises ValueError when that cannot be done."""
    check_content(path)
    try:
        with torch.serialization.safe_globals(_harmless()), path.open("rb") as stream:  # of a path, torch would judge the suffix
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged, it makes torch's reader fail in any way
        raise ValueError(_explain(path, error)) from None
    claimed, num_bytes = count_stored_bytes(content), path.stat().st_size
    if claimed > MAX_EXPANSION * num_bytes:
        raise ValueError(f"{path} claims {claimed:,} bytes of tensors and is {num_bytes:,} bytes long: {AGAIN}")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def _harmless() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]  # NumPy 1 and 2 keep it in different modules
    types = [type(np.dtype(name)) for name in NUMPY_TYPES]
    names = [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    paths = [(pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath")]
    paths += [(made, name.replace("pathlib.", "pathlib._local.")) for made, name in paths]  # as Python 3.13 calls it
    return [argparse.Namespace, np.dtype, *types, *names, *paths, (_encode, "_codecs.encode")]


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes: as latin-1 text, and in no other encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _explain(path: Path, error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    reason = next((line for line in lines if "error:" in line), lines[0]).strip()[:SHOWN]
    if isinstance(error, (EOFError, struct.error)) or any(word in str(error) for word in CUT_OFF):
        return f"{path} is cut off or damaged, it may be torn ({path.stat().st_size} bytes; {reason}): {AGAIN}"
    if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL (\S+)", str(error))):
        return (
            f"{path} holds more than tensors and numbers, and reading it would run code from the file ({code[1]}): "
            "load it where you trust it, and save the state dict alone"
        )
    if isinstance(error, pickle.UnpicklingError):
        reason = reason.partition("error: ")[2] or "its bytes are no such pickle"
    return f"{path} cannot be read, it may be torn or of another program than PyTorch: {reason}"
