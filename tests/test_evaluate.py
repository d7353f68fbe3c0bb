"""evaluate.py as its users start it: exact over ranks, transformers' own scores, and one clear
error for a wrong argument."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mats_ds import evaluate
from mats_ds.data.manifest import read_manifest
from mats_ds.distributed.ranks import join_ranks
from mats_ds.evaluation import classification
from mats_ds.evaluation.options import read_request
from mats_ds.evaluation.speed import forward_macs
from mats_ds.models.model_spec import describe_model
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD, UINT8_MAX
from mats_ds.models.weights.origin import Origin
from tests.trained_models import CLASSES, GRID, save_autoencoder, save_classifier, write_manifest, write_videos

ROOT = Path(__file__).resolve().parents[1]
VIEWS = ["--clips", "2", "--crops", "2", "--workers", "1", "--device", "cpu"]
NUM_VIDEOS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def videos(folder):
    return write_videos(folder / "set", num_videos=NUM_VIDEOS)


@pytest.fixture(scope="module")
def manifest(folder, videos):
    """Seven readable videos, and in their middle one that is none."""
    broken = folder / "broken.mp4"
    broken.write_text("no video")
    return write_manifest(folder / "test.csv", [*videos[:3], (broken, 1), *videos[3:]])


@pytest.fixture(scope="module")
def model(folder):
    return save_classifier(folder / "classifier.safetensors")


def run(*arguments):
    """(status, stdout, stderr) of one rank."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = evaluate.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def whole(folder, manifest, model):
    """(folder, stdout) of a test with two shares of tokens."""
    out = folder / "whole"
    shares = ["--keep_ratio", "0.25", "1.0"]
    status, told, err = run("--model", model, "--manifest", manifest, "--out", out, *shares, *VIEWS, "--batch", "4")
    assert status == 0, err
    return out, told


class TestAWholeTest:
    def test_counts_every_readable_video_once_and_lists_the_others(self, whole, videos):
        out, told = whole
        results = json.loads((out / "results.json").read_text())
        assert results["videos"] == {"listed": 8, "scored": 7, "scored_on_some_views": 0, "unreadable": 1}
        assert [row["sample"] for row in table(out / "keep-1" / "predictions.csv")] == ["0", "1", "2", "4", "5", "6", "7"]
        assert [row["sample"] for row in table(out / "unreadable.csv")] == ["3"]
        assert "7 of 8 videos" in told and "broken.mp4" in told

    def test_the_files_agree_with_each_other(self, whole):
        out, _ = whole
        for result, name in zip(json.loads((out / "results.json").read_text())["results"], ("keep-0.25", "keep-1"), strict=True):
            rows = table(out / name / "predictions.csv")
            hits = sum(row["label"] == row["predicted"] for row in rows)
            assert (result["top1"]["hits"], result["top1"]["total"]) == (hits, 7)
            assert result["top1"]["low"] < result["top1"]["value"] < result["top1"]["high"] or hits in (0, 7)
            assert result["top5"]["hits"] == sum(int(row["place"]) <= 5 for row in rows)
            assert all((row["place"] == "1") == (row["label"] == row["predicted"]) for row in rows)
            classes = table(out / name / "per_class.csv")
            assert [row["name"] for row in classes] == list(CLASSES)
            assert sum(int(row["videos"]) for row in classes) == 7 and sum(int(row["correct"]) for row in classes) == hits
            assert (out / name / "confusion.png").read_bytes().startswith(b"\x89PNG")

    def test_a_sweep_has_costs_that_fall_with_the_tokens_and_a_measured_speed(self, whole):
        out, _ = whole
        few, every = table(out / "sweep.csv")
        assert (few["keep_ratio"], every["keep_ratio"]) == ("0.25", "1.0")
        assert float(few["gmacs_per_view"]) < float(every["gmacs_per_view"])
        assert float(few["gflops_per_view"]) == 2 * float(few["gmacs_per_view"])
        assert float(few["views_per_second"]) > 0
        assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")

    def test_one_share_alone_is_what_the_sweep_says_of_it(self, folder, manifest, model, whole):
        out = folder / "alone"
        shares = ["--keep_ratio", "0.25"]
        assert run("--model", model, "--manifest", manifest, "--out", out, *shares, *VIEWS, "--batch", "4")[0] == 0
        assert (out / "predictions.csv").read_text() == (whole[0] / "keep-0.25" / "predictions.csv").read_text()
        assert not (out / "sweep.png").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("batch", [4, 6])  # 6: the views of a video are on two ranks
    def test_two_ranks_are_equal_to_the_digit(self, folder, manifest, model, ranks, batch):
        found = []
        arguments = ["--model", model, "--manifest", manifest, "--keep_ratio", "0.25", "1.0", *VIEWS, "--batch", batch]
        for world_size in (1, 2):
            out = folder / f"ranks-{world_size}-{batch}"
            answers = ranks(run, world_size, *arguments, "--out", out)
            assert [status for status, *_ in answers] == [0] * world_size, answers
            results = json.loads((out / "results.json").read_text())
            assert results.pop("run")["ranks"] == world_size
            for result in results["results"]:
                result.pop("views_per_second")
            files = [f"keep-{share}/{name}.csv" for share in ("0.25", "1") for name in ("predictions", "per_class")]
            found.append((results, [(out / name).read_text() for name in [*files, "unreadable.csv"]]))
        assert found[0] == found[1]


