"""Importers on the lists as data sets ship them: every one is recognised, and rows agree with a
plain reading of the list."""

import csv
import json
import math
from pathlib import Path

import pytest

from mats_ds.data.prepare.importers import import_annotations, recognise
from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.data.prepare.importers.rows import CONFLICT, FRAME_FOLDER, NOT_FOUND, SEVERAL_LABELS

VIDEOS = Path(__file__).resolve().parents[4].parent / "shared" / "videos"
LISTS = VIDEOS / "annotations"

pytestmark = pytest.mark.skipif(not LISTS.is_dir(), reason="the data sets' own lists are not on this machine")

FORMATS_AND_COUNTS = [  # source, arguments, format, rows, classes
    ("ucf101/trainlist01.txt", {}, "ucf101", 9537, 101),
    ("ucf101/trainlist02.txt", {}, "ucf101", 9586, 101),
    ("ucf101/trainlist03.txt", {}, "ucf101", 9624, 101),
    ("ucf101/testlist01.txt", {}, "ucf101", 3783, 101),
    ("ucf101/testlist02.txt", {}, "ucf101", 3734, 101),
    ("ucf101", {"split": 3, "subset": "test"}, "ucf101", 3696, 101),
    ("ucf101_crlf/trainlist01.txt", {}, "ucf101", 9537, 101),
    ("ucf101_crlf", {"split": "1", "subset": "test"}, "ucf101", 3783, 101),
    ("hmdb51", {"split": 1, "subset": "train"}, "hmdb51", 3570, 51),
    ("hmdb51", {"split": 2, "subset": "test"}, "hmdb51", 1530, 51),
    ("hmdb51/wave_test_split3.txt", {"split": "train"}, "hmdb51", 70, 51),
    ("kinetics/kinetics-400_val.csv", {"split": "val"}, "kinetics", 19906, 400),
    ("kinetics/kinetics-600_val.csv", {}, "kinetics", 30000, 600),
    ("kinetics/kinetics-400_test.csv", {}, "kinetics", 38685, 0),
    ("ssv2/validation.json", {}, "ssv2", 24777, 174),
    ("ssv2/train_sample_from_validation_500.json", {}, "ssv2", 500, 174),
    ("ssv2/test.json", {}, "ssv2", 27157, 174),
    ("ssv2/test-answers.csv", {}, "ssv2", 27157, 174),
    ("ego4d/fho_oscc-pnr_train_sample.json", {}, "ego4d", 1, 2),
    ("ego4d/fho_oscc-pnr_val_sample.json", {}, "ego4d", 1, 2),
    ("ego4d/fho_oscc-pnr_test_unannotated_sample.json", {}, "ego4d", 1, 2),
    ("video_lists/paddle_k400_train_small_videos_sample.list", {}, "videomae", 807, 2),
    ("video_lists/paddle_k400_val_small_videos.list", {}, "videomae", 128, 2),
    ("video_lists/paddle_k400_val_small_frames.list", {}, "mmaction2", 200, 2),
    ("video_lists/mmaction2_video_test_list.txt", {}, "videomae", 2, 0),
    ("../ucf101_5class", {}, "class-folders", 180, 5),
    ("../ucf101_5class/train.csv", {}, "videomae", 130, 5),
    ("../ucf101_5class/val.csv", {}, "videomae", 50, 5),
]


@pytest.mark.parametrize(("source", "arguments", "name", "num_rows", "num_classes"), FORMATS_AND_COUNTS)
def test_recognises_and_reads_every_row(source, arguments, name, num_rows, num_classes):
    imported = import_annotations(LISTS / source, **arguments)
    assert imported.format == recognise(LISTS / source) == name
    assert imported.mistakes == []
    assert (len(imported.rows), len(imported.classes)) == (num_rows, num_classes)


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("mmaction2_rawframe_test_list.txt", [FRAME_FOLDER, FRAME_FOLDER]),
        ("mmaction2_rawframe_test_list_with_offset.txt", [FRAME_FOLDER, FRAME_FOLDER]),
        ("mmaction2_rawframe_test_list_multi_label.txt", [FRAME_FOLDER, SEVERAL_LABELS]),
        ("mmaction2_video_test_list_multi_label.txt", [SEVERAL_LABELS, SEVERAL_LABELS]),
    ],
)
def test_mmaction2_lists_that_a_manifest_cannot_hold(source, kinds):
    imported = import_annotations(LISTS / "video_lists" / source)
    assert imported.format == "mmaction2" and imported.rows == []
    assert [mistake.kind for mistake in imported.mistakes] == kinds
    assert imported.mistakes[1].where.endswith(f"{source}:2")


def test_ucf101_counts_labels_from_0_with_both_line_ends():
    expected = [line.split() for line in (LISTS / "ucf101" / "trainlist01.txt").read_text().splitlines()]
    imported = import_annotations(LISTS / "ucf101" / "trainlist01.txt")
    crlf = import_annotations(LISTS / "ucf101_crlf" / "trainlist01.txt")
    assert [(row.path, row.label) for row in imported.rows] == [(path, int(label) - 1) for path, label in expected]
    assert [(row.path, row.label) for row in crlf.rows] == [(row.path, row.label) for row in imported.rows]
    assert crlf.classes == imported.classes and imported.classes[0] == "ApplyEyeMakeup" and imported.classes[-1] == "YoYo"


def test_ucf101_test_list_takes_the_class_from_the_folder():
    imported = import_annotations(LISTS / "ucf101", split="1", subset="test")
    assert all(imported.classes[row.label] == row.path.split("/")[0] for row in imported.rows)
    assert {row.label for row in imported.rows} == set(range(101))


