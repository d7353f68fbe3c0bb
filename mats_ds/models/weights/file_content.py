"""The kind of a file by its first bytes and not by its name: weights, or a failed download.

A Git LFS pointer, a web page, an error message of a server, an archive or a file that is cut off is
refused with its own message: none of them gets better by being loaded in another way.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mats_ds.core.format import format_count
from mats_ds.core.storage.archives import MAX_EXPANSION, ArchiveTooLarge, count_stored_bytes, open_archive
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.pickle_bombs import InflatingPickle, refuse_inflating_calls

HEAD_BYTES = 4096
LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--", b"<script")
ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-zip archive",
    b"Rar!": "a RAR archive",
}
OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras and TensorFlow write",
    b"\x93NUMPY": "an array of NumPy",
    b"GGUF": "a GGUF file of a language model",
    b"%PDF": "a PDF document",
}
TAR_MARK, TAR_AT = b"ustar", 257
# ends the .index file of a TensorFlow checkpoint (LevelDB's table format)
TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
# safetensors reads ten times as much; ViT-g has 50,000 bytes, and names of classes are beside them
MAX_HEADER_BYTES = 10_000_000
# with the names of ImageNet-21k's classes, twice, config.json has 1.6 million
MAX_JSON_BYTES = 8_000_000
SHOWN = 80
AGAIN = "download it again"
# The beginning of an ONNX ModelProto as exporters write it: ir_version, then the producer's name.
ONNX = re.compile(rb"\x08[\x03-\x40]\x12[\x01-\x40][\w.]")
# In an archive of torch.export.save: of torch 2.15, and of older ones.
EXPORTED = ("/models/model.json", "serialized_exported_program.json")
TO_RUN = "a program to run and no weights to load: give the run or the weights that it was made of"


def check_content(path: str | Path) -> str:
    """The kind of a file that may hold weights: "zip", "safetensors", or "other", which may be a
    pickle.

    Raises ValueError, with what it is, for a file that holds none.
    """
    path = Path(path)
    num_bytes = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(max(0, num_bytes - len(TABLE_MAGIC)))
        tail = stream.read()
    if not head:
        raise ValueError(f"{path} is empty (0 bytes): {AGAIN}")
    if head.startswith(LFS):
        raise ValueError(
            f"{path} is a Git LFS pointer of {format_count(num_bytes, 'byte')}, and not the file that it points to"
            f"{_size_in(head)}: run `git lfs install` and `git lfs pull` in its repository, or download the file itself"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:64].lower().startswith(PAGES):
        raise ValueError(f"{path} is an HTML page and no weights (an error or a sign-in page?): {AGAIN}, signed in if need be")
    if text.startswith(b"<?xml") or text.startswith(b"<Error"):
        raise ValueError(f"{path} is an XML document and no weights, perhaps a server's error: {_show(text)}: {AGAIN}")
    for mark, what in ARCHIVES.items():
        if head.startswith(mark):
            raise ValueError(f"{path} is {what}: unpack it, and give the file of weights that is in it")
    if head[TAR_AT : TAR_AT + len(TAR_MARK)] == TAR_MARK:
        raise ValueError(f"{path} is a tar archive: unpack it, and give the file of weights that is in it")
    for mark, what in OTHERS.items():
        if head.startswith(mark):
            raise ValueError(f"{path} is {what}: give a checkpoint of PyTorch (.pth) or a .safetensors file")
    if ONNX.match(head):
        raise ValueError(f"{path} is an ONNX model, {TO_RUN}")
    if tail == TABLE_MAGIC or ".data-0000" in path.name:
        raise ValueError(f"{path} is a checkpoint of TensorFlow: give a checkpoint of PyTorch (.pth) or a .safetensors file")
    if head.startswith(b"PK"):
        _check_zip(path, num_bytes)
        return "zip"
    if _is_safetensors(head, num_bytes):
        check_header(path)
        return "safetensors"
    if _is_text(head) and not head.startswith(b"(dp"):  # a pickle of protocol 0 is text, too
        what = "JSON text, perhaps a server's answer" if _is_json(path, text, num_bytes) else "text"
        raise ValueError(f"{path} is {what} and no weights; it begins {_show(text)}: {AGAIN}, or give another file")
    return "other"


def _size_in(head: bytes) -> str:
    sizes = [line[5:].decode(errors="replace") for line in head.splitlines() if line.startswith(b"size ")]
    return f" ({sizes[0]} bytes)" if sizes else ""


def _check_zip(path: Path, num_bytes: int) -> None:
    """Raises ValueError for a zip file that is cut off, or that torch did not write."""
    try:
        with path.open("rb") as stream, open_archive(stream) as archive:
            names = archive.namelist()
    except ArchiveTooLarge as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is cut off or damaged, it may be torn ({format_count(num_bytes, 'byte')}; {error}): {AGAIN}"
        ) from None
    if any("/code/" in name for name in names):
        raise ValueError(f"{path} is a TorchScript model, a program and not weights alone: save its state_dict() with torch.save")
    if any(name.endswith(EXPORTED) for name in names):
        raise ValueError(f"{path} is an exported program of torch.export, {TO_RUN}")
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(
            f"{path} is a zip archive of {', '.join(names[:3])}: unpack it, and give the file of weights that is in it"
        )


def _is_safetensors(head: bytes, num_bytes: int) -> bool:
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return 2 <= length <= num_bytes - 8 and head[8:9] == b"{"


def check_header(path: str | Path) -> None:
    """Raises ValueError for a safetensors file whose list of tensors alone would fill the memory:
    each of a hundred megabytes of empty tensors becomes several when it is read.
    """
    with Path(path).open("rb") as stream:
        head = stream.read(8)
    length = int.from_bytes(head, "little")
    # longer than the file, it is torn: its reader raises
    if MAX_HEADER_BYTES < length <= Path(path).stat().st_size:
        raise ValueError(f"{path} claims a header of {length:,} bytes, expected {MAX_HEADER_BYTES:,} at most")


def _is_text(head: bytes) -> bool:
    try:
        # a character may be cut in two
        text = head[:-4].decode() if len(head) == HEAD_BYTES else head.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)


def _is_json(path: Path, text: bytes, num_bytes: int) -> bool:
    if text[:1] not in (b"{", b"[") or num_bytes > MAX_JSON_BYTES:
        return False
    try:
        parse_json(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, json.JSONDecodeError):
        return False
    return True


def _show(text: bytes) -> str:
    return repr(" ".join(text[:SHOWN].decode(errors="replace").split()))


NUMPY_TYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
SHOWN_OF_REASON = 160
CUT_OFF = ("truncated", "Ran out of input", "central directory", "unexpected end", "EOF", "PytorchStreamReader")


def unpickle(path: Path) -> Mapping[str, Any]:
    """The dictionary in a `.pth` file; no code in it is run. Raises ValueError when that cannot be
    done."""
    check_content(path)
    try:
        # of a path, torch would judge the suffix
        with torch.serialization.safe_globals(_harmless()), path.open("rb") as stream:
            refuse_inflating_calls(stream)
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except InflatingPickle as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # damaged, it makes torch's reader fail in any way
        raise ValueError(_explain(path, error)) from None
    claimed, num_bytes = count_stored_bytes(content), path.stat().st_size
    if claimed > MAX_EXPANSION * num_bytes:
        raise ValueError(f"{path} claims {claimed:,} bytes of tensors and is {num_bytes:,} bytes long: {AGAIN}")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def _harmless() -> list[Any]:
    types = [type(np.dtype(name)) for name in NUMPY_TYPES]
    names = [(_make_number, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    paths = [(pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath")]
    # as Python 3.13 calls it
    paths += [(made, name.replace("pathlib.", "pathlib._local.")) for made, name in paths]
    return [argparse.Namespace, np.dtype, *types, *names, *paths, (_encode, "_codecs.encode")]


_SCALAR = np.float64(0).__reduce__()[0]  # NumPy 1 and 2 keep it in different modules


def _make_number(dtype: np.dtype, content: bytes) -> Any:
    """NumPy's own makes gigabytes of zeros for a type of that size without content."""
    if dtype.kind not in "fiub" or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError(f"a value of NumPy that is no number of {dtype.itemsize} bytes")
    return _SCALAR(dtype, content)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as pickles of protocol 2 hold them: as latin-1 text, and in no other encoding."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _explain(path: Path, error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    reason = next((line for line in lines if "error:" in line), lines[0]).strip()[:SHOWN_OF_REASON]
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