class TestOneVideo:
    def test_prints_the_five_likeliest_classes(self, model, videos):
        status, told, _ = run("--model", model, "--video", videos[2][0], *VIEWS)
        first, *lines = told.splitlines()
        assert status == 0 and first.endswith("4 views") and len(lines) == 5
        scores, names = zip(*(line.split() for line in lines), strict=True)
        assert list(scores) == sorted(scores, reverse=True) and set(names) < set(CLASSES)

    def test_agrees_with_the_whole_test(self, whole, model, videos):
        row = table(whole[0] / "keep-0.25" / "predictions.csv")[2]
        _, told, _ = run("--model", model, "--video", videos[2][0], *VIEWS, "--keep_ratio", "0.25", "--batch", "4")
        assert told.splitlines()[1].split() == [f"{float(row['score']):.4f}", row["predicted_name"]]

    def test_names_from_a_list(self, folder, model, videos):
        (folder / "names.txt").write_text("".join(f"{number} class {number}\n" for number in range(1, 7)))
        _, told, _ = run("--model", model, "--video", videos[0][0], *VIEWS, "--class_names", folder / "names.txt")
        assert "  class " in told

    def test_a_file_that_is_no_video_is_one_error(self, folder, model, manifest):
        status, told, err = run("--model", model, "--video", folder / "broken.mp4", *VIEWS)
        assert (status, told) == (2, "") and "broken.mp4 is a text file, no video" in err


