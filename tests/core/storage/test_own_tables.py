"""Tables in a command's folder: replaced while they are as the command wrote them, whatever was killed in between."""

import json

import pytest

from mats_ds.core.storage.output_file import begin_writing, end_writing, refuse_losses
from mats_ds.core.storage.output_folder import open_output_folder, read_marker

NAMES = ["a.csv", "deep/b.csv"]


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
