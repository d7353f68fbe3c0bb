"""Texts that people and programs write beside weights: read up to a length that such a file can have, and no further."""

from __future__ import annotations

from pathlib import Path


def read_small_text(path: Path, *, max_bytes: int) -> str:
    """A UTF-8 file. Links are followed: the folders of Hugging Face's cache are made of them.

    Raises ValueError for a file that is longer than `max_bytes` or no UTF-8.
    """
    with path.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is longer than {max_bytes:,} bytes, the most that such a file has")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from None