def test_imported_weights_give_transformers_own_logits(folder, manifest):
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        num_labels=6,
        initializer_range=0.2,
        use_mean_pooling=True,
    )
    torch.manual_seed(7)
    theirs = transformers.VideoMAEForVideoClassification(config).eval()
    theirs.save_pretrained(folder / "theirs")
    test = open_test(str(folder / "theirs"), *VIEWS, "--batch", "4")
    listed = read_manifest(manifest)
    scored = classification.score_manifest(test, listed, test.views.read(listed), join_ranks("cpu"))

    num_compared = 0
    for sample, batch in enumerate(test.views.read(listed)):  # a batch is a video
        if sample == 3:
            assert scored.videos[3].mean is None
            continue
        frames = batch.clips.frames_BTHWC
        pixels = (frames / UINT8_MAX - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        with torch.no_grad():
            logits = theirs(pixels.movedim(-1, 2)).logits
            torch.testing.assert_close(test.models[0](frames), logits, rtol=0, atol=1e-5)
        wanted = logits.double().softmax(dim=-1).mean(dim=0).numpy()
        np.testing.assert_allclose(scored.videos[sample].mean[0], wanted, rtol=0, atol=1e-6)
        num_compared += 1
    assert num_compared == NUM_VIDEOS


def open_test(path, *arguments, **options):
    request = read_request(evaluate.parse_arguments(["--model", str(path), "--video", "x", *arguments]))
    return classification.open_classifier(request, device=torch.device("cpu"), **options)


def test_a_figure_comes_with_its_weights_views_frames_and_what_chose_them(folder, videos, tmp_path):
    """The weights were chosen on four of the seven videos, and trained on two of them."""
    test = write_manifest(tmp_path / "test.csv", videos)
    chosen, trained = write_manifest(tmp_path / "val.csv", videos[3:]), write_manifest(tmp_path / "train.csv", videos[:2])
    clip, views = {"stride": 3, "sampling": "dense"}, {"clips": 2, "crops": 1}
    origin = Origin(step=9, averaged=True, chosen_on=chosen, trained_on=trained, clip=clip, views=views)
    model = save_classifier(tmp_path / "moved.safetensors", origin=origin)
    status, told, err = run("--model", model, "--manifest", test, "--out", tmp_path / "out", "--workers", "1", "--device", "cpu")
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["views"] == {"clips": 2, "crops": 1, "stride": 3, "stride_seconds": None, "sampling": "dense"}
    assert {key: results["origin"][key] for key in ("step", "averaged", "chosen_on")} == {
        "step": 9, "averaged": True, "chosen_on": chosen,
    }  # fmt: skip
    assert results["also"] == {"were trained on": 2, "chose these weights": 4}
    for words in (model, "step 9", "average", f"on {chosen}", "2 x 1 views", "2 of them were trained on", "4 of them chose"):
        assert words in told, told
    assert f"{told}{err}".count(f"weights: {model}: ") == 1


def test_a_file_of_somebody_elses_cannot_have_any_path_read(tmp_path, videos, model):
    """A folder is walked to its end, and a device has none."""
    (tmp_path / "list.csv").write_text("path\n")
    cases = {"/": False, "/dev/zero": False, str(tmp_path / "none"): False, str(tmp_path / "list.csv"): True}
    for named, is_read in cases.items():
        path = save_classifier(tmp_path / "other.safetensors", origin=Origin(trained_on=named, chosen_on=named))
        assert bool(classification.training_manifests(open_test(path))) == is_read


def test_folders_that_number_the_classes_otherwise_are_told(folder, videos, model, caplog):
    # 0 and 1 here, 1 and 2 in the model
    for name, (path, _) in zip(("down", "fall"), videos, strict=False):
        (folder / "by_class" / name).mkdir(parents=True)
        (folder / "by_class" / name / path.name).symlink_to(path)
    arguments = ["--model", model, "--manifest", folder / "by_class", "--out", folder / "named", *VIEWS]
    with caplog.at_level("WARNING", "mats_ds"):
        assert run(*arguments)[0] == 0
    assert "class 0 is 'down' in by_class and 'along' in the training set" in caplog.text


def test_a_published_size_has_the_closed_forms_cost(folder):
    from mats_ds import VideoClassifier, step_flops
    from tests.trained_models import save_model

    path = save_model(VideoClassifier.from_name("tiny", grid=GRID, num_classes=3), folder / "tiny.safetensors")
    for model in open_test(path, keep_ratios=(0.5, 1.0)).models:
        wanted = step_flops("tiny", GRID, model.keep_ratio, task="finetune", num_classes=3).forward_macs
        size_name = describe_model(model).size_name
        assert forward_macs(model, size_name=size_name, device=torch.device("cpu")) == (wanted, "step_flops")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "nowhere", "--manifest", "{manifest}"], "there is no file or folder nowhere"),
            (["--model", "{pretrained}", "--manifest", "{manifest}"], "without a classification head: fine-tune it first"),
            (["--model", "{model}", "--manifest", "nowhere.csv"], "no manifest at nowhere.csv"),
            (["--model", "{model}", "--manifest", "{unlabelled}"], "1 of 2 videos of"),
            (["--model", "{model}", "--manifest", "{beyond}"], "none of the 6 classes 0 to 5; the first is"),
            (["--model", "{model}", "--video", "nowhere.mp4"], "there is no video nowhere.mp4"),
            (["--model", "{model}", "--manifest", "{manifest}", "--keep_ratio", "1.5"], "at most 1, got 1.5"),
            (["--model", "{model}", "--manifest", "{manifest}", "--keep_ratio", "0.001"], "is no token at all"),
            (["--model", "{model}", "--manifest", "{manifest}", "--class_names", "{names}"], "names 2 classes, the model has 6"),
            (["--model", "{model}", "--manifest", "{manifest}", "--num_frames", "8"], "leave out --num_frames"),
            (["--model", "{model}", "--manifest", "{manifest}", "--clips", "0"], "--clips is at least 1, got 0"),
            (["--model", "{model}", "--manifest", "{manifest}", "--stride", "2", "--stride_seconds", "1"], "give one"),
            (["--model", "{model}", "--manifest", "{manifest}", "--stride", "0"], "clips cannot be sampled so: --stride"),
            (["--model", "{model}", "--manifest", "{manifest}", "--device", "cuda:99"], "there is no device 'cuda:99'"),
            (["--model", "{model}", "--manifest", "{manifest}", "--device", "abacus"], "there is no device 'abacus'"),
        ],
    )
    def test_one_clear_error(self, folder, videos, manifest, model, arguments, message):
        (folder / "names.txt").write_text("one\ntwo\n")
        known = {
            "manifest": manifest,
            "model": model,
            "names": folder / "names.txt",
            "pretrained": save_autoencoder(folder / "pretrained.safetensors"),
            "unlabelled": write_manifest(folder / "unlabelled.csv", [videos[0], (videos[1][0], "")]),
            "beyond": write_manifest(folder / "beyond.csv", [videos[0], (videos[1][0], 6)]),
        }
        status, told, err = run(*(argument.format(**known) for argument in arguments))
        assert status == 2 and told == "" and err.startswith("error: ") and message in err

    def test_all_videos_unreadable(self, folder, model, manifest):
        only = write_manifest(folder / "only.csv", [(folder / "broken.mp4", 0)])
        status, _, err = run("--model", model, "--manifest", only, *VIEWS)
        assert status == 2 and "of 1 video none can be read" in err


