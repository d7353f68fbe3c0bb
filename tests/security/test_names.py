"""Names and texts of others, through the programs as they are started: what they print obeys nobody
but the program.

Every folder, file and class bears a name that would clear a screen, set a title, begin a line
`error:`, and fail as a formula.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import evaluate
from mats_ds.core.text import clean_line
from tests.trained_models import CLASSES, save_autoencoder, save_classifier, write_videos

ROOT = Path(__file__).resolve().parents[2]
NASTY = "a\nerror: lost\x1b[2J\x1b]0;t\x07\x9b31m\u202e$\\frac{$ `touch made` \u2029é日本"
BACK = f"b\rerror: lost{NASTY}"  # not in a manifest: there a carriage return ends a line
PROGRESS = {"\n", "\r"}
VIEWS = ["--clips", "1", "--crops", "1", "--workers", "0", "--device", "cpu"]


def run(program, *arguments, cwd, **variables):
    """(status, stdout, stderr) of a program in a process of its own; what it printed is checked."""
    command = [sys.executable, str(ROOT / program), *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True)
    out, err = done.stdout.decode(), done.stderr.decode()
    for text in (out, err):
        check_clean(text)
    return done.returncode, out, err


def check_clean(text):
    """No control character but new lines and a progress bar's, nothing that turns the direction,
    and no forged line."""
    wrong = {character for character in text if not character.isprintable() and character not in PROGRESS}
    assert not wrong, (wrong, text)
    assert not any(line.lstrip().startswith("error: lost") for line in text.splitlines()), text
    assert len(text) < 100_000


def check_one_error(status, err, *words):
    assert status == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in err and len(err) < 20_000, err
    assert all(word in err for word in words), err


@pytest.fixture
def nasty(tmp_path):
    """A folder of a nasty name with videos and classes of nasty names, and its manifest."""
    folder = tmp_path / NASTY
    folder.mkdir()
    videos = []
    for number, (video, label) in enumerate(write_videos(tmp_path / "set", num_videos=4)):
        videos.append((video.rename(folder / f"{number}{NASTY}.mp4"), label))
    with (folder / f"{NASTY}.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *videos])
    return folder


def save_nasty_classifier(path):
    names = tuple(f"{name}{NASTY}" for name in CLASSES[:-1]) + ("x" * 1_000,)
    return save_classifier(path, class_names=names)


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestPrepare:
    @pytest.fixture
    def classes(self, tmp_path):
        """Class folders and files of nasty names; no video is one."""
        folder = tmp_path / BACK
        for name in ("one", "two"):
            (folder / f"{name}{BACK}").mkdir(parents=True)
            (folder / f"{name}{BACK}" / f"{BACK}.mp4").write_bytes(b"no video")
        return folder

    def test_check_names_the_bad_ones_and_keeps_their_names_in_its_tables(self, classes, tmp_path):
        status, out, err = run(
            "mats_ds/prepare.py", "check", classes, "--out", classes / f"{BACK}.csv", "--workers", "1", cwd=tmp_path
        )
        assert status == 0, err
        assert "2 of 2 rows" in out and "é日本" in out
        with (classes / "quarantine.csv").open(newline="") as stream:
            assert [BACK in row["path"] for row in csv.DictReader(stream)] == [True, True]

    def test_import_suggests_a_command_that_is_safe_to_paste(self, tmp_path):
        (tmp_path / "clip.mp4").touch()
        (tmp_path / "list.txt").write_text(f"clip.mp4 0\nclip\x1b[2J\u202e.mp4 1\n{'z' * 10**6}.mp4 2\n")
        out_file = tmp_path / "$(touch made)\x1b[2J; touch made #.csv"
        status, out, err = run("mats_ds/prepare.py", "import", "list.txt", "--root", ".", "--out", out_file, cwd=tmp_path)
        assert status == 1, err
        (line,) = [line for line in out.splitlines() if line.startswith("train with: ")]
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line.removeprefix('train with: ')}"], cwd=tmp_path, capture_output=True
        )
        assert words.stdout.decode().split("\0")[0] == f"data.manifest={out_file}"
        assert not (tmp_path / "made").exists()

    def test_an_argument_too_many_is_quoted_in_one_line(self, tmp_path):
        status, _, err = run("mats_ds/prepare.py", "check", "a", "--out", "b.csv", BACK, "\u2066--x\x07", cwd=tmp_path)
        assert status == 2 and err.splitlines()[-1].startswith("prepare.py check: error:") and r"\u2066--x\x07" in err

    @pytest.mark.parametrize("task", ["import", "check", "transcode"])
    def test_an_error_is_one_line(self, tmp_path, task):
        status, _, err = run("mats_ds/prepare.py", task, tmp_path / BACK, "--out", tmp_path / "out.csv", cwd=tmp_path)
        check_one_error(status, err, r"\rerror: lost")


class TestReport:
    def test_an_error_is_one_line(self, tmp_path):
        (tmp_path / BACK).mkdir()
        status, _, err = run("profiling/report.py", tmp_path / BACK, cwd=tmp_path)
        check_one_error(status, err, r"\x1b[2J")

    def test_a_budget_with_a_key_of_a_million_letters_is_one_line(self, tmp_path):
        (tmp_path / "b.json").write_text(json.dumps({"k\x1b[2J" + "k" * 10**6: 1}))
        status, _, err = run("profiling/report.py", tmp_path, "--budget", tmp_path / "b.json", cwd=tmp_path)
        check_one_error(status, err)


@pytest.mark.slow
class TestModels:
    """The programs that import torch."""

    def test_evaluate(self, nasty, tmp_path):
        model = save_nasty_classifier(nasty / f"{NASTY}.safetensors")
        arguments = ["--model", model, "--manifest", nasty / f"{NASTY}.csv", "--keep_ratio", "0.5", "1.0", *VIEWS]
        status, out, err = run("mats_ds/evaluate.py", *arguments, "--out", nasty / "out", cwd=tmp_path)
        assert status == 0 and "top-1" in out and "warning" not in err, err
        assert (nasty / "out" / "keep-1" / "confusion.png").stat().st_size and (nasty / "out" / "sweep.png").stat().st_size
        with (nasty / "out" / "keep-1" / "predictions.csv").open(newline="") as stream:
            assert all(f"{NASTY}.mp4" in row["path"] and NASTY in row["name"] for row in csv.DictReader(stream))
        status, out, _ = run("mats_ds/evaluate.py", "--model", model, "--video", next(nasty.glob("0*.mp4")), *VIEWS, cwd=tmp_path)
        assert status == 0 and r"\nerror: lost" in out
        status, _, err = run("mats_ds/evaluate.py", "--model", model, "--video", nasty / "none", *VIEWS, cwd=tmp_path)
        check_one_error(status, err)

    def test_extract(self, nasty, tmp_path):
        model = save_nasty_classifier(nasty / f"{NASTY}.safetensors")
        arguments = ["--model", model, "--manifest", nasty / f"{NASTY}.csv", "--out", nasty / "out", *VIEWS]
        status, out, err = run("mats_ds/extract.py", *arguments, cwd=tmp_path)
        assert status == 0 and "4 views of 4 videos" in out, err

    def test_convert(self, nasty, tmp_path):
        model = save_nasty_classifier(nasty / f"{NASTY}.safetensors")
        status, out, err = run("mats_ds/convert.py", model, nasty / "copy.safetensors", cwd=tmp_path)
        assert status == 0 and r"\nerror: lost" in out, err
        status, _, err = run("mats_ds/convert.py", model, nasty / "copy.safetensors", cwd=tmp_path)
        check_one_error(status, err)

    def test_probe(self, nasty, tmp_path):
        model, rows = save_autoencoder(nasty / f"{NASTY}.safetensors"), (nasty / f"{NASTY}.csv").read_text()
        videos = sorted(nasty.glob("*.mp4"))
        for name, chosen in (("train", videos[:2]), ("val", videos[2:])):
            with (nasty / f"{name}{NASTY}.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows([("path", "label"), *((video, number) for number, video in enumerate(chosen))])
        lists = ["--train", nasty / f"train{NASTY}.csv", "--val", nasty / f"val{NASTY}.csv"]
        status, out, err = run("mats_ds/probe.py", "--model", model, *lists, "--out", nasty / "out", *VIEWS, cwd=tmp_path)
        assert status == 0 and "written:" in out and rows, err

    def test_visualize(self, nasty, tmp_path, suffix=".png"):
        model = save_nasty_classifier(nasty / f"{NASTY}.safetensors")
        video, out_file = next(nasty.glob("0*.mp4")), nasty / f"{NASTY}{suffix}"
        status, out, err = run(
            "mats_ds/visualize.py", video, "--weights", model, "--out", out_file, "--device", "cpu", cwd=tmp_path
        )
        assert status == 0 and out_file.stat().st_size and "wrote" in out, err
        status, _, err = run("mats_ds/visualize.py", nasty / "none.mp4", "--out", out_file, cwd=tmp_path)
        check_one_error(status, err)

    def test_plan(self, tmp_path):
        recipe = tmp_path / f"{NASTY}.yaml"
        recipe.write_text("model: {name: [\x07")
        status, _, err = run("profiling/plan.py", "--recipe", recipe, cwd=tmp_path)
        check_one_error(status, err, r"\nerror: lost")

    @pytest.mark.parametrize("program", ["pretrain", "finetune"])
    def test_a_recipe_of_many_mistakes(self, tmp_path, program):
        recipe = tmp_path / f"{NASTY}.yaml"
        keys = "".join(f'"{NASTY.encode("unicode_escape").decode()}{number}": {number}\n' for number in range(900))
        recipe.write_text(keys + f"finetune: {{}}\nname: {'n' * 10**4}\n" if program == "finetune" else keys + "model: {}\n")
        status, _, err = run(f"mats_ds/{program}.py", "--recipe", recipe, "--ds_config", "x.json", cwd=tmp_path)
        check_one_error(status, err, "mistakes in the recipe", "more lines")


class TestResultsFirst:
    """A picture that cannot be drawn: the numbers are on the console and on the disk, and the
    status is 0."""

    @pytest.fixture
    def tested(self, nasty):
        model = save_nasty_classifier(nasty / "model.safetensors")
        return ["--model", model, "--manifest", str(nasty / f"{NASTY}.csv"), "--keep_ratio", "0.5", "1.0", *VIEWS]

    @pytest.mark.parametrize("fault", [MemoryError(), ImportError("no module named matplotlib"), RuntimeError("fonts")], ids=repr)
    def test_whatever_the_fault_is(self, tested, nasty, monkeypatch, capsys, caplog, fault):
        def fail(*arguments, **options):
            raise fault

        monkeypatch.setattr("mats_ds.evaluation.plots.new_figure", fail)
        (nasty / "out").mkdir()
        (nasty / "out" / "sweep.png").write_bytes(b"of an earlier test")
        (nasty / "out" / ".made_by.json").write_text('{"made_by": "evaluate"}')
        assert evaluate.main([*tested, "--out", str(nasty / "out")]) == 0
        assert "top-1" in capsys.readouterr().out
        assert len(json.loads((nasty / "out" / "results.json").read_text())["results"]) == 2
        assert (nasty / "out" / "sweep.csv").is_file() and not (nasty / "out" / "sweep.png").exists()
        assert sum("no picture" in record.getMessage() for record in caplog.records) == 3

    def test_a_picture_is_begun_when_all_numbers_are_written(self, tested, nasty, monkeypatch, capsys):
        seen = []

        def look(*arguments, **options):
            seen.append(({path.name for path in (nasty / "out").rglob("*.*")}, capsys.readouterr().out))
            raise MemoryError

        monkeypatch.setattr("mats_ds.evaluation.results.draw_confusion", look)
        evaluate.main([*tested, "--out", str(nasty / "out")])
        names, said = seen[0]
        assert {"results.json", "per_class.csv", "predictions.csv", "sweep.csv", "unreadable.csv"} <= names
        assert "top-1" in said and clean_line(NASTY) in said
