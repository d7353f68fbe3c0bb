"""A command writes into a new folder, an empty one or one of its own."""

import pytest

from mats_ds.core.output_folder import check_output_folder, open_output_folder, read_marker


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
    check_output_folder(tmp_path, command="extract", is_ours=lambda folder: True)  # known by what it holds


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
