"""Write, read and hash regular files: replaced in one step or not at all, read up to a bound, never
through a link.

A file is written beside its name and renamed once it is complete, so that a reader sees the old
content or the new one, and a full disk or a kill leaves the old one. A symbolic link, a folder, a
pipe or a device where a file should be is refused: a link in a folder of somebody else's could lead
to any file of the user's.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

# a temporary name keeps so many characters of the file's own: 255 bytes are the most
NAME_CHARACTERS = 50
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
BLOCK_BYTES = 1 << 22  # read and hashed at once
# What the name of a file or folder may have: 255 bytes are the most, and what is added to it needs
# some.
MAX_NAME_CHARACTERS, MAX_NAME_BYTES = 100, 200
# The separators of all systems, and what shared Windows disks (SMB, NTFS) do not have in names.
FORBIDDEN = '/\\:*?"<>|'
# not printable by themselves, and part of words in Persian and Indian scripts
JOINERS = "\u200c\u200d"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for


class WrongKindOfFile(ValueError):
    """A link, folder, pipe or device stands where a regular file was expected."""


def describe_wrong_kind(path: Path) -> str | None:
    """The kind of anything at `path` but a regular file; None for a regular file and for
    nothing."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {os.readlink(path)!r}"
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def refuse_wrong_kind(path: Path, *, below: Path | None = None) -> None:
    """Raise WrongKindOfFile unless `path` is a regular file or nothing. With `below`, a folder that
    `path` lies in, no folder on the way from there may be a link either."""
    if below is not None:
        for parent in reversed(path.relative_to(below).parents[:-1]):
            if (below / parent).is_symlink():
                raise WrongKindOfFile(
                    f"{below / parent} is a symbolic link to {os.readlink(below / parent)!r}, which is not followed: "
                    "put the folder itself there, or remove the link"
                )
    kind = describe_wrong_kind(path)
    if kind is not None:
        raise WrongKindOfFile(f"{path} is {kind}, expected a regular file or nothing: remove it or rename it, then try again")


@contextlib.contextmanager
def replace_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A new empty file beside `path` to write into; it takes the name `path` when the block ends
    without an error, and is removed otherwise. The folder must exist.

    durable: force content and name to the disk first, so that they survive a power cut.
    Raises WrongKindOfFile where something other than a regular file has the name, and OSError where
    it cannot be written.
    """
    refuse_wrong_kind(path)
    aside = path.with_name(f".{path.name[:NAME_CHARACTERS]}.{secrets.token_hex(6)}.part")
    os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666))
    try:
        yield aside
        if durable:
            sync_to_disk(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if durable:
        sync_to_disk(path.parent)


def write_text(path: Path, text: str, *, durable: bool = False, errors: str = "strict") -> None:
    """Write a UTF-8 file as `replace_file` does; line ends stay as they are."""
    with replace_file(path, durable=durable) as aside:
        aside.write_bytes(text.encode("utf-8", errors))


def write_json(path: Path, tree: Any, *, durable: bool = False, indent: int = 1) -> None:
    """Write a JSON document, with a new line at its end, as `replace_file` does. Raises ValueError
    for NaN and infinities."""
    write_text(path, json.dumps(tree, indent=indent, allow_nan=False) + "\n", durable=durable)


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows, the header among them, as CSV text for `write_text` or `append_text`."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def open_to_append(path: Path) -> IO[str]:
    """A UTF-8 file to add lines to, made where it is not there; each line is written when it ends.

    Raises WrongKindOfFile for a link and for what is not a regular file.
    """
    refuse_wrong_kind(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINK | _NO_WAIT, 0o666)
    return os.fdopen(descriptor, "a", buffering=1, encoding="utf-8", newline="\n")


def append_text(file: IO[str], text: str) -> None:
    """Add text with a single call of the system, so that the lines of several processes never mix.
    Nothing stays in a buffer that a full disk would refuse once more when the file is closed.
    """
    content = text.encode(errors="backslashreplace")
    while content:  # a disk that is almost full takes the first part, and refuses the second
        content = content[os.write(file.fileno(), content) :]


def open_regular(path: Path, *, below: Path | None = None) -> IO[bytes]:
    """A file to read from a folder that may be somebody else's. A pipe is not waited for.

    Raises FileNotFoundError, and WrongKindOfFile for a link and for what is not a regular file
    (`below`: see refuse_wrong_kind).
    """
    refuse_wrong_kind(path, below=below)
    descriptor = os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise WrongKindOfFile(f"{path} is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def read_bytes(path: Path, *, max_bytes: int, below: Path | None = None, follows_links: bool = False) -> bytes:
    """The content of a small file, opened as `open_regular` does. Raises ValueError where it is
    longer than `max_bytes`.

    follows_links: for a file that the user named, and for Hugging Face's cache, whose folders are
    made of links.
    """
    with path.open("rb") if follows_links else open_regular(path, below=below) as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is longer than {max_bytes:,} bytes, the most that such a file has")
    return content


def read_text(path: Path, *, max_bytes: int, follows_links: bool = False) -> str:
    """The text of a small UTF-8 file, read as `read_bytes` does. Raises ValueError for what is no
    UTF-8."""
    content = read_bytes(path, max_bytes=max_bytes, follows_links=follows_links)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None


def hash_stream(stream: IO[bytes]) -> str:
    """SHA-256 of what is left of a binary stream, in hexadecimal digits."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits; opened as `open_regular` does."""
    with open_regular(Path(path)) as stream:
        return hash_stream(stream)


def hash_text(text: str) -> str:
    """SHA-256 of the file that `write_text` makes of a text with errors="backslashreplace"."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def sync_to_disk(path: Path) -> None:
    """Force a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_same_file(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two names lead to the same file, through links and hard links; False where one leads
    to none."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # ValueError: a NUL in a name
        return False


def why_no_file_name(name: str) -> str | None:
    """The reason to refuse a text as the name of a file or folder; None for a good name."""
    if not name or name != name.strip():
        return "it should not be empty, and not begin or end with a space"
    if bad := next((letter for letter in name if letter in FORBIDDEN), None):
        return f"it should have none of {FORBIDDEN}, this one has {bad}"
    if bad := next((letter for letter in name if not letter.isprintable() and letter not in JOINERS), None):
        return f"it should be of letters, digits and signs that can be seen, this one has {bad!a}"
    if name[0] in ".-~":
        return f"it should not begin with {name[0]!r}"
    if name.endswith("."):
        return "it should not end with a full stop"
    if len(name) > MAX_NAME_CHARACTERS or len(name.encode()) > MAX_NAME_BYTES:
        return f"it should have at most {MAX_NAME_CHARACTERS} letters ({MAX_NAME_BYTES} bytes), this one has {len(name)}"
    return None
