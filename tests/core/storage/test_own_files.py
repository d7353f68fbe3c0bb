"""A program's own files are those with the very bytes that it wrote; all others keep their names
and their content."""

import os
from pathlib import Path

import pytest

from mats_ds.core.storage.files import WrongKindOfFile, hash_file, hash_text
from mats_ds.core.storage.own_files import OwnFiles, find_same_path, refuse_sources, set_aside


def test_only_what_was_written_as_it_is_is_own(tmp_path):
    path = tmp_path / "deep" / "a.csv"
    path.parent.mkdir()
    path.write_text("one\n")
    own = OwnFiles(tmp_path)
    line = own.note(path, hash_text("one\n"))
    assert own.holds(path) and own.note(path, hash_text("one\n")) == ""
    read = OwnFiles(tmp_path, ["", '{"wrote": "torn', "[1]", '{"wrote": 3}', line])
    assert read.holds(path) and read.names() == ["deep/a.csv"]
    path.write_text("one, edited\n")
    assert read.knows(path) and not read.holds(path)
    assert not OwnFiles(tmp_path).knows(path)


def test_the_folder_may_be_moved_and_reached_by_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("x")
    line = OwnFiles(tmp_path / "out").note(tmp_path / "out" / "a", hash_text("x"))
    os.rename(tmp_path / "out", tmp_path / "moved")
    (tmp_path / "way").symlink_to(tmp_path / "moved")
    assert OwnFiles(tmp_path / "moved", [line]).holds(tmp_path / "way" / "a")


def test_a_link_is_never_own(tmp_path):
    (tmp_path / "theirs").write_text("x")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    assert not OwnFiles(tmp_path, [OwnFiles(tmp_path).note(tmp_path / "a", hash_file(tmp_path / "theirs"))]).holds(tmp_path / "a")


def test_what_is_set_aside_takes_no_name_that_is_there(tmp_path):
    for text in ("one", "two", "three"):
        (tmp_path / "a.csv").write_text(text)
        set_aside(tmp_path / "a.csv")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.csv.old": "one",
        "a.csv.old2": "two",
        "a.csv.old3": "three",
    }


def test_one_file_is_known_by_any_of_its_spellings(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    video = tmp_path / "videos" / "a.mp4"
    video.write_text("x")
    (tmp_path / "way").symlink_to("videos")
    monkeypatch.chdir(tmp_path)
    listed = ["videos/b.mp4", str(video)]
    for spelling in ("videos/a.mp4", "way/a.mp4", "./videos/../way/a.mp4"):
        assert find_same_path(Path(spelling), listed) == str(video)
    # a listed one that is not there
    assert find_same_path(Path("way/b.mp4"), listed) == "videos/b.mp4"
    assert find_same_path(Path("a.mp4"), listed) is None
    for name in ("link.csv", "hard.csv"):
        (os.symlink if name == "link.csv" else os.link)(video, name)
        with pytest.raises((WrongKindOfFile, ValueError), match=name):
            refuse_sources(Path(name), option="--out", sources=["videos/a.mp4"])