def bytes_below(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class TestOut:
    """--out DIR: new, empty or of an earlier test; anything else stays as it is."""

    FOREIGN = {
        "results of another program": {"results.json": '{"parts": []}', "results.md": ""},
        "a list": {"results.json": "[]"},
        "a run": {
            "run.json": "{}",
            "recipe.yaml": "",
            "results.json": '{"weights":0,"manifest":0,"views":0,"videos":0,"results":0}',
        },
        "pictures": {"confusion.png": "theirs"},
        "another command's": {".made_by.json": '{"made_by": "extract"}', "index.csv": ""},
    }

    @pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
    def test_a_foreign_folder_is_refused_before_the_weights_are_read(self, tmp_path, manifest, model, monkeypatch, files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        before = bytes_below(tmp_path)
        monkeypatch.setattr("mats_ds.evaluation.classification.open_classifier", None)
        status, told, err = run("--model", model, "--manifest", manifest, "--out", tmp_path, *VIEWS)
        assert (status, told) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
        assert "new or empty folder" in err and bytes_below(tmp_path) == before

    def test_twice_into_one_folder_also_of_version_0_1_and_into_one_below_a_run(self, tmp_path, manifest, model):
        (tmp_path / "run.json").write_text("{}")
        arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path / "test", *VIEWS, "--batch", "4"]
        assert run(*arguments)[0] == 0
        (tmp_path / "test" / ".made_by.json").unlink()
        # of a write that was killed
        (tmp_path / "test" / ".predictions.csv.0123456789ab.part").touch()
        assert run(*arguments)[0] == 0
        names = {path.name for path in (tmp_path / "test").iterdir()}
        tables = {"results.json", "per_class.csv", "predictions.csv", "unreadable.csv", "confusion.png"}
        assert names == {".made_by.json", *tables}

    @pytest.mark.parametrize("name", ["per_class.csv", "results.json", "confusion.png", "sweep.csv"])
    def test_what_somebody_has_put_there_or_changed_is_not_overwritten(self, tmp_path, manifest, model, name):
        out = tmp_path / "out"
        arguments = ["--model", model, "--manifest", manifest, "--out", out, *VIEWS, "--batch", "4"]
        assert run(*arguments)[0] == 0 and run(*arguments)[0] == 0
        (out / name).write_text("mine")
        before = bytes_below(out)
        status, _, err = run(*arguments, *(["--keep_ratio", "0.25", "1"] if name in ("sweep.csv", "results.json") else []))
        assert status == 2 and f"{out / name} was " in err and "rename it" in err and bytes_below(out) == before

    def test_its_own_predictions_are_no_source_for_it(self, tmp_path, manifest, model):
        out = tmp_path / "out"
        assert run("--model", model, "--manifest", manifest, "--out", out, *VIEWS, "--batch", "4")[0] == 0
        before = bytes_below(out)
        arguments = ["--manifest", out / "predictions.csv", "--root", tmp_path, "--out", out, *VIEWS, "--batch", "4"]
        status, _, err = run("--model", model, *arguments)
        assert status == 2 and "predictions.csv would be overwritten" in err and bytes_below(out) == before

    @pytest.mark.parametrize("name", ["predictions.csv", "results.json", "confusion.png", "keep-0.25"])
    def test_a_link_is_not_followed(self, tmp_path, manifest, model, name):
        """In a folder of somebody else's that says that it is of a test."""
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".made_by.json").write_text('{"made_by": "evaluate"}')
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("precious")
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious" / ("" if name == "keep-0.25" else "file"))
        shares = ["0.25", "1"] if name == "keep-0.25" else ["0.25"]
        before = bytes_below(tmp_path / "precious")
        arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path / "out", "--keep_ratio", *shares]
        run(*arguments, *VIEWS, "--batch", "4")
        assert bytes_below(tmp_path / "precious") == before and (tmp_path / "out" / name).is_symlink()

    def test_without_room_it_is_one_line(self, tmp_path, manifest, model, file_limit):
        arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path / "out", *VIEWS, "--batch", "4"]
        with file_limit(150):  # the marker has 30 bytes, every table more than 200
            status, told, err = run(*arguments)
        assert (status, told) == (1, "") and err.startswith("stopped: rank 0: ") and err.count("\n") == 1, err
        assert "start the same command again" in err and not list((tmp_path / "out").glob(".*.part"))
        assert run(*arguments)[0] == 0

    def test_one_video_writes_nothing(self, tmp_path, model, videos):
        (tmp_path / "a").touch()
        assert run("--model", model, "--video", videos[0][0], "--out", tmp_path, *VIEWS)[0] == 0
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.slow
    def test_two_ranks_end_alike(self, tmp_path, manifest, folder, model, ranks):
        only = write_manifest(tmp_path / "only.csv", [(folder / "broken.mp4", 0)])
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "a").touch()
        for listed, out in ((manifest, tmp_path / "theirs"), (only, tmp_path / "new")):
            answers = ranks(run, 2, "--model", model, "--manifest", listed, "--out", out, *VIEWS)
            assert [status for status, *_ in answers] == [2, 2], answers
            assert answers[0][2].count("error: ") == 1 and answers[1][2] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "extract"])
def test_is_reachable_as_a_module_and_as_a_file(name, tmp_path):
    for command in (["-m", f"mats_ds.{name}"], [str(ROOT / "mats_ds" / f"{name}.py")]):
        done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "--manifest" in done.stdout and "Example: " in done.stdout
