"""Texts beside weights are read to their end, and not further than they can be long."""

import pytest

from mats_ds.core.storage.files import read_small_text


def test_a_text_is_read_through_a_link_as_hugging_faces_cache_has_them(tmp_path):
    (tmp_path / "blob").write_text("größer", encoding="utf-8")
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    assert read_small_text(tmp_path / "config.json", max_bytes=8) == "größer"


def test_a_longer_one_is_refused_with_the_length(tmp_path):
    with (tmp_path / "a").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: nothing of it is on the disk
    with pytest.raises(ValueError, match="longer than 1,000 bytes"):
        read_small_text(tmp_path / "a", max_bytes=1000)


def test_what_is_no_text_is_told(tmp_path):
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="no UTF-8.* at byte 2"):
        read_small_text(tmp_path / "a", max_bytes=1000)
