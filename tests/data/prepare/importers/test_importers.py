"""Importers on small lists of our own: one for each format, layout of the videos, and kind of
mistake."""

import json
import math
import os

import pytest

from mats_ds.data.prepare.importers import FORMATS, import_annotations, recognise
from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.data.prepare.importers.rows import CONFLICT, FRAME_FOLDER, MALFORMED, NOT_FOUND, SEVERAL_LABELS, UNKNOWN_LABEL


@pytest.fixture
def write(tmp_path):
    """`write("a/b.txt", text)`: a file below tmp_path; without text an empty video."""

    def write(name, text=""):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture
def videos(tmp_path, write):
    """`videos("x.mp4", ...)`: a folder that holds these files."""

    def videos(*names):
        for name in names:
            write(f"videos/{name}")
        return tmp_path / "videos"

    return videos


def paths_and_labels(imported):
    return [(row.path, row.label) for row in imported.rows]


def places_and_kinds(imported):
    return [(mistake.where.rpartition(":")[2], mistake.kind) for mistake in imported.mistakes]


@pytest.mark.parametrize(
    "text", ["run/a b.mp4 0\nsit/c,d.avi 1\n", "run/a b.mp4,0\nsit/c,d.avi,1", "run/a b.mp4, 0\r\n\r\nsit/c,d.avi\t1\r\n"]
)
def test_videomae_with_spaces_or_commas(write, text):
    imported = import_annotations(write("train.csv", text))
    assert imported.format == "videomae" and imported.mistakes == []
    assert paths_and_labels(imported) == [("run/a b.mp4", 0), ("sit/c,d.avi", 1)]
    assert imported.classes == ["run", "sit"]
    assert any("it also fits mmaction2" in note and "--format mmaction2" in note for note in imported.notes)


def test_videomaev2_whole_videos_with_and_without_label(write):
    imported = import_annotations(write("train.csv", "a.mp4 0 -1 3\nb.mp4 0 -1 5\n"))
    assert imported.format == "videomaev2" and paths_and_labels(imported) == [("a.mp4", 3), ("b.mp4", 5)]
    imported = import_annotations(write("pretrain.csv", "a.mp4, 0, -1\nb.mp4, 0, -1\n"))
    assert imported.format == "videomaev2" and paths_and_labels(imported) == [("a.mp4", -1), ("b.mp4", -1)]


def test_videomaev2_pretraining_lists_hold_no_labels(write, videos):
    root = videos("a.mp4", "b.mp4", "c.mp4")
    for text in ("a 0 300\nb 0 250\nc.mp4 0 -1\n", "a, 1, 300\nb, 1, 250\nc, 1, 30\n"):
        imported = import_annotations(write("pretrain.csv", text), root=root)
        assert imported.format == "videomaev2" and imported.mistakes == []
        assert paths_and_labels(imported) == [("a.mp4", -1), ("b.mp4", -1), ("c.mp4", -1)]
    imported = import_annotations(write("pretrain.csv", "a.mp4 0 -1 0\nb.mp4 0 -1 0\n"), root=root)
    assert [row.label for row in imported.rows] == [0, 0] and any("all labels are 0" in note for note in imported.notes)


def test_frame_folders_become_the_video_of_their_name_or_a_mistake(write, videos):
    root = videos("run/a.mp4", "b.webm", "part.mkv")
    (root / "frames").mkdir()
    source = write("list.txt", "run/a 30 0\nb 42 1\nframes 12 2\n")
    imported = import_annotations(source, root=root)
    assert imported.format == "mmaction2" and paths_and_labels(imported) == [("run/a.mp4", 0), ("b.webm", 1)]
    assert places_and_kinds(imported) == [("3", FRAME_FOLDER)]
    assert any("ffmpeg" in note for note in imported.notes)
    imported = import_annotations(write("offset.txt", "run/a 1 30 0\npart 61 30 1\nb 0 0 1\n"), root=root)
    assert paths_and_labels(imported) == [("run/a.mp4", 0)]
    assert places_and_kinds(imported) == [("2", FRAME_FOLDER), ("3", MALFORMED)]
    assert "from frame 61 on" in str(imported.mistakes[0])


