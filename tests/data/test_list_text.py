"""Lines of lists: what is a path, what are its numbers, and what is neither. The same for a
manifest and for an import."""

from pathlib import Path

import pytest

from mats_ds.data.list_text import column_names, decode_text, split_line
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.importers import import_annotations

ROWS = [("a b.mp4", 0), ("c,d.avi", 3)]


@pytest.mark.parametrize(
    "line, path, numbers",
    [
        ("a b.mp4 0", "a b.mp4", (0,)),
        ("c,d.avi,-1", "c,d.avi", (-1,)),
        ("take 2.mp4\t7", "take 2.mp4", (7,)),
        ("a.mp4 0 -1 3", "a.mp4", (0, -1, 3)),
        ('"x, ""y"".mp4","5"', 'x, "y".mp4', (5,)),
        ("x.mp4 (1).mp4 5", "x.mp4 (1).mp4", (5,)),
        ("riding a bike/v_1 300 2", "riding a bike/v_1", (300, 2)),
        ("clip.mp4", "clip.mp4", ()),
        ("12", "12", ()),
    ],
)
def test_a_path_and_its_numbers(line, path, numbers):
    found = split_line(line)
    assert (found.path, found.numbers, found.problem) == (path, numbers, None)


@pytest.mark.parametrize(
    "line, words",
    [
        ("clapping/clip_12.mp4,clapping,3,0", "'clapping' stands behind"),  # Moments in Time
        ("-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1", "several columns"),  # AVA
        ("-5KQ66BBWC4,0902,,,,,80,1", "column is empty"),  # an excluded time of AVA
        ("nVbIUDjzWY4,Cars & Other Vehicles,Motorcycles,27,52907", "several columns"),  # HowTo100M
        ("riding a bike,-AAAAAAAAA0,59,69", "several columns"),  # Kinetics without its first line
        ("P01_01\topen door\t8\t202", "several columns"),
        ("rgb/a.mp4,flow/a.mp4,0", "'flow/a.mp4' stands behind the file 'rgb/a.mp4'"),
        ("a.mp4 0.5 3.5 2", "'0.5 3.5' stands behind"),
        ("a 0.5 3.5 2", "fraction"),
        ("a.mp4 1.0", "'1.0' stands behind"),
        ("0,a.mp4", "a number comes before the path"),
    ],
)
def test_another_column_is_no_part_of_a_path(tmp_path, line, words):
    assert words in split_line(line).problem
    source = tmp_path / "list.csv"
    source.write_text(f"{line}\n{line}\n")
    for read in (import_annotations, read_manifest):
        with pytest.raises(ValueError, match=words):
            read(source)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [" ", "\t", ","])
@pytest.mark.parametrize("header", [False, True], ids=["list", "table"])
def test_line_ends_and_encodings_are_read_alike(tmp_path, end, encoding, mark, header):
    lines = [f'"{path}"{mark}{label}' for path, label in ROWS]
    if header:
        mark = mark if mark in (",", "\t") else ";"
        lines = [f"path{mark}label", *(f'"{path}"{mark}{label}' for path, label in ROWS)]
    source = tmp_path / "list.txt"
    source.write_bytes(end.join([*lines, ""]).encode(encoding))
    (tmp_path / "a b.mp4").touch()
    (tmp_path / "c,d.avi").touch()
    manifest = read_manifest(source)
    assert manifest.paths == [f"{tmp_path}/{path}" for path, _ in ROWS]
    assert manifest.label_S.tolist() == [0, 3]
    if header:
        with pytest.raises(ValueError, match="is a manifest already"):
            import_annotations(source)
    else:
        assert [(row.path, row.label) for row in import_annotations(source).rows] == ROWS


HARD = Path(__file__).resolve().parents[2].parent / "shared" / "hard_inputs"


@pytest.mark.skipif(not HARD.is_dir(), reason="the hard inputs are not on this machine")
def test_the_hard_inputs():
    for name, words in (("moments_training.csv", "'clapping' stands behind"), ("start_end_label.txt", "last frame and label")):
        with pytest.raises(ValueError, match=words):
            import_annotations(HARD / name)
    assert [(row.path, row.label) for row in import_annotations(HARD / "cr_only_list.txt").rows] == [("a.mp4", 0), ("b.mp4", 1)]
    with pytest.raises(ValueError, match="of 2 files none exists"):
        read_manifest(HARD / "cr_only_list.txt")
    imported = import_annotations(HARD / "kinetics_two_spellings.csv")
    assert imported.classes == ["riding a bike"] and [row.label for row in imported.rows] == [0, 0]


def test_columns_of_a_table():
    assert column_names('"Path" ,label') == column_names("PATH\tlabel") == column_names("path; label") == ["path", "label"]
    assert column_names("x" * 200_000) == []


def test_text_that_is_none():
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"caf\xe9.mp4 0")
    with pytest.raises(ValueError, match="binary"):
        decode_text("a.mp4 0".encode("utf-16-le"))  # without its mark
