"""Videos that are in two manifests, however they are spelled: found; other videos and other times
of one file: not."""

from __future__ import annotations

import logging
import os
import shutil

import pytest

from mats_ds.data import shared_videos
from mats_ds.data.manifest import read_manifest
from mats_ds.data.shared_videos import PIECE_BYTES, find_shared, refuse_shared

FIX = "say --allow"


def write(folder, name, rows, header="path,start,end"):
    """A manifest; `rows`: paths, or (path, start, end)."""
    lines = [",".join([str(part) for part in row] if isinstance(row, tuple) else [str(row), "", ""]) for row in rows]
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    return folder / name


@pytest.fixture
def files(tmp_path):
    """Six files of equal size that differ in one byte, twice as large as what is read first, in a
    folder `videos`."""
    (tmp_path / "videos").mkdir()
    for number in range(6):
        content = bytearray(6 * PIECE_BYTES)
        content[PIECE_BYTES + 5] = number  # between the pieces
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(content)
    return tmp_path


def found(folder, train_rows, test_rows, **roots):
    train, test = write(folder, "train.csv", train_rows), write(folder, "test.csv", test_rows)
    return find_shared(read_manifest(test, **roots), read_manifest(train))


def test_different_files_are_different_also_where_size_beginning_middle_and_end_are_equal(files):
    shared = found(files, ["videos/0.mp4", "videos/1.mp4"], ["videos/2.mp4", "videos/3.mp4"])
    assert shared.same == [] and shared.other_times == []


def test_every_spelling_of_a_file_is_that_file(files):
    videos = files / "videos"
    (files / "link.mp4").symlink_to(videos / "1.mp4")
    (files / "linked").symlink_to(videos)
    os.link(videos / "2.mp4", files / "hard.mp4")
    shutil.copy(videos / "3.mp4", files / "copy.mp4")
    spelled = [videos / "0.mp4", "videos/../link.mp4", "hard.mp4", "copy.mp4", "linked/4.mp4", "videos/5.mp4"]
    shared = found(files, [f"videos/{number}.mp4" for number in range(5)], spelled)
    assert shared.same == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]


def test_the_root_is_where_paths_start(files):
    shared = found(files, ["videos/0.mp4"], ["0.mp4", "1.mp4"], root=files / "videos")
    assert shared.same == [(0, 0)]


def test_a_small_copy_is_found_and_a_small_file_of_the_same_size_is_not(files):
    for name, content in (("a", b"abc"), ("b", b"abd"), ("c", b"abc"), ("empty", b""), ("void", b"")):
        (files / f"{name}.mp4").write_bytes(content)
    assert found(files, ["a.mp4", "empty.mp4"], ["b.mp4", "c.mp4", "void.mp4"]).same == [(1, 0)]


def test_files_that_are_missing_count_by_their_path(files):
    assert found(files, ["gone.mp4", "videos/0.mp4"], ["videos/../gone.mp4", "other.mp4", "videos/1.mp4"]).same == [(0, 0)]


@pytest.mark.parametrize(
    ("train", "test", "is_same"),
    [
        (("", ""), ("", ""), True),
        (("0", "4"), ("4", "8"), False),
        (("4", "8"), ("0", "4"), False),
        (("0", "4.5"), ("4", "8"), True),
        (("", "4"), ("3.5", ""), True),
        (("", "4"), ("4", ""), False),
        (("2", "3"), ("", ""), True),
    ],
)
def test_parts_of_a_file_are_the_same_where_they_meet(files, train, test, is_same):
    shared = found(files, [("videos/0.mp4", *train)], [("videos/0.mp4", *test)])
    assert (shared.same, shared.other_times) == (([(0, 0)], []) if is_same else ([], [(0, 0)]))


def test_a_row_that_meets_any_of_the_training_rows_is_the_same_clip(files):
    parts = [("videos/0.mp4", 0, 2), ("videos/0.mp4", 5, 9)]
    assert found(files, parts, [("videos/0.mp4", 6, 7), ("videos/0.mp4", 2, 5)]).same == [(0, 1)]


def test_they_are_refused_with_their_number_and_first_names_or_warned_of(files, caplog):
    names = [f"videos/{number}.mp4" for number in range(5)]
    shutil.copy(files / "videos" / "1.mp4", files / "copy{}.mp4")
    train = read_manifest(write(files, "train.csv", names))
    test = read_manifest(write(files, "test.csv", [names[0], "copy{}.mp4", *names[2:5], "videos/5.mp4"]))
    with pytest.raises(ValueError, match="5 of 6 videos of .*test.csv are in .*train.csv") as error:
        refuse_shared(test, train, allowed=False, fix=FIX)
    told = str(error.value)
    assert f"{files}/copy{{}}.mp4 (there: {files}/videos/1.mp4)" in told and "and 2 more" in told and FIX in told
    with caplog.at_level(logging.WARNING, "mats_ds"):
        assert refuse_shared(test, train, allowed=True, fix=FIX) == 5
    assert "5 of 6 videos" in caplog.text


def test_other_times_of_a_file_are_warned_of_and_nothing_is_said_of_unshared_videos(files, caplog):
    train = read_manifest(write(files, "train.csv", [("videos/0.mp4", 0, 4), "videos/1.mp4"]))
    test = read_manifest(write(files, "test.csv", [("videos/0.mp4", 4, 8), "videos/2.mp4"]))
    with caplog.at_level(logging.WARNING, "mats_ds"):
        assert refuse_shared(test, train, allowed=False, fix=FIX) == 0
        assert "1 of 2 videos" in caplog.text and "other times" in caplog.text
        caplog.clear()
        assert refuse_shared(read_manifest(write(files, "none.csv", ["videos/3.mp4"])), train, allowed=False, fix=FIX) == 0
    assert caplog.text == ""


def test_files_of_sizes_that_only_one_manifest_has_are_never_opened(files, monkeypatch):
    (files / "long.mp4").write_bytes(b"x" * 9)
    monkeypatch.setattr(shared_videos, "read_pieces", lambda path: pytest.fail(f"opened {path}"))
    assert found(files, ["videos/0.mp4"], ["long.mp4"]).same == []
