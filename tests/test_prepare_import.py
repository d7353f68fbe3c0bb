"""`prepare.py import`: what it writes, what it says, and its exit status."""

import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.prepare import main

ROOT = Path(__file__).resolve().parents[1]
VIDEOS = ROOT.parent / "shared" / "videos"


@pytest.fixture
def videos(tmp_path):
    """6 files in 2 class folders, and a list of them in VideoMAE's format."""
    lines = []
    for label, name in enumerate(("run", "sit")):
        for number in range(3):
            path = tmp_path / "videos" / name / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            lines.append(f"{name}/{number}.mp4 {label}\n")
    (tmp_path / "list.csv").write_text("".join(lines))
    return tmp_path / "videos"


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """`run(source, ...)` in tmp_path -> exit status and all that was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["import", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def test_writes_a_manifest_that_the_trainer_reads(run, videos, tmp_path):
    status, said = run("list.csv", "--root", videos, "--out", "train.csv")
    assert status == 0
    assert (tmp_path / "train.csv").read_text().splitlines()[:2] == ["path,label", "run/0.mp4,0"]
    assert (tmp_path / "train.csv.classes.txt").read_text() == "run\nsit\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "train.csv", "train.csv.classes.txt", "videos"]
    manifest = read_manifest(tmp_path / "train.csv", root=videos)
    assert len(manifest) == 6 and manifest.label_S.tolist() == [0, 0, 0, 1, 1, 1]
    for words in (
        "recognised videomae: every line is `path label`",
        "rows: 6, 6 of them labelled with 2 of 2 named classes",
        f"files: 6 found below {videos}, 0 rows without their file",
        f"train with: data.manifest=train.csv data.root={videos}",
    ):
        assert words in said


def test_rows_that_do_not_fit_are_left_out_and_all_listed(run, videos, tmp_path):
    with open(tmp_path / "list.csv", "a") as file:
        file.write("run/0.mp4 1\nnonsense\n" + "".join(f"lost/{number}.mp4 0\n" for number in range(60)))
    status, said = run("list.csv", "--root", videos, "--out", "train.csv")
    assert status == 1 and len(read_manifest(tmp_path / "train.csv", root=videos)) == 6
    assert "62 mistakes: 60 file not found, 1 same video, different label, 1 malformed" in said
    assert "  - list.csv:7: run/0.mp4 has label 1, but label 0 in list.csv:1\n  - list.csv:8: expected `path label`" in said
    assert "most lines are `path label`" in said
    assert "and 12 more" in said and said.count("  - list.csv:") == 50
    assert "(6 rows; 62 left out)" in said
    mistakes = (tmp_path / "train.csv.mistakes.txt").read_text().splitlines()
    assert len(mistakes) == 62 and {line.split(": ")[0] for line in mistakes} == {f"list.csv:{n}" for n in range(7, 69)}


def test_times_and_unknown_labels_come_through(run, tmp_path):
    (tmp_path / "oscc.json").write_text(
        '[{"clip_uid": "a", "clip_start_sec": 1.25, "clip_end_sec": 9.2543619333, "state_change": false}]'
    )
    assert run("oscc.json", "--out", "train.csv")[0] == 0
    assert (tmp_path / "train.csv").read_text() == "path,label,start,end\na.mp4,0,1.25,9.254362\n"
    (tmp_path / "list.txt").write_text("a,b.mp4 0 -1\nc.mp4 0 -1\n")
    status, said = run("list.txt", "--out", "pretrain.csv")
    assert status == 0 and "files: not looked for" in said and "data.root=VIDEO_DIR" in said
    assert (tmp_path / "pretrain.csv").read_text() == 'path\n"a,b.mp4"\nc.mp4\n'
    assert not (tmp_path / "pretrain.csv.classes.txt").exists()


def test_nothing_is_overwritten_without_force(run, videos, tmp_path):
    (tmp_path / "train.csv").write_text("mine")
    (tmp_path / "train.csv.mistakes.txt").write_text("old")
    status, said = run("list.csv", "--root", videos, "--out", "train.csv")
    assert status == 2 and "train.csv and train.csv.mistakes.txt would be overwritten" in said and "--force" in said
    assert (tmp_path / "train.csv").read_text() == "mine"
    assert run("list.csv", "--root", videos, "--out", "train.csv", "--force")[0] == 0
    assert not (tmp_path / "train.csv.mistakes.txt").exists()
    status, said = run("list.csv", "--root", videos, "--out", "list.csv", "--force")
    assert status == 2 and "would overwrite list.csv, which is being imported" in said


def test_force_loses_nothing(run, videos, tmp_path):
    for name in ("train.csv", "train.csv.mistakes.txt", "train.csv.classes.txt"):
        (tmp_path / name).write_text(f"my {name}")
    status, said = run("list.csv", "--root", videos, "--out", "train.csv", "--force")
    assert status == 0 and "train.csv.old" in said
    assert (tmp_path / "train.csv.old").read_text() == "my train.csv"
    assert (tmp_path / "train.csv.mistakes.txt.old").read_text() == "my train.csv.mistakes.txt"
    assert (tmp_path / "train.csv.classes.txt.old").read_text() == "my train.csv.classes.txt"
    assert not (tmp_path / "train.csv.mistakes.txt").exists()
    names = sorted(path.name for path in tmp_path.iterdir())
    # the same once more
    assert run("list.csv", "--root", videos, "--out", "train.csv", "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("out", ["link.csv", "hard.csv", "way/list.csv", "videos/run/0.mp4", "way/videos/run/0.mp4", "names.txt"])
def test_what_is_read_is_never_written(run, videos, tmp_path, out):
    (tmp_path / "names.txt").write_text("run\nsit\n")
    (tmp_path / "link.csv").symlink_to("list.csv")
    (tmp_path / "hard.csv").hardlink_to("list.csv")
    (tmp_path / "way").symlink_to(".")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status, said = run("list.csv", "--root", videos, "--labels", "names.txt", "--out", out, "--force")
    assert status == 2 and "error: " in said and Path(out).name in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_class_list_beside_the_source_is_never_written(run, tmp_path):
    (tmp_path / "v" / "Run").mkdir(parents=True)
    (tmp_path / "v" / "Run" / "v_Run_g01_c01.avi").touch()
    (tmp_path / "trainlist01.txt").write_text("Run/v_Run_g01_c01.avi 1\n")
    (tmp_path / "classInd.txt").write_text("1 Run\n")
    status, said = run("trainlist01.txt", "--root", "v", "--out", "classInd.txt", "--force")
    assert status == 2 and "classInd.txt" in said and (tmp_path / "classInd.txt").read_text() == "1 Run\n"


def test_of_two_imports_that_end_together_one_writes(run, videos, tmp_path, monkeypatch):
    from mats_ds.data.prepare.importers import rows

    claim = rows.claim_name

    def claim_late(path):
        if path.name == "train.csv.classes.txt":  # the name of the manifest is taken by then
            path.write_text("of a second import")
        claim(path)

    monkeypatch.setattr(rows, "claim_name", claim_late)
    status, said = run("list.csv", "--root", videos, "--out", "train.csv")
    assert status == 2 and "train.csv.classes.txt" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "train.csv.classes.txt", "videos"]
    assert (tmp_path / "train.csv.classes.txt").read_text() == "of a second import"


def test_an_output_that_appears_meanwhile_is_not_overwritten(run, videos, tmp_path, monkeypatch):
    from mats_ds import prepare

    describe = prepare.describe_imported

    def appear(imported):
        (tmp_path / "train.csv").write_text("of a second import")
        return describe(imported)

    monkeypatch.setattr(prepare, "describe_imported", appear)
    assert run("list.csv", "--root", videos, "--out", "train.csv")[0] == 2
    assert (tmp_path / "train.csv").read_text() == "of a second import"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "train.csv", "videos"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.csv"], "nothing at nowhere.csv"),
        (["list.csv", "--root", "nowhere"], "nowhere is not a folder"),
        (["list.csv", "--root", "empty"], "not one row of list.csv can be used; nothing was written"),
        (["list.csv", "--labels", "nowhere"], "no class list at nowhere"),
        (["list.csv", "--split", "1"], "videomae has no numbered splits"),
        (["list.csv", "--format", "ssv2"], "list.csv"),
    ],
)
def test_unusable_input_writes_nothing(run, videos, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    status, said = run(*arguments, "--out", "train.csv")
    assert status == 2 and words in said and "Traceback" not in said
    assert not list(tmp_path.glob("train.csv*"))


def test_out_needs_a_folder_and_a_file_name(run, videos):
    assert "no folder new" in run("list.csv", "--out", "new/train.csv")[1]
    assert "is a folder" in run("list.csv", "--out", "videos")[1]


def test_runs_as_a_file_from_anywhere_without_torch(videos, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / "mats_ds" / "prepare.py"), "import", str(videos), "--out", "m.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "recognised class-folders: its videos lie in 2 class folders" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mats_ds.data.prepare.importers" in loaded and not loaded & {"torch", "av", "deepspeed", "nvidia.dali"}


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="the data sets' own lists are not on this machine")
def test_a_part_of_ucf101_with_its_official_list(run, tmp_path):
    lists, root = VIDEOS / "annotations" / "ucf101", VIDEOS / "ucf101_5class"
    status, said = run(lists, "--split", "1", "--subset", "train", "--root", root, "--out", "train.csv")
    assert status == 1 and "recognised ucf101" in said
    manifest = read_manifest(tmp_path / "train.csv", root=root)
    names = (tmp_path / "train.csv.classes.txt").read_text().splitlines()
    assert all(Path(path).exists() for path in manifest.paths)
    expected = [Path(path).parent.name for path in manifest.paths]
    assert [names[label] for label in manifest.label_S] == expected and len(set(expected)) == 5
    assert len(manifest) + len((tmp_path / "train.csv.mistakes.txt").read_text().splitlines()) == 9537
