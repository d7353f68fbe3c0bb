"""Fine-tuning as its users start it, on real video files: synthetic ones that the tests write
themselves."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import TokenGrid, VideoClassifier, evaluate, load_model
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.models.model_spec import describe_model
from mats_ds.models.weights.native import load_weights, save_weights
from mats_ds.prepare import main as prepare

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = ["--recipe", "finetune_tiny", "--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json")]
CLIP = ["clip.num_frames=4", "clip.height=32", "clip.width=48"]
SMALL = [*CLIP, "optim.steps=6", "optim.warmup_steps=2", "run.log_steps=2", "optim.global_batch=8"]
HERE = [*SMALL, "data.num_workers=0"]  # reads without processes, which each rank would start: 3 s of CPU
AUGMENTED = [
    "augment.random_resized_crop=[0.3, 1.0]",
    "augment.rand_augment=rand-m7-n4-mstd0.5-inc1",
    "augment.random_erasing=0.25",
    "augment.mixup=0.8",
    "augment.cutmix=1.0",
    "finetune.ema_decay=0.5",
    "finetune.head_dropout=0.2",
    "finetune.layer_decay=0.75",
    "model.drop_path=0.1",
    "data.repeats=2",
    "evaluation.clips=2",
]


def run_script(module, arguments):
    """(exit status, what was written to the terminal) of one rank."""
    from importlib import import_module

    terminal = io.StringIO()
    with contextlib.redirect_stderr(terminal):
        try:
            status = import_module(module).main(arguments)
        except SystemExit as stop:
            status = stop.code
    return status, terminal.getvalue()


def finetune(arguments):
    return run_script("mats_ds.finetune", arguments)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The manifest of a small synthetic set, 12 files of 4 classes."""
    return write_synthetic_set(tmp_path_factory.mktemp("videos") / "set", num_videos=12, num_frames=24, height=48, width=80)


