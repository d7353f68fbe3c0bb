"""A command writes into a new folder, an empty one or one of its own."""

import subprocess
import sys

import pytest

from mats_ds.core.storage.files import replace_file
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_folder import (
    check_output_folder,
    find_parts,
    hold_output_folder,
    make_new_folder,
    make_subfolder,
    open_output_folder,
    read_marker,
    remove_parts,
)


def test_new_empty_and_own_folders_are_taken(tmp_path):
    for name in ("new/deep", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        open_output_folder(tmp_path / name, command="extract")
        (tmp_path / name / "index.csv").write_text("ours")
        open_output_folder(tmp_path / name, command="extract")
        assert read_marker(tmp_path / name) == "extract"


def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path):
    (tmp_path / "index.csv").write_text("theirs")
    with pytest.raises(ValueError, match=r"holds index\.csv"):
        open_output_folder(tmp_path, command="extract")
    assert [path.name for path in tmp_path.iterdir()] == ["index.csv"]
    # known by what it holds
    check_output_folder(tmp_path, command="extract", is_ours=lambda folder: True)


def test_a_folder_of_another_command_is_refused(tmp_path):
    open_output_folder(tmp_path, command="extract")
    with pytest.raises(ValueError, match="`extract`.*`probe`"):
        open_output_folder(tmp_path, command="probe", is_ours=lambda folder: True)


@pytest.mark.parametrize("text", ["", "[]", '{"made_by": 3}', "x" * 20_000])
def test_a_broken_marker_is_none(tmp_path, text):
    (tmp_path / ".made_by.json").write_text(text)
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="holds a"):
        check_output_folder(tmp_path, command="extract")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="no folder"):
        open_output_folder(tmp_path / "a", command="extract")


def test_what_a_killed_write_left_makes_no_folder_foreign(tmp_path):
    with replace_file(tmp_path / "index.csv") as aside:
        pass
    (tmp_path / "index.csv").rename(aside)
    (tmp_path / "lost+found").mkdir()  # of a new disk
    open_output_folder(tmp_path, command="extract")
    assert find_parts(tmp_path, of=lambda name: name == "index.csv") == [aside]


def test_only_named_leftovers_are_removed(tmp_path):
    ours = [".index.csv.0123456789ab.part", ".index.csv.part", ".features-00000.npz.0123456789ab.part"]
    foreign = [".notes.0123456789ab.part", "index.csv", "index.csv.part", ".index.csv.swp"]
    for name in [*ours, *foreign]:
        (tmp_path / name).write_text(name)
    unfinished = tmp_path / ".features-00001.safetensors.0123456789ab.part"
    unfinished.mkdir()
    (unfinished / ".tmpAbC").touch()
    deep = tmp_path / ".index.csv.ffffffffffff.part"
    (deep / "more").mkdir(parents=True)
    assert remove_parts(tmp_path, of=lambda name: name == "index.csv" or name.startswith("features-")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*foreign, deep.name])


def test_a_folder_that_is_held_is_refused_with_who_holds_it(tmp_path):
    code = (
        "import sys, pathlib; from mats_ds.core.storage.output_folder import hold_output_folder\n"
        "hold_output_folder(pathlib.Path(sys.argv[1]), command='extract'); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"], stdin=-1, stdout=-1, text=True)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=rf"in use by extract .* process {child.pid}"):
        hold_output_folder(tmp_path / "new", command="extract")
    child.kill()
    child.communicate()
    hold_output_folder(tmp_path / "new", command="extract")  # what a crash leaves blocks nobody
    release_folder(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".made_by.json"]


def test_nothing_is_written_into_a_folder_that_cannot_be_ours(tmp_path):
    (tmp_path / "a").write_text("theirs")
    for folder in (tmp_path, tmp_path / "a" / "below", tmp_path / "a"):
        with pytest.raises(ValueError, match="--out "):
            hold_output_folder(folder, command="extract")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_within_ones_own_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "keep-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        make_subfolder(tmp_path, "keep-1")


def test_folders_of_the_same_second_get_numbers(tmp_path):
    names = [make_new_folder(tmp_path / "runs", "evaluate-1").name for _ in range(3)]
    assert names == ["evaluate-1", "evaluate-1-2", "evaluate-1-3"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        make_new_folder(tmp_path / "file", "evaluate-1")


@pytest.mark.parametrize(("written", "is_left"), [((), False), ((".made_by.json",), False), ((".made_by.json", "a.csv"), True)])
def test_a_new_folder_that_nothing_was_written_into_does_not_stay(tmp_path, written, is_left):
    """An error in the first seconds left an empty folder below runs/ each time."""
    code = (
        "import sys; from pathlib import Path; from mats_ds.core.storage.output_folder import make_new_folder\n"
        "folder = make_new_folder(Path(sys.argv[1]), 'run')\n"
        "for name in sys.argv[2:]: (folder / name).touch()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "runs"), *written], check=True)
    assert (tmp_path / "runs" / "run").exists() == is_left
