"""What a file really holds, told by its first bytes and not by its name: weights, or what was downloaded in their place.

A Git LFS pointer, a web page, an error message of a server, an archive or a file that is cut off is refused in words of its own:
none of them gets better by being loaded in another way.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

from mats_ds.core.archives import ArchiveTooLarge, open_archive
from mats_ds.parsing import parse_json

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
TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # ends the .index file of a TensorFlow checkpoint (LevelDB's table format)
MAX_HEADER_BYTES = 10_000_000  # safetensors reads ten times as much; ViT-g has 50,000 bytes, and names of classes are beside them
MAX_JSON_BYTES = 8_000_000  # with the names of ImageNet-21k's classes, twice, config.json has 1.6 million
SHOWN = 80
AGAIN = "download it again"


def check_content(path: str | Path) -> str:
    """The kind of a file that may hold weights: "zip", "safetensors", or "other", which may be a pickle.

    Raises ValueError for a file that holds none, and says what it is.
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
            f"{path} is a Git LFS pointer of {num_bytes} bytes, and not the file that it stands for{_size_in(head)}: run "
            "`git lfs install` and `git lfs pull` in its repository, or download the file itself"
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
        raise ValueError(f"{path} is cut off or damaged, it may be torn ({num_bytes} bytes; {error}): {AGAIN}") from None
    if any("/code/" in name for name in names):
        raise ValueError(f"{path} is a TorchScript model, a program and not weights alone: save its state_dict() with torch.save")
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
    """Raises ValueError for a safetensors file whose list of tensors alone would fill the memory: each of a hundred megabytes of
    empty tensors becomes several when it is read.
    """
    with Path(path).open("rb") as stream:
        head = stream.read(8)
    length = int.from_bytes(head, "little")
    if MAX_HEADER_BYTES < length <= Path(path).stat().st_size:  # longer than the file, it is torn: its reader says so
        raise ValueError(f"{path} says that its header has {length:,} bytes, expected {MAX_HEADER_BYTES:,} at most")


def _is_text(head: bytes) -> bool:
    try:
        text = head[:-4].decode() if len(head) == HEAD_BYTES else head.decode()  # a character may be cut in two
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