def read_losses(run_dir, rank=0):
    lines = (run_dir / "records" / f"rank-{rank:05d}.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def read_tests(run_dir):
    lines = [json.loads(line) for line in (run_dir / "evaluation.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def on_set(videos, *, every_epochs=3):
    """Tested on the training's own videos, for these tests are not of how well it learns."""
    sets = [f"data.manifest={videos}", f"evaluation.manifest={videos}", "evaluation.allow_overlap=true"]
    return [*sets, f"evaluation.every_epochs={every_epochs}"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Arguments for a run with every augmentation, two clips of each of the two videos of a
    micro-batch."""
    config = json.loads(Path(ARGUMENTS[3]).read_text()) | {"train_micro_batch_size_per_gpu": 4}
    file = tmp_path_factory.mktemp("config") / "four_clips.json"
    file.write_text(json.dumps(config))
    return [*AUGMENTED, "--ds_config", str(file)]


@pytest.fixture(scope="module")
def two_rank_run(ranks, videos, everything, tmp_path_factory):
    """(run folder, terminal of rank 0, terminal of rank 1) of a finished run with every
    augmentation; a test every third step."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    # 24 clips an epoch at 8 a step: three steps
    results = ranks(finetune, 2, [*ARGUMENTS, "--out", str(folder), *on_set(videos, every_epochs=1), *SMALL, *everything])
    assert [status for status, _ in results] == [0, 0], results
    return folder, *(terminal for _, terminal in results)


def test_a_run_leaves_records_tests_the_best_weights_and_a_checkpoint(two_rank_run):
    folder, *_ = two_rank_run
    assert len(read_losses(folder, 0)) == len(read_losses(folder, 1)) == 6
    tests = read_tests(folder)
    assert [test["step"] for test in tests] == [3, 6] and tests[0]["is_best"] and tests[0]["num_videos"] == 12
    assert json.loads((folder / "outcome.json").read_text())["outcome"] == "finished"
    assert json.loads((folder / "run.json").read_text())["task"] == "finetune"
    best = load_model(folder / "best.safetensors")
    assert isinstance(best, VideoClassifier) and best.num_classes == 4 and best.keep_ratio == 0.6
    assert "top-1" in load_weights(folder / "best.safetensors").notes[0]
    assert load_model(folder).class_head.weight.shape == (4, 192), "the newest checkpoint is a classifier too"


def test_rank_0_says_what_happens_and_the_others_are_silent(two_rank_run):
    _, terminal, silent = two_rank_run
    for words in (
        "training from scratch",
        "GMACs per clip",
        "60% of the tokens by mats",
        "12 videos of set/manifest.csv, 4 classes",
        "2 ranks x micro-batch 4 x accumulation 1 = 8",
        "step 6/6",
        "test after step 3 (epoch 1.0): top-1",
        "the best so far",
    ):
        assert words in terminal, terminal
    assert silent == ""


def test_the_result_is_that_of_the_last_weights_and_says_what_chose_and_measured_what(two_rank_run):
    folder, terminal, _ = two_rank_run
    tests = read_tests(folder)
    about = {"measured_on": "set/manifest.csv", "clips": 2, "crops": 1, "averaged": True}
    assert all({key: test[key] for key in about} == about for test in tests)
    result = json.loads((folder / "result.json").read_text())
    assert result["weights"] == {"from": "last", "step": 6, "averaged": True, "chosen_on": None}
    assert result["top1"]["value"] == tests[-1]["top1"] and result["top1"]["total"] == 12
    assert (result["measured_on"], result["views"]) == ("set/manifest.csv", {"clips": 2, "crops": 1})
    best = max(tests, key=lambda test: test["top1"])
    assert (result["best"]["step"], result["best"]["top1_where_chosen"]) == (best["step"], best["top1"])
    assert result["best"]["chosen_on"] == "set/manifest.csv" and result["videos"]["trained_on"] == 12
    (line,) = [line for line in terminal.splitlines() if line.startswith("result: ")]
    for words in (
        f"top-1 {100 * tests[-1]['top1']:.2f}%",
        "12 videos of set/manifest.csv",
        "2 x 1 views",
        "last",
        "step 6",
        "average",
    ):
        assert words in line
    assert "12 of 12 videos of set/manifest.csv are in set/manifest.csv as well" in terminal, "it was allowed, and is warned of"
    stored = load_weights(folder / "best.safetensors").origin
    assert (stored.step, stored.averaged) == (best["step"], True) and stored.chosen_on.endswith("set/manifest.csv")
    assert stored.views == {"clips": 2, "crops": 1} and stored.clip == {"stride": 2, "sampling": "dense"}


def loss_of_predictions(folder, *, views):
    """The mean cross-entropy of a test of 12 videos of 4 classes, from the scores in its
    predictions.csv."""
    with (folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12 and {row["views_read"] for row in rows} == {views}
    scores = [dict(pair.split(":") for pair in row["top5"].split()) for row in rows]
    losses = [-math.log(float(of_video[row["label"]])) for of_video, row in zip(scores, rows, strict=True)]
    return sum(losses) / len(losses)


@pytest.mark.slow
def test_evaluate_in_bf16_finds_what_the_bf16_engine_found(ranks, videos, tmp_path):
    """To the digits of predictions.csv: parameters are rounded there, and nothing else is."""
    (tmp_path / "bf16.json").write_text(json.dumps(json.loads(Path(ARGUMENTS[3]).read_text()) | {"bf16": {"enabled": True}}))
    arguments = [*ARGUMENTS, "--ds_config", str(tmp_path / "bf16.json"), "--out", str(tmp_path / "run"), *on_set(videos), *HERE]
    [(status, terminal)] = ranks(finetune, 1, [*arguments, "evaluation.clips=1", "evaluation.crops=1"])
    assert status == 0, terminal
    found = {}
    for precision in ("bf16", "fp32"):
        out = tmp_path / precision
        options = ["--model", tmp_path / "run", "--manifest", videos, "--out", out, "--precision", precision, "--device", "cpu"]
        assert evaluate.main([*map(str, options), "--workers", "1", "--weights_from", "last"]) == 0
        found[precision] = loss_of_predictions(out, views="1")
    last = read_tests(tmp_path / "run")[-1]["loss"]
    assert found["bf16"] == pytest.approx(last, abs=2e-6) and abs(found["fp32"] - last) > 2e-6, (found, last)


def test_evaluate_finds_for_the_run_what_its_last_test_found(two_rank_run, videos, tmp_path, capsys):
    """The average of the weights, on the recipe's views: the loss of the last test, to the digits
    of predictions.csv."""
    folder, *_ = two_rank_run
    found = {}
    for name in ("last", "average", "unaveraged"):
        out = tmp_path / name
        arguments = [
            "--manifest",
            videos,
            "--out",
            out,
            "--crops",
            "1",
            "--device",
            "cpu",
            "--workers",
            "1",
            "--weights_from",
            name,
        ]
        assert evaluate.main(["--model", str(folder), *map(str, arguments)]) == 0
        told = capsys.readouterr().out
        assert (
            f"step 6 of one of our runs, {'weights without averaging' if name == 'unaveraged' else 'the average of its'}" in told
        )
        found[name] = loss_of_predictions(out, views="2")
    last = read_tests(folder)[-1]["loss"]
    assert found["last"] == found["average"] == pytest.approx(last, abs=5e-6)
    assert abs(found["unaveraged"] - last) > 1e-4, "six steps have moved the weights"


def test_videos_that_are_trained_on_are_no_test(ranks, videos, tmp_path):
    own = tmp_path / "own.csv"
    rows = videos.read_text().splitlines()
    own.write_text("\n".join([rows[0], *(f"{videos.parent}/{row}" for row in rows[1:3])]) + "\n")
    sets = [f"data.manifest={videos}", f"evaluation.manifest={own}"]
    answers = ranks(finetune, 2, [*ARGUMENTS, "--out", str(tmp_path / "run"), *sets, *HERE])
    assert [status for status, _ in answers] == [2, 2], answers
    said = answers[0][1]
    words = ("error: 2 of 2 videos of", "/own.csv are in set/manifest.csv", "set evaluation.allow_overlap=true")
    assert all(word in said for word in words) and "Traceback" not in said, said
    assert answers[1][1] == ""
    assert not (tmp_path / "run" / "records").exists()


def test_the_report_judges_the_run(two_rank_run):
    report = subprocess.run(
        [sys.executable, ROOT / "profiling" / "report.py", two_rank_run[0]], capture_output=True, text=True, check=False
    )
    assert report.returncode == 0, report.stderr
    assert report.stdout.startswith("PASS") and "28 of 48 tokens kept" in report.stdout
    assert "result: top-1" in report.stdout and "the last weights" in " ".join(report.stdout.split())


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_to_the_bit(ranks, two_rank_run, videos, everything, tmp_path):
    """With drop path, dropout, mixing and an average of the weights."""
    arguments = [*ARGUMENTS, "--out", str(tmp_path), *on_set(videos, every_epochs=1), *HERE, *everything]
    ranks(finetune, 2, [*arguments, "run.max_steps=4"])
    results = ranks(finetune, 2, [*arguments, "--resume", "auto"])
    assert results[0][0] == 0, results
    assert "steps: 5 to 6" in results[0][1]
    assert read_losses(tmp_path) == read_losses(two_rank_run[0])
    assert [test for test in read_tests(tmp_path) if test["step"] == 6][0]["loss"] == read_tests(two_rank_run[0])[1]["loss"]


@pytest.mark.slow
def test_fewer_ranks_go_on_with_weights_average_and_best(ranks, two_rank_run, videos, everything, tmp_path):
    arguments = [*ARGUMENTS, "--out", str(tmp_path), *on_set(videos, every_epochs=1), *HERE, *everything]
    ranks(finetune, 2, [*arguments, "run.max_steps=4"])
    [(status, terminal)] = ranks(finetune, 1, [*arguments, "--resume", "auto"])
    assert status == 0 and "was saved by 2 ranks, this run has 1" in terminal
    assert read_losses(tmp_path) == pytest.approx(read_losses(two_rank_run[0]), abs=1e-5)
    ours, theirs = read_tests(tmp_path)[-1], read_tests(two_rank_run[0])[-1]
    assert ours["step"] == theirs["step"] == 6 and ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_a_folder_of_the_other_trainer_is_not_gone_on_with(ranks, two_rank_run):
    pretraining = ["--recipe", "tiny", "--ds_config", ARGUMENTS[3], "--out", str(two_rank_run[0]), "--resume", "auto", *CLIP]
    [(status, terminal)] = ranks(run_script, 1, "mats_ds.pretrain", pretraining)
    assert status == 2 and "holds a run of mats_ds/finetune.py" in terminal


@pytest.mark.slow
def test_one_rank_sees_the_same_clips_and_finds_the_same_losses(ranks, two_rank_run, videos, everything, tmp_path):
    arguments = [*ARGUMENTS, "--out", str(tmp_path), *on_set(videos, every_epochs=1), *HERE, *everything]
    ranks(finetune, 1, arguments)
    assert read_losses(tmp_path) == pytest.approx(read_losses(two_rank_run[0]), abs=1e-5)
    for ours, theirs in zip(read_tests(tmp_path), read_tests(two_rank_run[0]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.slow
def test_it_starts_from_a_run_of_pretraining(ranks, videos, tmp_path):
    pretraining = [
        *("--recipe", "tiny", "--ds_config", ARGUMENTS[3], "--out", str(tmp_path / "pre"), f"data.manifest={videos}"),
        *(*CLIP, "optim.steps=2", "optim.warmup_steps=1", "optim.global_batch=4"),
    ]
    [(status, terminal)] = ranks(run_script, 1, "mats_ds.pretrain", pretraining)
    assert status == 0, terminal
    arguments = [*ARGUMENTS, "--out", str(tmp_path / "fine"), f"data.manifest={videos}", f"finetune.weights={tmp_path / 'pre'}"]
    [(status, terminal)] = ranks(finetune, 1, [*arguments, *HERE, "run.max_steps=1"])
    assert status == 0, terminal
    assert "tensors loaded; fresh: fc_norm, class_head; not used: " in terminal
    assert "no evaluation.manifest given" in terminal
    assert not (tmp_path / "fine" / "best.safetensors").exists()


@pytest.mark.slow
def test_unreadable_videos_are_replaced_in_training_and_counted_in_the_test(ranks, tmp_path):
    manifest = write_synthetic_set(tmp_path / "set", num_videos=4, num_frames=24, height=48, width=80)
    for name in ("synthetic_000_horizontal.mp4", "synthetic_003_vertical.webm"):
        assert (manifest.parent / name).exists()
        (manifest.parent / name).write_bytes(b"no video")
    views = ["evaluation.clips=3", "evaluation.crops=2", "evaluation.training_clips=1", "evaluation.training_crops=1"]
    options = ["data.max_bad_fraction=0.9", "run.max_steps=2", "augment.mixup=0.8", *views]
    results = ranks(finetune, 1, [*ARGUMENTS, "--out", str(tmp_path / "run"), *on_set(manifest), *HERE, *options])
    assert results[0][0] == 0, results
    [test] = read_tests(tmp_path / "run")
    assert (test["num_videos"], test["num_unreadable"]) == (2, 2)
    assert "2 unreadable" in results[0][1]
    assert (test["clips"], test["crops"]) == (1, 1), "few views during the training, and the command for the others at its end"
    (line,) = [line for line in results[0][1].splitlines() if line.startswith("on 3 x 2 views")]
    assert line.endswith(f"evaluate --model {tmp_path / 'run'} --weights_from last --manifest {manifest}")
    for name in ("synthetic_000_horizontal.mp4", "synthetic_003_vertical.webm"):
        assert results[0][1].count(f"in the test, unreadable: {manifest.parent / name}: ") == 1, results[0][1]


@pytest.fixture
def nine_class_weights(tmp_path):
    model = VideoClassifier.from_name("tiny", num_classes=9, grid=TokenGrid(4, 32, 48, (2, 8, 8)))
    save_weights(tmp_path / "nine.safetensors", describe_model(model), model.state_dict())
    return tmp_path / "nine.safetensors"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune.wieghts=1", "augmnt.mixup=1"], ["2 mistakes", "did you mean finetune.weights?", "did you mean augment?"]),
        (["finetune.weights=/nowhere/run"], ["there is no file or folder /nowhere/run"]),
        (["--recipe", "tiny"], ["is a recipe for pre-training"]),
        (["finetune.num_classes=3"], ["none of the 3 classes 0 to 2"]),
        (["finetune.weights=NINE"], ["head of 9 classes, and the data has 4", "finetune.new_head=true"]),
        (["finetune.weights=NINE", "finetune.new_head=true", "clip.tubelet=[2,16,16]"], ["keep the tubelet"]),
        (["evaluation.manifest=/nowhere/val.csv"], ["/nowhere/val.csv"]),
    ],
)
def test_a_mistake_is_one_clear_error(ranks, arguments, words, videos, nine_class_weights, tmp_path):
    arguments = [argument.replace("NINE", str(nine_class_weights)) for argument in arguments]
    out = ["--out", str(tmp_path / "run"), f"data.manifest={videos}"]
    [(status, terminal)] = ranks(finetune, 1, [*ARGUMENTS, *out, *HERE, *arguments])
    assert status == 2, terminal
    assert "error: " in terminal and "Traceback" not in terminal
    assert all(word in terminal for word in words), terminal


@pytest.mark.slow
def test_adaptive_frames_bf16_weights_and_all_tokens_train_on_video(ranks, videos, tmp_path):
    config = json.loads(Path(ARGUMENTS[3]).read_text()) | {"bf16": {"enabled": True}}
    (tmp_path / "bf16.json").write_text(json.dumps(config))
    for name, options in (
        ("adaptive", ["selection.frame_candidates=1.5", "finetune.ema_decay=0.9", "--ds_config", str(tmp_path / "bf16.json")]),
        ("all", ["selection.keep_ratio=1", "model.checkpoint_blocks=all"]),
        ("zero3", ["--ds_config", str(ROOT / "ds_configs" / "zero3.json"), "optim.global_batch=8"]),
    ):
        arguments = [*ARGUMENTS, "--out", str(tmp_path / name), *on_set(videos), *HERE, "run.max_steps=2", *options]
        results = ranks(finetune, 2, arguments)
        assert [status for status, _ in results] == [0, 0], results
        assert load_model(tmp_path / name / "best.safetensors").num_classes == 4


@pytest.mark.slow
def test_two_ranks_learn_the_same_from_members_of_shards(ranks, videos, tmp_path):
    """Also where a member is missing, and a shard."""
    rows = [line.split(",")[:2] for line in videos.read_text().splitlines()[1:]]
    loose, packed = tmp_path / "loose.csv", tmp_path / "packed"
    files = "".join(f"{videos.parent / path},{label}\n" for path, label in rows)
    loose.write_text("path,label\n" + files)
    assert prepare(["pack", str(loose), "--out", str(packed), "--shard_size", "100KB"]) == 0
    shards = sorted(path.name for path in packed.glob("*.tar"))
    assert len(shards) > 1 and f"{shards[0]}#" in (packed / "manifest.csv").read_text()
    few = ["data.max_bad_fraction=0.5", *HERE]
    losses = {}
    for manifest in (loose, packed / "manifest.csv"):
        out = tmp_path / manifest.stem
        results = ranks(finetune, 2, [*ARGUMENTS, "--out", str(out), *on_set(manifest), *few])
        assert [status for status, _ in results] == [0, 0], results
        losses[manifest.stem] = [read_losses(out, rank) for rank in range(2)]
    assert losses["loose"] == losses["manifest"] and len(losses["loose"][0]) == 6

    with (packed / "manifest.csv").open(newline="") as stream:
        header = next(csv.reader(stream))
    rest = "," * (len(header) - 2) + "\n"
    with (packed / "manifest.csv").open("a") as stream:
        stream.write(f"{shards[0]}#nothing.mp4,0{rest}missing.tar#a.mp4,1{rest}")
    out = tmp_path / "bad"
    results = ranks(finetune, 2, [*ARGUMENTS, "--out", str(out), *on_set(packed / "manifest.csv"), *few])
    assert [status for status, _ in results] == [0, 0], results
    said = "".join(terminal for _, terminal in results)
    assert [test["num_unreadable"] for test in read_tests(out)] == [2] * len(read_tests(out)) and read_tests(out)
    for member, why in (("nothing.mp4", "no regular file 'nothing.mp4'"), ("missing.tar#a.mp4", "missing.tar is not there")):
        (line,) = [line for line in said.splitlines() if "in the test, unreadable" in line and member in line]
        assert why in line and "Traceback" not in said, said


@pytest.mark.slow
def test_a_trace_is_written(ranks, videos, tmp_path):
    options = ["--out", str(tmp_path), "--trace", "--trace_steps", "2", f"data.manifest={videos}"]
    [(status, terminal)] = ranks(finetune, 1, [*ARGUMENTS, *options, *HERE])
    assert status == 0, terminal
    assert (tmp_path / "traces" / "rank-00000.json.gz").stat().st_size > 1000


@pytest.mark.slow
def test_it_learns_a_few_videos_by_heart(ranks, tmp_path):
    manifest = write_synthetic_set(tmp_path / "set", num_videos=4, num_frames=24, height=48, width=80)
    length = ["optim.steps=60", "optim.warmup_steps=5", "optim.global_batch=4"]
    still = ["finetune.layer_decay=1", "model.drop_path=0", "clip.flip=false", "clip.crop_scales=[1.0]"]
    options = [*CLIP, *length, *still]
    results = ranks(finetune, 2, [*ARGUMENTS, "--out", str(tmp_path / "run"), *on_set(manifest, every_epochs=10), *options])
    assert [status for status, _ in results] == [0, 0], results
    losses = read_losses(tmp_path / "run")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    assert max(test["top1"] for test in read_tests(tmp_path / "run")) == 1.0


def count_operations(arguments):
    """Starts a run that ends where its clips are drawn, and says how many of 32 have operations of
    RandAugment."""
    import mats_ds.finetune

    class Telling(mats_ds.finetune.ClipSampler):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            raise ValueError(f"{sum(bool(self.spec(position).operations) for position in range(32))} of 32 clips")

    mats_ds.finetune.ClipSampler = Telling  # in a process of its own
    return finetune(arguments)


@pytest.mark.parametrize(("augment", "words"), [([AUGMENTED[1]], "28 of 32 clips"), ([], "0 of 32 clips")])
def test_the_recipe_says_whether_clips_are_augmented(ranks, videos, tmp_path, augment, words):
    arguments = [*ARGUMENTS, "--out", str(tmp_path / "run"), f"data.manifest={videos}", *HERE, *augment]
    [(status, terminal)] = ranks(count_operations, 1, arguments)
    assert status == 2 and f"error: {words}" in terminal, terminal
