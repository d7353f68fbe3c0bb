"""The main job as its users start it, on real video files: synthetic ones that the tests write
themselves."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch

from mats_ds.data.synthetic import write_synthetic_set

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = ["--recipe", "tiny", "--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json")]
SMALL = ["clip.num_frames=4", "clip.height=32", "clip.width=48", "optim.steps=6", "optim.warmup_steps=2", "run.log_steps=2"]
HERE = [*SMALL, "data.num_workers=0"]  # reads without processes, which each rank would start: 3 s of CPU


def pretrain(arguments):
    """(exit status, what was written to the terminal) of one rank."""
    from mats_ds.pretrain import main

    terminal = io.StringIO()
    with contextlib.redirect_stderr(terminal):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = stop.code
    return status, terminal.getvalue()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The folder of a small synthetic set, 20 files."""
    return write_synthetic_set(
        tmp_path_factory.mktemp("videos") / "set", num_videos=20, num_frames=24, height=48, width=80
    ).parent


def read_losses(run_dir, rank=0):
    lines = (run_dir / "records" / f"rank-{rank:05d}.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def two_rank_run(ranks, videos, tmp_path_factory):
    """(run folder, terminal of rank 0, terminal of rank 1) of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    results = ranks(pretrain, 2, [*ARGUMENTS, "--out", str(folder), f"data.manifest={videos}", *SMALL])
    assert [status for status, _ in results] == [0, 0], results
    return folder, *(terminal for _, terminal in results)


def test_a_run_leaves_records_of_every_rank_its_inputs_a_picture_and_a_checkpoint(two_rank_run):
    folder, *_ = two_rank_run
    assert len(read_losses(folder, 0)) == len(read_losses(folder, 1)) == 6
    assert (folder / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    assert "strategy: mats" in (folder / "recipe.yaml").read_text()
    assert json.loads((folder / "ds_config.json").read_text()) == json.loads(Path(ARGUMENTS[3]).read_text())
    assert (folder / "checkpoints" / "latest").read_text() == "step-00000006"
    assert json.loads((folder / "outcome.json").read_text())["outcome"] == "finished"


def pretrain_without_pictures(arguments):
    """As pretrain, where whoever draws runs out of memory."""
    from mats_ds.visualization import render

    def draw_reconstruction(*given, **options):
        raise MemoryError("no\nmore")

    render.draw_reconstruction = draw_reconstruction
    return pretrain(arguments)


class TestNamesAndPictures:
    NASTY = "a\nerror: lost\x1b[2J\u202e$\\frac{$"
    TWO_STEPS = ["optim.steps=2", "optim.warmup_steps=1", "run.log_steps=1"]

    @pytest.fixture
    def data(self, videos, tmp_path):
        """A folder of a nasty name, with videos of nasty names."""
        folder = tmp_path / self.NASTY
        folder.mkdir()
        for number, video in enumerate(sorted(videos.rglob("*.mp4"))[:16]):
            (folder / f"{number}{self.NASTY}.mp4").write_bytes(video.read_bytes())
        return folder

    def test_a_run_on_videos_of_any_name_ends_with_its_picture(self, ranks, data, tmp_path):
        folder = tmp_path / f"run{self.NASTY}"
        arguments = [*ARGUMENTS, "--out", str(folder), f"data.manifest={data}", *HERE, *self.TWO_STEPS]
        [(status, terminal)] = ranks(pretrain, 1, arguments)
        assert status == 0 and (folder / "reconstruction.png").read_bytes().startswith(b"\x89PNG"), terminal
        lines = terminal.split("\n")
        assert all(map(str.isprintable, lines)) and not any(line.startswith("error:") for line in lines), terminal
        assert r"run folder: " in terminal and r"$'" in lines[-2]  # the command to paste is quoted

    def test_a_run_whose_picture_cannot_be_drawn_is_finished(self, ranks, videos, tmp_path):
        folder = tmp_path / "run"
        arguments = [*ARGUMENTS, "--out", str(folder), f"data.manifest={videos}", *HERE, *self.TWO_STEPS]
        [(status, terminal)] = ranks(pretrain_without_pictures, 1, arguments)
        assert status == 0 and terminal.count("no picture") == 1 and "Traceback" not in terminal, terminal
        assert (folder / "checkpoints" / "latest").read_text() == "step-00000002"
        assert json.loads((folder / "outcome.json").read_text())["outcome"] == "finished"


def test_a_checkpoint_says_what_model_it_is_of(two_rank_run):
    from mats_ds.models.weights.run import read_run

    step = two_rank_run[0] / "checkpoints" / "step-00000006" / "mp_rank_00_model_states.pt"
    stored = json.loads(torch.load(step, weights_only=False)["model_spec"])
    assert (stored["kind"], stored["grid"]["width"], stored["decoder_depth"]) == ("pretrain", 48, 2)
    assert read_run(two_rank_run[0]).spec.pruning.visible_ratio == 0.1


def test_rank_0_says_what_happens_and_the_others_are_silent(two_rank_run):
    _, terminal, silent = two_rank_run
    for words in (
        "GMACs per clip: pre-training",
        "2 ranks x micro-batch 2 x accumulation 4 = 16",
        "step 6/6",
        "clips/s",
        "kept 14/48 tokens",
    ):
        assert words in terminal
    assert silent == ""


def test_the_report_judges_the_run(two_rank_run):
    import subprocess
    import sys

    folder, *_ = two_rank_run
    report = subprocess.run(
        [sys.executable, ROOT / "profiling" / "report.py", folder], capture_output=True, text=True, check=False
    )
    assert report.returncode == 0, report.stderr
    assert report.stdout.startswith("PASS") and "all 6 steps recorded on every rank" in report.stdout
    assert "data:image/png;base64" in (folder / "report.html").read_text()


def test_the_same_run_again_is_equal_to_the_bit(ranks, two_rank_run, videos, tmp_path):
    ranks(pretrain, 2, [*ARGUMENTS, "--out", str(tmp_path), f"data.manifest={videos}", *HERE])
    assert read_losses(tmp_path) == read_losses(two_rank_run[0])


@pytest.mark.slow
def test_one_rank_sees_the_same_clips_and_finds_the_same_losses(ranks, two_rank_run, videos, tmp_path):
    ranks(pretrain, 1, [*ARGUMENTS, "--out", str(tmp_path), f"data.manifest={videos}", *HERE])
    assert read_losses(tmp_path) == pytest.approx(read_losses(two_rank_run[0]), abs=1e-5)


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_where_it_stopped(ranks, two_rank_run, videos, tmp_path):
    arguments = [*ARGUMENTS, "--out", str(tmp_path), f"data.manifest={videos}", *HERE]
    ranks(pretrain, 2, [*arguments, "run.max_steps=4"])
    results = ranks(pretrain, 2, [*arguments, "--resume", "auto"])
    assert results[0][0] == 0, results
    assert "steps: 5 to 6" in results[0][1]
    assert read_losses(tmp_path) == read_losses(two_rank_run[0])
    again = ranks(pretrain, 2, [*arguments, "--resume", "auto"])
    assert [status for status, _ in again] == [0, 0]
    assert f"nothing to do: {tmp_path} has finished all 6 steps" in again[0][1] and again[1][1] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "key"),
    [
        (["optim.steps=3"], "optim.steps"),
        (["optim.steps=null", "optim.epochs=2", "optim.warmup_epochs=0.5"], "optim.epochs"),
        (["run.max_steps=2"], "run.max_steps"),
    ],
)
def test_the_advice_of_a_finished_run_makes_it_go_on(ranks, videos, tmp_path, monkeypatch, length, key):
    """Each advice is followed to the letter: the smallest length above what it names."""
    arguments = [*ARGUMENTS, "--out", str(tmp_path), f"data.manifest={videos}", *HERE, *length]
    [(status, terminal)] = ranks(pretrain, 1, arguments)
    assert status == 0, terminal
    done = len(read_losses(tmp_path))
    [(status, terminal)] = ranks(pretrain, 1, [*arguments, "--resume", "auto"])
    [(raised, above)] = re.findall(r"raise (\S+) above ([\d.]+)", terminal)
    assert (status, raised) == (0, key) and "nothing to do" in terminal
    empty = tmp_path.parent / f"{tmp_path.name} empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    without = [word for word in arguments if not word.startswith("data.manifest=")]
    [(status, terminal)] = ranks(pretrain, 1, [*without, "--resume", "auto"])
    assert (status, "nothing to do" in terminal) == (0, True) and not list(empty.iterdir()), "a synthetic set for nothing"
    more = float(above) + 0.01 if key == "optim.epochs" else int(above) + 1
    [(status, terminal)] = ranks(pretrain, 1, [*arguments, f"{key}={more}", "--resume", "auto"])
    assert status == 0 and f"steps: {done + 1} to {done + 1} " in terminal, terminal
    assert len(read_losses(tmp_path)) == done + 1


@pytest.mark.slow
def test_what_the_model_drops_is_the_same_after_a_resumption(ranks, videos, tmp_path):
    arguments = [*ARGUMENTS, f"data.manifest={videos}", *HERE, "model.drop_path=0.1"]
    ranks(pretrain, 1, [*arguments, "--out", str(tmp_path / "whole")])
    ranks(pretrain, 1, [*arguments, "--out", str(tmp_path / "parts"), "run.max_steps=3"])
    ranks(pretrain, 1, [*arguments, "--out", str(tmp_path / "parts"), "--resume", "auto"])
    assert read_losses(tmp_path / "parts") == read_losses(tmp_path / "whole")


def test_a_finished_folder_is_not_written_over(ranks, two_rank_run, videos):
    [(status, terminal)] = ranks(pretrain, 1, [*ARGUMENTS, "--out", str(two_rank_run[0]), f"data.manifest={videos}", *HERE])
    assert status == 2 and "holds a run already: add --resume auto" in terminal


@pytest.mark.slow
def test_without_a_manifest_it_trains_on_the_synthetic_set_and_says_so(ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = ranks(pretrain, 2, [*ARGUMENTS, "run.max_steps=2"])
    assert [status for status, _ in results] == [0, 0], results
    said = [line for line in results[0][1].splitlines() if "synthetic set" in line]
    assert len(said) == 1 and "no data.manifest given" in said[0]
    assert list((tmp_path / "runs").glob("tiny-*/run.json"))
    assert {path.suffix for path in (tmp_path / "data" / "synthetic").iterdir()} >= {".mp4", ".webm", ".csv"}


@pytest.fixture
def videos_with_broken_ones(tmp_path):
    """6 readable files and 2 broken ones."""
    folder = write_synthetic_set(tmp_path / "set", num_videos=6, num_frames=24, height=48, width=80).parent
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("this is no video")
    return folder


def test_broken_files_are_named_replaced_and_do_not_stop_the_run(ranks, videos_with_broken_ones, tmp_path):
    run = tmp_path / "run"
    arguments = [*ARGUMENTS, "--out", str(run), f"data.manifest={videos_with_broken_ones}", *HERE, "data.max_bad_fraction=0.5"]
    results = ranks(pretrain, 2, arguments)
    assert [status for status, _ in results] == [0, 0], results
    for name in ("empty.mp4", "text.avi"):
        assert results[0][1].count(f"{name}: ") == 1, results[0][1]
    assert "text.avi" in (run / "bad_clips.csv").read_text()
    assert len(read_losses(run, 0)) == len(read_losses(run, 1)) == 6


def test_too_many_broken_files_stop_all_ranks_with_the_list(ranks, videos_with_broken_ones, tmp_path):
    arguments = [*ARGUMENTS, "--out", str(tmp_path / "run"), f"data.manifest={videos_with_broken_ones}", *HERE]
    results = ranks(pretrain, 2, arguments)
    assert [status for status, _ in results] == [1, 1], results
    assert "2 of 8 videos are unreadable or damaged, more than data.max_bad_fraction=0.1" in results[0][1]
    assert f"prepare check {videos_with_broken_ones} --out checked.csv" in results[0][1]
    assert "TrainingStopped" in json.loads((tmp_path / "run" / "outcome.json").read_text())["outcome"]


@pytest.mark.slow
def test_adaptive_frames_and_a_baseline_train_on_video(ranks, videos, tmp_path):
    for name, override in (("adaptive", "selection.frame_candidates=1.5"), ("tube", "selection.strategy=tube")):
        arguments = [*ARGUMENTS, "--out", str(tmp_path / name), f"data.manifest={videos}", *HERE, override]
        [(status, terminal)] = ranks(pretrain, 1, arguments)
        assert status == 0, terminal


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optim.base_rl=1", "modle.name=base"], ["2 mistakes", "did you mean optim.base_lr?", "did you mean model?"]),
        (["data.manifest=/nowhere/videos.csv"], ["/nowhere/videos.csv"]),
        (["--recipe", "tinny"], ["did you mean tiny?"]),
        (["--ds_config", "none.json"], ["no DeepSpeed JSON at none.json"]),
    ],
)
def test_a_mistake_is_one_clear_error(ranks, arguments, words, tmp_path):
    [(status, terminal)] = ranks(pretrain, 1, [*ARGUMENTS, "--out", str(tmp_path / "run"), *arguments])
    assert status == 2
    assert terminal.startswith("error: ") and "Traceback" not in terminal
    assert all(word in terminal for word in words), terminal


@pytest.mark.slow
def test_a_trace_is_written_on_any_run_and_a_cpu_says_that_snapshots_are_for_gpus(ranks, videos, tmp_path):
    options = ["--out", str(tmp_path / "run"), "--trace", "--memory_snapshot", "--trace_steps", "2"]
    [(status, terminal)] = ranks(pretrain, 1, [*ARGUMENTS, *options, f"data.manifest={videos}", *HERE])
    assert status == 0, terminal
    assert (tmp_path / "run" / "traces" / "rank-00000.json.gz").stat().st_size > 1000
    assert "trace: " in terminal and "--memory_snapshot is for GPUs" in terminal
