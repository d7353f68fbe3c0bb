"""Zip files are measured before they are unpacked, and tensors before they are read."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from mats_ds.core.storage.archives import MAX_ENTRIES, ArchiveTooLarge, count_stored_bytes, open_archive


def pack(content, *, compression=zipfile.ZIP_STORED, names=("a", "b")):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name in names:
            archive.writestr(name, content)
    return stream


def test_stored_and_hardly_compressed_files_are_opened():
    noise = np.random.default_rng(0).bytes(1000)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with open_archive(pack(noise, compression=compression)) as archive:
            assert archive.read("b") == noise


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zeros_are_not(compression):
    with pytest.raises(ArchiveTooLarge, match=r"unfold to 2,000,000"):
        open_archive(pack(bytes(1_000_000), compression=compression))


def test_entries_are_counted_before_they_are_read():
    """The two counts of the end, of which the second is for more than 65,535."""
    stream = pack(b"x")
    whole = stream.getvalue()
    end = whole.rfind(b"PK\5\6")
    longer = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, MAX_ENTRIES + 1, MAX_ENTRIES + 1, 0, 0)
    longer += b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    with pytest.raises(ArchiveTooLarge, match=f"{MAX_ENTRIES + 1:,} entries"):
        open_archive(io.BytesIO(whole[:end] + longer + whole[end:]))


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6", b"x" * 100])
def test_what_is_no_archive_is_told_by_the_reader(content):
    with pytest.raises(zipfile.BadZipFile):
        open_archive(io.BytesIO(content))


def test_storages_are_counted_once_and_loops_end():
    base = torch.zeros(100)
    content = {"a": base, "b": [base[:50], base.expand(1000, 100)], "c": {"d": torch.zeros(3, dtype=torch.float16)}}
    content["self"] = content
    assert count_stored_bytes(content) == 400 + 6


def test_nothing_is_read_of_tensors_without_numbers():
    assert count_stored_bytes({"a": torch.empty(3, 5, device="meta"), "b": "text", "c": None, 4: (1, {2})}) == 60


def test_sparse_tensors_are_passed_over():
    assert count_stored_bytes([torch.zeros(7, 11).to_sparse(), torch.zeros(3)]) == 12