def test_hmdb51_keeps_the_flagged_videos_and_sets_the_order_of_a_given_class_list():
    own_order = import_annotations(LISTS / "hmdb51", split=1, subset="test")
    theirs = import_annotations(LISTS / "hmdb51", split=1, subset="test", labels=LISTS / "hmdb51" / "class_list.txt")
    lines = (LISTS / "hmdb51" / "kick_test_split1.txt").read_text().splitlines()
    flagged = {f"kick/{line.split()[0]}" for line in lines if line.split()[1] == "2"}
    assert {row.path for row in own_order.rows if row.path.startswith("kick/")} == flagged and len(flagged) == 30
    assert own_order.classes.index("kick") < own_order.classes.index("kick_ball")
    assert theirs.classes.index("kick") > theirs.classes.index("kick_ball")
    assert all(theirs.classes[row.label] == row.path.split("/")[0] for row in theirs.rows)
    mmaction2 = read_class_list(LISTS / "labelmaps" / "mmaction2_hmdb51_label_map.txt").names
    assert own_order.classes == mmaction2


@pytest.mark.parametrize("labels", [None, "mmaction2_kinetics_label_map_k400.txt", "paddle_Kinetics-400_label_list.txt"])
def test_kinetics_names_files_as_the_downloaders_do(labels):
    source = LISTS / "kinetics" / "kinetics-400_val.csv"
    imported = import_annotations(source, labels=labels and LISTS / "labelmaps" / labels)
    with source.open(newline="") as file:
        entry = list(csv.DictReader(file))[9876]
    row = imported.rows[9876]
    times = f"{int(entry['time_start']):06d}_{int(entry['time_end']):06d}"
    assert row.path == f"{entry['label']}/{entry['youtube_id']}_{times}.mp4"
    assert imported.classes[row.label].replace("_", " ") == entry["label"]
    assert row.where.endswith("kinetics-400_val.csv:9878") and math.isnan(row.start)


def test_ssv2_numbers_templates_without_their_brackets():
    numbers = json.loads((LISTS / "ssv2" / "labels.json").read_text())
    entries = json.loads((LISTS / "ssv2" / "validation.json").read_text())
    expected = [(f"{e['id']}.webm", int(numbers[e["template"].replace("[", "").replace("]", "")])) for e in entries]
    imported = import_annotations(LISTS / "ssv2" / "validation.json")
    assert [(row.path, row.label) for row in imported.rows] == expected
    assert imported.rows[0].where.endswith("validation.json:2")


def test_ssv2_test_set_takes_its_answers():
    lines = (LISTS / "ssv2" / "test-answers.csv").read_text().splitlines()
    answers = dict(line.split(";", 1) for line in lines)
    imported = import_annotations(LISTS / "ssv2" / "test.json", labels=LISTS / "ssv2" / "test-answers.csv")
    assert all(imported.classes[row.label] == answers[row.path.removesuffix(".webm")] for row in imported.rows)


def test_ego4d_takes_the_times_that_belong_to_the_file():
    [clip] = import_annotations(LISTS / "ego4d" / "fho_oscc-pnr_val_sample.json").rows
    [video] = import_annotations(LISTS / "ego4d" / "fho_oscc-pnr_train_sample.json").rows
    [unknown] = import_annotations(LISTS / "ego4d" / "fho_oscc-pnr_test_unannotated_sample.json").rows
    assert clip.path == "857978a5-cab3-4449-928b-6da304c5f7dc.mp4" and clip.label == 1
    assert (clip.start, clip.end) == pytest.approx((5.2333333, 12.4))
    assert video.path == "4e3fc1e9-424f-4921-9068-d468c135f347.mp4" and video.end == pytest.approx(9.1543619)
    assert (unknown.label, unknown.end) == (-1, 238.0)


def test_ego4d_part_that_both_changes_and_does_not_is_a_mistake():
    imported = import_annotations(LISTS / "ego4d" / "fho_oscc-pnr_train_with_madeup_negative_sample.json")
    assert [row.label for row in imported.rows] == [1]
    assert [(m.kind, m.where.rpartition(":")[2]) for m in imported.mistakes] == [(CONFLICT, "20")]


def test_videos_of_a_part_of_ucf101_are_found_and_the_rest_is_listed():
    imported = import_annotations(LISTS / "ucf101" / "trainlist01.txt", root=VIDEOS / "ucf101_5class")
    videos = {f"{path.parent.name}/{path.name}" for path in (VIDEOS / "ucf101_5class").glob("*/*.avi")}
    listed = {row.path for row in import_annotations(LISTS / "ucf101" / "trainlist01.txt").rows}
    assert {row.path for row in imported.rows} == videos & listed
    assert {mistake.kind for mistake in imported.mistakes} == {NOT_FOUND}
    assert len(imported.rows) + len(imported.mistakes) == 9537


@pytest.mark.parametrize("path", sorted((LISTS / "labelmaps").glob("*")) or [None], ids=lambda path: path and path.name)
def test_class_lists_are_read_and_are_no_list_of_videos(path):
    assert len(read_class_list(path).names) == sum(1 for line in path.read_text().splitlines() if line.strip())
    with pytest.raises(ValueError, match="class list is given as --labels"):
        recognise(path)


def test_folder_of_lists_names_them():
    with pytest.raises(ValueError, match=r"holds lists: give one of .*validation.json \(ssv2\)"):
        recognise(LISTS / "ssv2")
