"""What a file is by its first bytes, for errors about one kind of file where another was expected.

describe_file("holiday.csv")  ->  "a video"
"""

from __future__ import annotations

import re
from pathlib import Path

from mats_ds.core.shards.members import file_exists, is_file, open_file, why_missing

HEAD_BYTES = 1024
# Magic numbers at the beginning: of ISO/IEC 14496-12, RFC 9559, RFC 2083 and the like.
VIDEO = re.compile(
    rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI |\x00\x00\x01[\xb3\xba]|\x47.{187}\x47|FLV\x01|OggS|\x30\x26\xb2\x75\x8e\x66",
    re.DOTALL,
)
IMAGE = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM.{4}\x00\x00|II\*\x00|MM\x00\*", re.DOTALL)
SAFETENSORS = re.compile(rb".{8}\{\s*\"", re.DOTALL)
ARCHIVES = {b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive", b"%PDF": "a PDF"}
TAR, TAR_MAGIC, TAR_MAGIC_OFFSET = "a tar archive", b"ustar", 257  # POSIX.1-1988


def describe_file(path: str | Path) -> str | None:
    """The kind of file or folder: "a video", "an image", "weights of PyTorch", "a JSON file", "a
    run folder"; None where there is nothing, or nothing that is known."""
    path = Path(path)
    if path.is_dir():
        return "a run folder" if (path / "run.json").is_file() else "a folder"
    try:
        if not is_file(path):
            return None
        with open_file(path) as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return None
    return _name_binary(head) or _name_text(head, path.suffix.lower())


def _name_binary(head: bytes) -> str | None:
    if not head:
        return "an empty file"
    if IMAGE.match(head):
        return "an image"
    if VIDEO.match(head):
        return "a video"
    if head[TAR_MAGIC_OFFSET:].startswith(TAR_MAGIC):
        return TAR
    if SAFETENSORS.match(head):
        return "weights (.safetensors)"
    if head.startswith(b"PK\x03\x04"):
        return "weights of PyTorch" if b"data.pkl" in head[:300] else "a zip archive"
    if re.match(rb"\x80[\x02-\x05]", head):
        return "a pickle, as weights of PyTorch"
    return next((name for magic, name in ARCHIVES.items() if head.startswith(magic)), None)


def _name_text(head: bytes, suffix: str) -> str | None:
    """The kind of a text; None for bytes that are none."""
    text = head.decode("utf-8-sig", "ignore").strip()
    if "\0" in text:
        return None
    first = text.partition("\n")[0]
    if text.startswith(("{", "[")):
        return "a JSON file"
    if suffix in (".yaml", ".yml") or re.search(r"^(model|clip|selection|data|optim|run|finetune):", text, re.MULTILINE):
        return "a recipe (YAML)"
    if suffix in (".csv", ".tsv") or "path" in first.split(","):
        return "a table (CSV)"
    return "a text file"


def why_no_video(path: str | Path, reason: str) -> str:
    """The sentence for a video that cannot be read: what the file is instead of one, or else the
    decoder's reason."""
    if describe_file(path) in ("a video", None) and file_exists(path):
        return f"{path}: {reason}"
    fix = f"name a video in it, such as {path}#clip.mp4" if describe_file(path) == TAR else "give a video file, such as an .mp4"
    return f"{not_a('video', path)}: {fix}"


def not_a(expected: str, path: str | Path) -> str:
    """ "PATH is a video, no recipe", "there is no recipe PATH", or "PATH is no recipe" where its
    kind is not known."""
    if not file_exists(path):
        why = why_missing(path)
        return f"there is no {expected} {path}" + (f" ({why})" if why else "")
    kind = describe_file(path)
    return f"{path} is {kind}, no {expected}" if kind else f"{path} is no {expected}"
