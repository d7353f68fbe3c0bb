"""A command overwrites a file only where it wrote it or is told to, and no input in any case."""

import json
import os

import pytest

from mats_ds.core.storage.output_file import (
    begin_writing,
    check_output_file,
    describe_fault,
    describe_leftovers,
    end_writing,
    refuse_losses,
)
from mats_ds.core.storage.output_folder import open_output_folder, read_marker

NAMES = ["a.csv", "deep/b.csv"]


def ours(path):
    return path.read_text() == "ours"


def test_new_files_and_own_ones_may_be_written(tmp_path):
    (tmp_path / "a").write_text("ours")
    for name in ("a", "b", "new/deep/c"):
        check_output_file(tmp_path / name, is_ours=ours)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_another_file_is_refused_unless_forced(tmp_path):
    (tmp_path / "a").write_text("theirs")
    for is_ours, word in ((ours, "not written by this command"), (None, "exists")):
        with pytest.raises(ValueError, match=f"{word}.*another name, or --force"):
            check_output_file(tmp_path / "a", is_ours=is_ours)
    check_output_file(tmp_path / "a", is_ours=ours, force=True)


@pytest.mark.parametrize("kind", ["same", "spelling", "hard link", "link", "folder link"])
def test_an_input_is_never_written_by_whatever_name(tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    source = folder / "a"
    source.write_text("ours")
    out = {"same": source, "spelling": folder / ".." / "folder" / "a", "folder link": tmp_path / "there" / "a"}.get(
        kind, tmp_path / "b"
    )
    if kind == "hard link":
        os.link(source, out)
    elif kind == "link":
        out.symlink_to(source)
    elif kind == "folder link":
        (tmp_path / "there").symlink_to(folder)
    with pytest.raises(ValueError, match="is read: give another name"):
        check_output_file(out, inputs=[None, "no such file", source], is_ours=ours, force=True)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_only_a_regular_file_is_replaced(tmp_path, kind):
    out = tmp_path / "out"
    if kind.endswith("link"):
        (tmp_path / "other").write_text("ours") if kind == "link" else None
        out.symlink_to(tmp_path / "other")
    elif kind == "pipe":
        os.mkfifo(out)
    else:
        out.mkdir()
    with pytest.raises(ValueError, match=f"{kind.split()[-1]}.*expected a regular file"):
        check_output_file(out, is_ours=ours, force=True)


def test_where_nothing_can_be_made_is_said_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no folder"):
        check_output_file(tmp_path / "file" / "new" / "a")
    # of root, everything but a read-only disk
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="read-only"):
        check_output_file(tmp_path / "new" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_killed_writes_are_named(tmp_path):
    for name in (".a.mp4.0123456789ab.part", ".b.mp4.0123456789ab.part", ".a.mp4.swp"):
        (tmp_path / name).touch()
    (line,) = describe_leftovers(tmp_path / "a.mp4")
    assert str(tmp_path / ".a.mp4.0123456789ab.part") in line and "remove it" in line
    assert describe_leftovers(tmp_path / "no folder" / "a.mp4") == []


def test_a_full_disk_is_said_with_the_name_that_it_lacks():
    assert describe_fault(OSError(28, "No space left"), "out") == "out cannot be written: No space left"
    assert describe_fault(OSError(13, "Not permitted", "a"), "out") == "[Errno 13] Not permitted: 'a'"
    assert describe_fault(OSError("a cannot be written: no room"), "out") == "a cannot be written: no room"
    assert describe_fault(ValueError("3 is odd"), None) == "3 is odd"


def write(folder, text, names=NAMES):
    begin_writing(folder, names)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    end_writing(folder, names)


@pytest.fixture
def folder(tmp_path):
    open_output_folder(tmp_path, command="test")
    write(tmp_path, "one")
    return tmp_path


def test_ones_own_are_replaced_again_and_again(folder):
    for text in ("two", "two", "three"):
        write(folder, text)
        open_output_folder(folder, command="test")
    assert read_marker(folder) == "test" and (folder / "deep" / "b.csv").read_text() == "three"


def test_what_was_changed_or_is_new_is_refused_by_its_name(folder):
    (folder / "deep" / "b.csv").write_text("mine")
    with pytest.raises(ValueError, match="deep/b.csv was changed after this command wrote it"):
        refuse_losses(folder, NAMES)
    (folder / "c.csv").write_text("mine")
    with pytest.raises(ValueError, match="c.csv was not written by this command"):
        begin_writing(folder, ["a.csv", "c.csv"])
    refuse_losses(folder, ["a.csv"])


def test_a_call_that_was_killed_hinders_no_later_one(folder):
    begin_writing(folder, NAMES)
    (folder / "a.csv").write_text("half of them")
    write(folder, "two")
    (folder / "a.csv").write_text("mine")
    with pytest.raises(ValueError, match="changed"):
        refuse_losses(folder, NAMES)


def test_files_of_an_earlier_call_stay_known(folder):
    write(folder, "two", names=["a.csv"])
    refuse_losses(folder, NAMES)


@pytest.mark.parametrize("marker", [None, {"made_by": "test"}, {"made_by": "test", "sha256": [], "unfinished": True}, []])
def test_without_sums_names_alone_count(folder, marker):
    (folder / ".made_by.json").write_text(json.dumps(marker))
    (folder / "a.csv").write_text("other")
    refuse_losses(folder, NAMES)


@pytest.mark.parametrize("kind", ["name", "link", "hard link"])
def test_an_input_is_refused_by_whatever_name_also_without_sums(tmp_path, kind):
    (tmp_path / "a.csv").write_text("source")
    given = tmp_path / "given.csv"
    if kind == "link":
        given.symlink_to("a.csv")
    elif kind == "hard link":
        given.hardlink_to(tmp_path / "a.csv")
    else:
        given = tmp_path / "." / "a.csv"
    with pytest.raises(ValueError, match="a.csv would be overwritten"):
        refuse_losses(tmp_path, NAMES, inputs=[None, "absent", given])
