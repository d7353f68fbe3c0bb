"""Spellings of a class name: which are one class, and which stay two."""

import unicodedata

import pytest

from mats_ds.data.class_names import merge_names, normalise_name
from mats_ds.data.classes import read_class_names
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.importers import import_annotations

CAFE = "visiting a café"


@pytest.mark.parametrize(
    "name, same",
    [
        ("riding a bike", "riding_a_bike"),
        ("riding a bike", " Riding  A Bike "),
        ("riding a bike", '"riding a bike"'),
        ("massaging person's head", "massaging person\u2019s head"),
        (unicodedata.normalize("NFC", CAFE), unicodedata.normalize("NFD", CAFE)),
    ],
)
def test_one_class(name, same):
    assert normalise_name(name) == normalise_name(same)


@pytest.mark.parametrize("name, other", [("kick", "kick_ball"), ("visiting a café", "visiting a cafe"), ("run 1", "run 2")])
def test_two_classes(name, other):
    assert normalise_name(name) != normalise_name(other)


def test_the_usual_spelling_stands_and_the_merger_is_said():
    found = merge_names(["zumba", "b_c", "b c", "b c", "a"])
    assert found.names == ["a", "b c", "zumba"] and found.merged == {"b c": ["b c", "b_c"]}
    assert found.describe() == ["1 class is spelt in more than one way, and each is one class: 'b c' and 'b_c'"]
    assert merge_names(["a", "b"]).describe() == []


def test_kinetics_classes_in_two_spellings(tmp_path):
    source = tmp_path / "k.csv"
    lines = ["riding a bike,AAA,59,69,train", "riding_a_bike,BBB,5,15,train", "abseiling,CCC,5,15,train", "Zumba ,DDD,1,2,train"]
    lines += ["zumba,EEE,1,2,train", "zumba,EEE,1,2,train"]
    source.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines[:-1], "zumba,FFF,1,2,train"]))
    imported = import_annotations(source)
    assert imported.classes == ["abseiling", "riding a bike", "zumba"] and [row.label for row in imported.rows] == [
        1,
        1,
        0,
        2,
        2,
        2,
    ]
    assert any("'riding a bike' and 'riding_a_bike'" in note for note in imported.notes)


def test_class_folders_in_two_spellings(tmp_path, caplog):
    for name in ("riding a bike/a.mp4", "riding_a_bike/b.mp4", "riding_a_bike/c.mp4", "abseiling/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    imported, manifest = import_annotations(tmp_path), read_manifest(tmp_path)
    assert imported.classes == ["abseiling", "riding_a_bike"] and [row.label for row in imported.rows] == [0, 1, 1, 1]
    assert manifest.label_S.tolist() == [0, 1, 1, 1] and "'riding a bike' and 'riding_a_bike'" in caplog.text
    assert read_class_names(manifest, tmp_path) == ("abseiling", "riding_a_bike")