@pytest.mark.parametrize(
    "text, words",
    [
        ("video.mp4 0 30 2\nvideo.mp4 1 60 3\n", "first frame, last frame and label"),
        ("a.mp4 1 60\nb.mp4 5 90\n", "first and last frame"),
        ("a.mp4,0,120\nb.mp4,1,98\n", "one line says 0 frames"),
        ("run/a 0 120\nrun/b 1 98\n", "one line says 0 frames"),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_read_in_none(write, videos, text, words):
    source = write("list.txt", text)
    with pytest.raises(ValueError, match=words):
        import_annotations(source, root=videos("video.mp4", "a.mp4", "b.mp4", "run/a.mp4", "run/b.mp4"))


@pytest.mark.parametrize("name", ["mmaction2", "videomaev2"])
def test_a_part_of_a_video_is_never_taken_for_the_whole(write, videos, name):
    root = videos("video.mp4", "clip.mp4", "whole.mp4")
    text = "video.mp4 0 30 2\nclip 1 30 0\nclip 31 60 1\nwhole 1 80 3\n"
    imported = import_annotations(write("list.txt", text), root=root, format=name)
    assert paths_and_labels(imported) == [("whole.mp4", 3)]
    assert places_and_kinds(imported) == [("1", FRAME_FOLDER), ("2", FRAME_FOLDER), ("3", FRAME_FOLDER)]


def test_a_source_of_two_formats_is_read_in_none(write):
    write("both/trainlist01.txt", "A/a.avi 1\n")
    source = write("both/wave_test_split1.txt", "a_wave_0.avi 1\n").parent
    with pytest.raises(ValueError, match="ucf101.*hmdb51.*--format"):
        import_annotations(source)


def test_what_is_odd_about_labels_is_said(write):
    notes = "\n".join(import_annotations(write("list.txt", "a.mp4 1\nb.mp4 2\nc.mp4\n")).notes)
    assert "run from 1 to 2 and none is 0" in notes and "1 of 3 rows have no label" in notes


def test_a_row_has_one_label(write):
    source = write("list.txt", "a.mp4 0\nb.mp4 1\nc.mp4 0 1\n")
    imported = import_annotations(source)
    assert paths_and_labels(imported) == [("a.mp4", 0), ("b.mp4", 1)]
    assert places_and_kinds(imported) == [("3", SEVERAL_LABELS)] and "one" in str(imported.mistakes[0])


def test_lists_name_every_mistake_at_once(write, videos):
    root = videos("a.mp4", "b.mp4", "c.mp4")
    text = "a.mp4 0\nb.mp4 2\nlost.mp4 1\nwhat is this\nc.mp4 -2\na.mp4 1\nc.mp4 1\nc.mp4 1\n"
    imported = import_annotations(write("list.txt", text), root=root, labels=write("classes.txt", "run\nsit\n"))
    expected = [("2", UNKNOWN_LABEL), ("3", NOT_FOUND), ("4", MALFORMED), ("5", UNKNOWN_LABEL), ("6", CONFLICT)]
    assert places_and_kinds(imported) == expected
    assert paths_and_labels(imported) == [("a.mp4", 0), ("c.mp4", 1), ("c.mp4", 1)]
    assert str(imported.mistakes[0]).endswith("list.txt:2: label 2 of b.mp4: the class list ends at 1 (sit)")
    assert any("1 row of earlier videos" in note for note in imported.notes)


def test_videos_are_found_without_foreign_folders_and_with_another_extension(write, videos):
    root = videos("run/a.mp4", "run/b.mp4", "sit/c.mp4", "sit/c.webm")
    root = videos("high_jump/d_e.mp4", "high_jump/f_g.mp4")
    text = "/their/disk/run/a.mp4 0\nrun/b.avi 0\nsit/c.avi 1\nhigh jump/d_e.mp4 2\nhigh jump/f g.mp4 2\n"
    imported = import_annotations(write("list.txt", text), root=root)
    assert paths_and_labels(imported) == [("run/a.mp4", 0), ("run/b.mp4", 0), ("sit/c.mp4", 1), ("high_jump/d_e.mp4", 2)]
    assert places_and_kinds(imported) == [("5", NOT_FOUND)]
    notes = "\n".join(imported.notes)
    assert "2 files were found in other folders than the list names: /their/disk/run/a.mp4 -> run/a.mp4" in notes
    assert "2 files were found with another extension: run/b.avi -> run/b.mp4" in notes
    assert "found more than once (the first by name was taken): sit/c.avi -> sit/c.mp4 and sit/c.webm" in notes


def test_without_a_root_files_beside_the_list_are_found(write):
    write("a.mp4")
    imported = import_annotations(write("list.txt", "a.mp4 0\nlost.mp4 1\n"))
    assert imported.root is not None and places_and_kinds(imported) == [("2", NOT_FOUND)]
    assert import_annotations(write("elsewhere/list.txt", "a.mp4 0\n")).root is None


@pytest.fixture
def ucf101(write):
    write("ucf/classInd.txt", "1 Archery\r\n2 Biking\r\n\r\n")
    write("ucf/testlist01.txt", "Biking/v_Biking_g01_c01.avi\r\nArchery/v_Archery_g01_c01.avi\r\n")
    return write(
        "ucf/trainlist01.txt",
        "Archery/v_Archery_g08_c01.avi 1\r\nBiking/v_Biking_g08_c01.avi 2\r\nBiking/v_Biking_g08_c02.avi 1\r\n"
        "Diving/v_Diving_g08_c01.avi 3\r\nnonsense\r\n",
    )


def test_ucf101_train_and_test(ucf101, videos):
    root = videos("v_Archery_g08_c01.avi", "Biking/v_Biking_g08_c01.mp4")
    imported = import_annotations(ucf101, root=root)
    assert paths_and_labels(imported) == [("v_Archery_g08_c01.avi", 0), ("Biking/v_Biking_g08_c01.mp4", 1)]
    assert places_and_kinds(imported) == [("3", UNKNOWN_LABEL), ("4", UNKNOWN_LABEL), ("5", MALFORMED)]
    assert "Biking is number 2 in classInd.txt" in str(imported.mistakes[0])
    assert any("it also fits videomae and mmaction2, but ucf101 is the more particular" in note for note in imported.notes)
    imported = import_annotations(ucf101.parent, subset="test")
    assert [row.label for row in imported.rows] == [1, 0] and imported.classes == ["Archery", "Biking"]


def test_ucf101_asks_for_what_is_missing(ucf101):
    with pytest.raises(ValueError, match="testlist01.txt, trainlist01.txt: choose one with --split 1 --subset"):
        import_annotations(ucf101.parent)
    (ucf101.parent / "classInd.txt").unlink()
    with pytest.raises(ValueError, match="no classInd.txt beside .* give it as --labels"):
        import_annotations(ucf101)


@pytest.mark.parametrize("arguments", [{"split": 2}, {"subset": "test"}, {"split": "test"}])
def test_ucf101_list_is_not_taken_for_another(ucf101, arguments):
    with pytest.raises(ValueError, match="leave --split and --subset out"):
        import_annotations(ucf101, **arguments)
    assert import_annotations(ucf101, split=1, subset="train").rows


@pytest.fixture
def hmdb51(write):
    write("hmdb/wave_test_split1.txt", "a_wave_0.avi 1 \nb!#(x)_wave_1.avi 2 \nc_wave_2.avi 0 \nd_wave_3.avi 7\n")
    write("hmdb/wave_test_split2.txt", "b!#(x)_wave_1.avi 1 \n")
    return write("hmdb/kick_test_split1.txt", "a_kick_0.avi 2 \nb_kick_1.avi 1 \n").parent


def test_hmdb51_train_and_test_of_a_split(hmdb51, videos):
    imported = import_annotations(hmdb51, split=1, subset="test")
    assert imported.format == "hmdb51" and imported.classes == ["kick", "wave"]
    assert paths_and_labels(imported) == [("kick/a_kick_0.avi", 0), ("wave/b!#(x)_wave_1.avi", 1)]
    assert places_and_kinds(imported) == [("4", MALFORMED)]
    imported = import_annotations(hmdb51, split="1", subset="train", root=videos("a_wave_0.mp4"))
    assert paths_and_labels(imported) == [("a_wave_0.mp4", 1)]
    assert ("2", NOT_FOUND) in places_and_kinds(imported)


def test_hmdb51_one_file_numbers_its_class_among_its_neighbours(hmdb51, write):
    imported = import_annotations(hmdb51 / "wave_test_split2.txt", split="train")
    assert paths_and_labels(imported) == [("wave/b!#(x)_wave_1.avi", 1)]
    labels = write("classes.txt", "jump\nkick\n")
    imported = import_annotations(hmdb51, split=1, subset="train", labels=labels)
    assert paths_and_labels(imported) == [("kick/b_kick_1.avi", 1)] and places_and_kinds(imported) == [("1", UNKNOWN_LABEL)]


def test_hmdb51_file_is_not_taken_for_another(hmdb51, write):
    with pytest.raises(ValueError, match="is no split file of split 1"):
        import_annotations(hmdb51 / "wave_test_split2.txt", split=1, subset="train")
    with pytest.raises(ValueError, match="expected a name such as wave_test_split1.txt"):
        import_annotations(write("hmdb/list.txt", "a.avi 1\n"), format="hmdb51", subset="train")


@pytest.mark.parametrize(("arguments", "words"), [({"split": 1}, "--subset train or"), ({"subset": "train"}, r"--split 1\|2")])
def test_hmdb51_asks_for_split_and_subset(hmdb51, arguments, words):
    with pytest.raises(ValueError, match=words):
        import_annotations(hmdb51, **arguments)


KINETICS = (
    "label,youtube_id,time_start,time_end,split\n"
    "arm wrestling,aaa-AAA_aaa,7,17,train\n"
    "zumba,bbbbbbbbbbb,120,130,train\n"
    "zumba,ccccccccccc,0,10,validate\n"
    '"massaging person\'s head",ddddddddddd,3,13,train\n'
    "zumba,eeeeeeeeeee,20,10,train\n"
    "zumba,fffffffffff\n"
)


def test_kinetics_finds_files_as_downloaders_name_them(write, videos):
    root = videos(
        "train/arm_wrestling/aaa-AAA_aaa_000007_000017.mp4",
        "bbbbbbbbbbb.mkv",
        "val/zumba/ccccccccccc_000000_000010.webm",
        "ccccccccccc_000000_000010.mp4",
    )
    imported = import_annotations(write("kinetics.csv", KINETICS), root=root)
    assert imported.format == "kinetics" and imported.classes == ["arm wrestling", "massaging person's head", "zumba"]
    assert [(row.path, row.label, row.start, row.end) for row in imported.rows[1:2]] == [("bbbbbbbbbbb.mkv", 2, 120.0, 130.0)]
    assert paths_and_labels(imported)[0] == ("train/arm_wrestling/aaa-AAA_aaa_000007_000017.mp4", 0)
    assert paths_and_labels(imported)[2] == ("val/zumba/ccccccccccc_000000_000010.webm", 2)
    assert math.isnan(imported.rows[0].start) and math.isnan(imported.rows[2].end)
    assert sorted(places_and_kinds(imported)) == [("5", NOT_FOUND), ("6", MALFORMED), ("7", MALFORMED)]
    assert any("the subsets train, val are taken together" in note for note in imported.notes)


def test_kinetics_takes_one_subset_and_a_class_list(write):
    source = write("kinetics.csv", KINETICS)
    labels = write("classes.txt", "0 zumba\n1 arm_wrestling\n")
    imported = import_annotations(source, split="val", labels=labels)
    assert paths_and_labels(imported) == [("zumba/ccccccccccc_000000_000010.mp4", 0)]
    imported = import_annotations(source, split="train", labels=labels)
    assert ("5", UNKNOWN_LABEL) in places_and_kinds(imported)
    with pytest.raises(ValueError, match="no row has split 'test': its split column holds train, val"):
        import_annotations(source, split="test")


def test_kinetics_says_where_it_found_several(write, videos):
    root = videos("a/bbbbbbbbbbb_000120_000130.mp4", "b/bbbbbbbbbbb_000120_000130.mp4")
    text = "label,youtube_id,time_start,time_end,split\nzumba,bbbbbbbbbbb,120,130,train\n"
    imported = import_annotations(write("kinetics.csv", text), root=root)
    assert [row.path[0] for row in imported.rows] == ["a"] and any("found more than once" in note for note in imported.notes)


SSV2 = [
    {"id": "7", "label": "pushing a cup", "template": "Pushing [something]", "placeholders": ["a cup"]},
    {"id": "9", "template": "[Something] falling"},
    {"id": "11", "template": "Eating [something]"},
]
SSV2_LABELS = json.dumps({"Something falling": "0", "Pushing something": "1"})


def test_ssv2_numbers_templates(write, videos):
    write("labels.json", SSV2_LABELS)
    source = write("validation.json", json.dumps(SSV2, indent=1))
    imported = import_annotations(source, root=videos("7.webm", "20bn/9.mp4"))
    assert imported.format == "ssv2" and paths_and_labels(imported) == [("7.webm", 1), ("20bn/9.mp4", 0)]
    assert places_and_kinds(imported) == [("14", UNKNOWN_LABEL)] and "Eating" in str(imported.mistakes[0])
    source.write_text(json.dumps(SSV2[:2])[:-9])
    with pytest.raises(ValueError, match="validation.json:1: broken JSON"):
        import_annotations(source)


def test_ssv2_test_set_with_and_without_answers(write):
    source = write("test/test.json", '[\n{"id":"7"},\n{"id":"9"}]')
    assert paths_and_labels(import_annotations(source)) == [("7.webm", -1), ("9.webm", -1)]
    write("labels.json", SSV2_LABELS)
    answers = write("test-answers.csv", "9;Something falling\n7;Pushing something\n")
    assert [row.label for row in import_annotations(source, labels=answers).rows] == [1, 0]
    assert recognise(answers) == "ssv2"


def test_ssv2_asks_for_its_class_list(write):
    with pytest.raises(ValueError, match="no labels.json beside"):
        import_annotations(write("validation.json", json.dumps(SSV2)))


def ego4d_clip(name, **changes):
    times = {"clip_start_sec": 1.5, "clip_end_sec": 9.5, "parent_start_sec": 101.5, "parent_end_sec": 109.5}
    return {"unique_id": f"u{name}", "clip_uid": f"c{name}", "video_uid": f"v{name}", **times, "state_change": True, **changes}


@pytest.mark.parametrize("wrap", [lambda clips: clips, lambda clips: {"version": "2", "clips": clips}], ids=["list", "clips"])
def test_ego4d_takes_cut_parts_clips_and_videos(write, videos, wrap):
    clips = [
        ego4d_clip(1),
        ego4d_clip(2, state_change=False),
        ego4d_clip(3, clip_uid=None),
        ego4d_clip(4),
        ego4d_clip(5, state_change=None),
        ego4d_clip(6, clip_start_sec="soon"),
    ]
    source = write("oscc.json", json.dumps(wrap(clips), indent=1))
    root = videos("u1.mp4", "clips/c2.mp4", "v3.mp4", "c6.mp4", "v6.mp4")
    imported = import_annotations(source, root=root)
    assert imported.format == "ego4d" and imported.classes == ["no state change", "state change"]
    assert paths_and_labels(imported) == [("u1.mp4", 1), ("clips/c2.mp4", 0), ("v3.mp4", 1)]
    assert math.isnan(imported.rows[0].start)
    assert [(row.start, row.end) for row in imported.rows[1:]] == [(1.5, 9.5), (101.5, 109.5)]
    assert [mistake.kind for mistake in imported.mistakes] == [NOT_FOUND, MALFORMED, MALFORMED]
    lines = source.read_text().split("\n")
    assert all(lines[int(m.where.rpartition(":")[2]) - 1].strip() == "{" for m in imported.mistakes)


def test_ego4d_unannotated_clips_have_no_label(write):
    clip = ego4d_clip(1)
    del clip["state_change"]
    imported = import_annotations(write("test.json", json.dumps({"clips": [clip]})))
    assert paths_and_labels(imported) == [("c1.mp4", -1)] and any("unannotated" in note for note in imported.notes)


def test_class_folders(videos, write):
    root = videos("sit/a.mp4", "run/b.webm", "run/deeper/c.mp4", "run/notes.txt")
    imported = import_annotations(root)
    assert imported.format == "class-folders" and imported.classes == ["run", "sit"]
    assert paths_and_labels(imported) == [("run/b.webm", 0), ("run/deeper/c.mp4", 0), ("sit/a.mp4", 1)]
    videos("top.mp4", "Fly_High/d.mp4")
    imported = import_annotations(root, format="class-folders", labels=write("classes.txt", "sit\nfly high\n"))
    assert paths_and_labels(imported) == [("Fly_High/d.mp4", 1), ("sit/a.mp4", 0)]
    assert sorted(mistake.kind for mistake in imported.mistakes) == [UNKNOWN_LABEL, UNKNOWN_LABEL, MALFORMED]


def test_class_folders_in_subset_folders_share_their_numbers(videos):
    root = videos("train/sit/a.mp4", "train/run/b.mp4", "val/sit/c.mp4", "val/wave/d.mp4")
    with pytest.raises(ValueError, match=r"holds the subsets train, val: choose one with --subset train\|val"):
        import_annotations(root)
    imported = import_annotations(root, split="val")
    assert imported.classes == ["run", "sit", "wave"]
    assert paths_and_labels(imported) == [("val/sit/c.mp4", 1), ("val/wave/d.mp4", 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run\nsit\n", ["run", "sit"]),
        ("1 run\r\n2 sit down\r\n", ["run", "sit down"]),
        ("1,sit\n0,run\n", ["run", "sit"]),
        ("id,name\n0,run\n1,sit\n", ["run", "sit"]),
        ('{"sit": "1", "run": "0"}', ["run", "sit"]),
        ('["run", "sit"]', ["run", "sit"]),
    ],
)
def test_class_lists_in_every_form(write, text, words):
    assert read_class_list(write("classes", text)).names == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 run\n2 sit\n", "from 0 to 2 for 2 classes"),
        ("run\nRun\n", "'Run' twice"),
        ('{"run": null}', "expected {"),
        ("[1", "broken JSON"),
    ],
)
def test_a_class_list_with_mistakes(write, text, words):
    with pytest.raises(ValueError, match=words):
        read_class_list(write("classes", text))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.csv", "path,label\na.mp4,1\n", "is a manifest already"),
        ("classes.txt", "1 run\n2 sit\n", "no format fits; its first line is '1 run'"),
        ("other.json", '{"a": 1}', "JSON of no known shape"),
        ("empty.txt", "\n", "is empty"),
        ("nul.txt", "a\0b", "binary"),
        ("videos/a.mp4", "", "no format fits|is empty"),
    ],
)
def test_what_is_no_annotation_list_is_said(write, name, content, words):
    with pytest.raises(ValueError, match=words):
        import_annotations(write(name, content))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "videomea"}, "did you mean videomae"),
        ({"root": "nowhere"}, "nowhere is not a folder"),
        ({"labels": "nowhere.txt"}, "no class list at nowhere.txt"),
        ({"format": "class-folders"}, "is a file: class-folders takes the folder"),
        ({"split": "1"}, "videomae has no numbered splits"),
        ({"subset": "train"}, "videomae has no subsets"),
        ({"split": "dev"}, "got the split 'dev'"),
        ({"split": "val", "subset": "train"}, "give one of them"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(write, arguments, words):
    with pytest.raises(ValueError, match=words):
        import_annotations(write("list.txt", "a.mp4 0\n"), **arguments)


def test_a_folder_is_no_list(videos):
    with pytest.raises(ValueError, match="is a folder: ssv2 takes an annotation file"):
        import_annotations(videos("a/b.mp4"), format="ssv2")


def test_names_that_a_manifest_cannot_hold_are_mistakes(videos):
    root = videos("a/b.mp4", "c/d.mp4", "c/ e.mp4")
    (root / "a" / os.fsdecode(b"caf\xe9.mp4")).touch()
    (root / " f").mkdir()
    (root / " f" / "g.mp4").touch()
    imported = import_annotations(root)
    assert [row.path for row in imported.rows] == ["a/b.mp4", "c/ e.mp4", "c/d.mp4"]
    assert [mistake.kind for mistake in imported.mistakes] == [MALFORMED, MALFORMED]
    "\n".join(map(str, imported.mistakes)).encode()


def test_a_forced_format_is_obeyed(ucf101):
    imported = import_annotations(ucf101, format="videomae")
    assert [row.label for row in imported.rows] == [1, 2, 1, 3] and imported.notes[0] == "read as videomae, as asked"
    assert places_and_kinds(imported) == [("5", MALFORMED)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_survives_a_list_of_another(write, name):
    source = write("list.txt", "a.mp4 0\nb.mp4 1\n")
    try:
        assert import_annotations(source, format=name, subset="train" if name == "hmdb51" else None).format == name
    except ValueError as error:
        assert str(source.parent) in str(error)
