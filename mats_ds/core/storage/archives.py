"""Zip files of arrays of other people (.pth of torch, .npz of NumPy): measured before any of it is
unpacked.

torch and numpy.savez store arrays as they are. Deflated, two megabytes of zeros stand for
gigabytes, and entries that lie over each other count the same bytes many times.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

MAX_EXPANSION = 8  # float weights deflate to nine tenths, indices of a shard to an eighth
MAX_ENTRIES = 200_000  # ViT-g has 520 tensors; with two moments of each, 1,560
# The records at the end of a zip file (APPNOTE 6.3.10, 4.3.14 to 4.3.16), the second and third for
# more than 65,535 entries.
END_MARK, END64_MARK, LOCATOR_MARK = b"PK\5\6", b"PK\6\6", b"PK\6\7"
END_BYTES, END64_BYTES, LOCATOR_BYTES, LONGEST_COMMENT = 22, 56, 20, 65_535


class ArchiveTooLarge(ValueError):
    """An archive would unfold to more than its own bytes can hold."""


def open_archive(stream: IO[bytes]) -> zipfile.ZipFile:
    """The archive, for its entries to be read.

    Raises ArchiveTooLarge where it unfolds to more than MAX_EXPANSION times its own bytes (stored
    as it is: to more than these) or has more than MAX_ENTRIES entries, and what zipfile raises for
    one that is torn.
    """
    num_bytes = stream.seek(0, os.SEEK_END)
    num_entries = _count_entries(stream, num_bytes)
    if num_entries > MAX_ENTRIES:
        raise ArchiveTooLarge(f"it has {num_entries:,} entries, expected {MAX_ENTRIES:,} at most")
    archive = zipfile.ZipFile(stream)
    infos = archive.infolist()
    is_stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    unfolded = sum(max(info.file_size, info.compress_size) for info in infos)
    if unfolded > num_bytes * (1 if is_stored else MAX_EXPANSION):
        archive.close()
        raise ArchiveTooLarge(f"its {num_bytes:,} bytes unfold to {unfolded:,}: no file of numbers is so compressible")
    return archive


def _count_entries(stream: IO[bytes], num_bytes: int) -> int:
    """The number of entries by the end of the file, without reading their directory; 0 where there
    is none."""
    stream.seek(max(0, num_bytes - LONGEST_COMMENT - END_BYTES - LOCATOR_BYTES - END64_BYTES))
    tail = stream.read()
    end = tail.rfind(END_MARK)
    if end < 0 or len(tail) < end + END_BYTES:
        return 0
    (count,) = struct.unpack_from("<H", tail, end + 10)
    longer = end - LOCATOR_BYTES - END64_BYTES
    if longer >= 0 and tail.startswith(END64_MARK, longer) and tail.startswith(LOCATOR_MARK, longer + END64_BYTES):
        (count,) = struct.unpack_from("<Q", tail, longer + 32)
    return count


def count_stored_bytes(content: Any) -> int:
    """Bytes of all storages below `content`, each once however many tensors and containers share
    it.

    Reads none of them. Sparse tensors are not counted: nothing here unfolds them.
    """
    import torch

    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided:
                storage = value.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
    return sum(storages.values())
