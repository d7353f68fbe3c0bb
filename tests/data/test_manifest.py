"""A manifest names videos; all its mistakes are told at once."""

from pathlib import Path

import numpy as np
import pytest

from mats_ds.data.manifest import MAX_MISTAKES_SHOWN, read_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files that exist (their content does not matter here)."""
    for name in ("one.mp4", "two.webm", "with space, and comma.avi"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_table_gives_labels_and_seconds(folder):
    source = write(folder / "set.csv", "path,label,start,end\none.mp4,3,0.5,2\ntwo.webm,,,\n")
    manifest = read_manifest(source)
    assert manifest.paths == [str(folder / "one.mp4"), str(folder / "two.webm")]
    assert manifest.label_S.tolist() == [3, -1] and manifest.label_S.dtype == np.int64
    assert manifest.first_seconds_S[0] == 0.5 and manifest.last_seconds_S[0] == 2.0
    assert np.isnan(manifest.first_seconds_S[1]) and np.isnan(manifest.last_seconds_S[1])
    assert manifest.name == f"{folder.name}/set.csv" and len(manifest) == 2


def test_columns_come_in_any_order_and_others_are_ignored(folder):
    manifest = read_manifest(write(folder / "set.csv", "note,label,path\nhello,1,one.mp4\n"))
    assert manifest.paths == [str(folder / "one.mp4")] and manifest.label_S.tolist() == [1]


def test_byte_order_mark_crlf_blank_lines_and_quotes_are_tolerated(folder):
    text = b'\xef\xbb\xbfPath,Label\r\none.mp4,0\r\n\r\n"with space, and comma.avi",1\r\n'
    manifest = read_manifest(write(folder / "set.csv", text))
    assert [Path(path).name for path in manifest.paths] == ["one.mp4", "with space, and comma.avi"]
    assert manifest.label_S.tolist() == [0, 1]


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t"])
def test_a_list_has_the_label_last(folder, separator):
    lines = [f"one.mp4{separator}4", f"with space, and comma.avi{separator}5", "two.webm"]
    manifest = read_manifest(write(folder / "train.csv", "\n".join(lines)))
    assert [Path(path).name for path in manifest.paths] == ["one.mp4", "with space, and comma.avi", "two.webm"]
    assert manifest.label_S.tolist() == [4, 5, -1]


def test_relative_paths_start_at_root_and_absolute_ones_stay(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    source = write(elsewhere / "list.txt", f"one.mp4 0\n{folder / 'two.webm'} 1\n")
    assert read_manifest(source, root=folder).paths == [str(folder / "one.mp4"), str(folder / "two.webm")]


def test_all_mistakes_are_told_at_once_with_line_numbers(folder):
    text = "path,label,start,end\none.mp4,dog,,\n,1,,\none.mp4,1,abc,\none.mp4,1,5,2\none.mp4,-7,,\none.mp4\none.mp4,1,0,0\n"
    with pytest.raises(ValueError) as caught:
        read_manifest(write(folder / "set.csv", text))
    told = str(caught.value)
    assert "7 mistakes" in told
    for line, word in ((2, "'dog'"), (3, "empty"), (4, "'abc'"), (5, "not after"), (6, "-7"), (7, "1 field,"), (8, "not after")):
        assert any(f"line {line}:" in row and word in row for row in told.splitlines()), (line, told)


def test_a_misspelt_column_names_its_neighbour(folder):
    with pytest.raises(ValueError, match="did you mean 'label'"):
        read_manifest(write(folder / "set.csv", "path,lable\none.mp4,1\n"))


def test_a_long_list_of_mistakes_is_cut_and_counted(folder):
    with pytest.raises(ValueError, match="and 30 more"):
        read_manifest(write(folder / "list.txt", "nonsense\n" * (MAX_MISTAKES_SHOWN + 30)))


def test_a_file_that_is_missing_is_no_mistake_but_a_set_without_any_is(folder):
    assert len(read_manifest(write(folder / "list.txt", "one.mp4 0\ngone.mp4 1\n"))) == 2
    with pytest.raises(ValueError, match=r"of 2 files none exists.*away.mp4.*--root FOLDER"):
        read_manifest(write(folder / "list.txt", "away.mp4 0\ngone.mp4 1\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "lists no video"), (b"path,label\n", "lists no video"), (b"caf\xe9.mp4 0", "UTF-8"), (b"a\0b.mp4 1", "binary")],
)
def test_files_that_are_no_manifest(folder, content, message):
    with pytest.raises(ValueError, match=message):
        read_manifest(write(folder / "set.csv", content))


def test_a_source_or_root_that_does_not_exist(folder):
    with pytest.raises(ValueError, match="no manifest at"):
        read_manifest(folder / "nothing.csv")
    with pytest.raises(ValueError, match="--root .* is no folder"):
        read_manifest(write(folder / "list.txt", "one.mp4 0\n"), root=folder / "nothing")


def test_a_folder_of_class_folders_gives_labels(tmp_path):
    for name in ("walk/b.avi", "walk/a.MP4", "run/c.mkv", "run/notes.txt", "run/.hidden.mp4", "index.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    manifest = read_manifest(tmp_path)
    assert [str(Path(path).relative_to(tmp_path)) for path in manifest.paths] == ["run/c.mkv", "walk/a.MP4", "walk/b.avi"]
    assert manifest.label_S.tolist() == [0, 1, 1]
    assert manifest.name == tmp_path.name


@pytest.mark.parametrize("names", [("a.mp4", "run/b.mp4"), ("run/a.mp4", "run/b.mp4"), ("run/x/a.mp4", "walk/b.mp4")])
def test_any_other_folder_has_no_labels(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert read_manifest(tmp_path).label_S.tolist() == [-1, -1]


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(read_manifest(tmp_path)) == 1


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no video below"):
        read_manifest(tmp_path)
