"""A short list of videos is read before the heavy imports; of a long one and of a folder only the
path is looked at."""

from __future__ import annotations

import pytest

from mats_ds.data import early_list
from mats_ds.data.early_list import check_list


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "videos.csv").write_text("path,label\na.mp4,3\n")
    (tmp_path / "torn.csv").write_text("path,label\na.mp4,x\n")
    return tmp_path


def test_a_short_list_is_read_and_its_mistakes_are_named(videos):
    assert check_list(videos / "videos.csv").label_S.tolist() == [3]
    with pytest.raises(ValueError, match="line 2: label 'x'"):
        check_list(videos / "torn.csv")


def test_a_long_list_and_a_folder_are_left_for_who_uses_them(videos, monkeypatch):
    monkeypatch.setattr(early_list, "EARLY_BYTES", 10)
    assert check_list(videos / "torn.csv") is None and check_list(videos) is None


@pytest.mark.parametrize(
    "source, root, words", [("none.csv", None, "no manifest at"), (".", "none", "data.root none is no folder")]
)
def test_their_paths_are_checked_all_the_same(videos, monkeypatch, source, root, words):
    monkeypatch.setattr(early_list, "EARLY_BYTES", 0)
    monkeypatch.chdir(videos)
    with pytest.raises(ValueError, match=words):
        check_list(source, root=root, root_name="data.root")
