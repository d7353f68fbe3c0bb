"""What is answered before torch and its like are imported: every --help, through every door, and
what is wrong with arguments, recipe, JSON and paths. Modules are counted, not seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import launch
from mats_ds.__main__ import IN_ONE_PROCESS, ON_RANKS
from mats_ds.core.cli import USAGE_ERROR

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (*ON_RANKS, *IN_ONE_PROCESS, "demo")
# One interpreter answers all: what one start imports would be seen in every later one.
STARTS = """
import contextlib, io, json, runpy, sys
HEAVY = {'torch', 'torchvision', 'deepspeed', 'timm', 'einops', 'av', 'PIL', 'matplotlib', 'transformers', 'nvidia.dali'}
from mats_ds.__main__ import main
for door, words in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), None
    sys.argv, sys.path[0] = list(words), 'not a folder'
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if door == 'mats':
                status = main(words)
            else:
                (runpy.run_path if door == 'file' else runpy.run_module)(words[0], run_name='__main__')
        except SystemExit as end:
            status = end.code
    said = out.getvalue() + err.getvalue()
    print(json.dumps([status, said, sorted(HEAVY & set(sys.modules))]), file=sys.__stdout__)
"""
Z = ("--ds_config", "zero2_tiny")
TINY = ("--recipe", "tiny", *Z)
TWO = ("data.manifest=two.csv", "evaluation.manifest=two.csv")
UCF = ("--recipe", "finetune_ucf101", *Z)
TEST = ("--model", "nowhere", "--manifest", "one.csv")
# arguments of mats -> a part of the answer
WRONG = {
    ("pretrain", "--recipe", "tiny", "--reciep", "x"): "did you mean --recipe?",
    ("pretrain", *Z, "--recipe", "tinny"): "no recipe at tinny",
    ("pretrain", *TINY, "optim.lrr=1"): "optim.lrr is not a key",
    ("pretrain", "--ds_config", "nowhere.json", "--recipe", "tiny"): "no DeepSpeed JSON at nowhere.json",
    ("pretrain", "--ds_config", "torn.json", "--recipe", "tiny"): "torn.json is not valid JSON",
    ("pretrain", "--ds_config", "odd.json", "--recipe", "tiny"): "zero_optimisation",
    ("pretrain", *TINY, "--out", "taken"): "holds 'theirs.txt' and no run.json",
    ("pretrain", *TINY, "--resume", "auto"): "found no run of tiny",
    ("pretrain", *TINY, "data.manifest=nowhere.csv"): "no manifest at nowhere.csv",
    ("pretrain", *TINY, "data.manifest=torn.csv"): "line 2",
    ("pretrain", *TINY, "data.manifest=one.csv", "data.root=nowhere"): "data.root nowhere is no folder",
    ("finetune", *Z): "the following arguments are required: --recipe",
    ("finetune", *UCF, "data.manifest=one.csv"): "all videos of",
    (
        "finetune",
        *UCF,
        "data.manifest=two.csv",
        "evaluation.manifest=two.csv",
        "finetune.weights=nowhere",
    ): "there is no file or folder nowhere",
    ("finetune", *UCF, "data.manifest=two.csv", "evaluation.manifest=nowhere.csv"): "no manifest at nowhere.csv",
    ("evaluate", *TEST): "there is no file or folder nowhere",
    ("evaluate", *TEST, "--out", "taken"): "taken",
    ("evaluate", *TEST, "--batch", "0"): "--batch is at least 1, got 0",
    ("evaluate", "--model", "nowhere", "--video", "clip.mp4"): "there is no file or folder nowhere",
    ("extract", *TEST, "--out", "o", "--hop", "1"): "--hop goes with --window",
    ("extract", *TEST, "--out", "o", "--window", "0", "--hop", "1"): "--window is from 0.01",
    ("extract", *TEST, "--out", "o", "--shard_videos", "0"): "--shard_videos is at least 1",
    ("extract", *TEST, "--out", "taken"): "taken",
    ("probe", "--model", "x", "--train", "nowhere.csv", "--val", "one.csv"): "no manifest at nowhere.csv",
    ("probe", "--model", "x", "--train", "two.csv", "--val", "two.csv", "--neighbours", "0"): "--neighbours is at least 1",
    ("probe", "--model", "nowhere", "--train", "two.csv", "--val", "two.csv"): "there is no file or folder nowhere",
    ("convert", "nowhere"): "there is no file or folder nowhere",
    ("convert", "taken", "x.pth"): "taken is neither a Hugging Face folder",
    ("convert", "clip.mp4", "taken"): "taken holds theirs.txt",
    ("convert", "clip.mp4", "x", "--to", "hub", "--license", "MIT!"): "--license is an identifier",
    ("visualize", "nowhere.mp4", "--out", "x.png"): "there is no video nowhere.mp4",
    ("visualize", "clip.mp4", "--out", "x.jpg"): "x.jpg ends in '.jpg'",
    ("visualize", "clip.mp4", "--out", "x.png", "--weights", "nowhere"): "there is no file or folder nowhere",
    ("visualize", "clip.mp4", "--out", "x.png", "--fps", "0"): "--fps is above 0",
    ("visualize", "clip.mp4", "--out", "x.png", "--recipe", "tinny"): "no recipe at tinny",
    ("plan", "--gpu", "h1000"): "no GPU 'h1000'",
    ("plan", "--mfu", "2"): "--mfu is above 0 and at most 1",
    ("plan", "--video", "big"): "--video is WIDTHxHEIGHT",
    ("report", "taken"): "no run.json",
    ("report", "taken", "--budget", "nowhere"): "no budget at nowhere",
    ("prepare", "check", "nowhere.csv", "--out", "c.csv"): "no manifest at nowhere.csv",
    ("prepare", "transcode", "one.csv", "--out", "o", "--reencode"): "--reencode belongs to --segment",
    ("prepare", "pack", "nowhere.csv", "--out", "o"): "no manifest at nowhere.csv",
    ("demo", "nowhere"): "there is no folder nowhere",
}


def start_all(starts, folder):
    """For each (door, words): its status, what it said, and the heavy modules that are there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MATS_DRY_RUN")}
    done = subprocess.run(
        [sys.executable, "-c", STARTS],
        input=json.dumps(starts),
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_help_through_every_door_comes_without_torch(tmp_path):
    files = [ROOT / "mats_ds" / f"{name}.py" for name in PROGRAMS]
    files += [ROOT / "profiling" / f"{name}.py" for name in ("plan", "report", "scaling")]
    starts = [("mats", ["--help"]), *(("mats", [name, "--help"]) for name in PROGRAMS)]
    starts += [("file", [str(file), "--help"]) for file in files]
    starts += [("module", [f"mats_ds.{name}", "--help"]) for name in PROGRAMS]
    for start, (status, said, heavy) in zip(starts, start_all(starts, tmp_path), strict=True):
        assert (status, heavy) == (0, []), start
        assert "usage" in said.lower(), start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    (folder / "taken").mkdir()
    (folder / "taken" / "theirs.txt").touch()
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    (folder / "one.csv").write_text("path,label\nclip.mp4,0\n")
    (folder / "two.csv").write_text("path,label\nclip.mp4,0\nclip.mp4,1\n")
    (folder / "torn.csv").write_text("path,label\nclip.mp4,x\n")
    (folder / "torn.json").write_text("{")
    (folder / "odd.json").write_text('{"train_micro_batch_size_per_gpu": 2, "zero_optimisation": {"stage": 2}}')
    return folder


def test_what_is_wrong_is_said_by_mats_before_torch_is_imported_and_before_a_rank_is_started(folder):
    before = sorted(folder.rglob("*"))
    answers = start_all([("mats", words) for words in WRONG], folder)
    for (words, part), (status, said, heavy) in zip(WRONG.items(), answers, strict=True):
        assert (status, heavy) == (USAGE_ERROR, []), (words, said)
        assert part in said and "Traceback" not in said, (words, said)
    assert sorted(folder.rglob("*")) == before


def test_every_rank_says_it_before_torch_is_imported_too(folder):
    """As DeepSpeed's own command starts it; not where another machine has files of its own."""
    cases = {words: part for words, part in WRONG.items() if words[0] in ON_RANKS}
    for words, part in cases.items():
        json_of = [] if "--ds_config" in words or words[0] in ("evaluate", "extract") else Z
        cases[words] = ([str(ROOT / "mats_ds" / f"{words[0]}.py"), *json_of, *words[1:]], part)
    answers = start_all([("file", words) for words, _ in cases.values()], folder)
    for (words, part), (status, said, heavy) in zip(cases.values(), answers, strict=True):
        assert (status, heavy) == (USAGE_ERROR, []) and part in said, (words, said)


@pytest.mark.parametrize("arguments", [["optim.lrr=1"], ["data.manifest=nowhere.csv"], ["--reciep", "x"]])
def test_no_rank_is_started_for_what_is_wrong(monkeypatch, capsys, arguments):
    monkeypatch.setattr(launch, "run_in_group", None)
    with pytest.raises((ValueError, SystemExit)):
        launch.launch("pretrain", ["--recipe", "tiny", *arguments])


def test_paths_of_other_machines_are_not_looked_at(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("mats_ds.pretrain.check", lambda arguments, *, reads_paths: asked.append(reads_paths))
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("a slots=1\nb slots=1\n")
    launch.check_arguments("pretrain", ["--hostfile", str(hosts), "data.manifest=nowhere.csv"])
    launch.check_arguments("pretrain", ["data.manifest=nowhere.csv"])
    assert asked == [False, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_imports_after_the_checks_ends_it_in_one_line(folder, tmp_path, number):
    """Also where the package that is being imported takes any error for its own."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('now', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError from None\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "mats_ds" / "pretrain.py"), *TINY],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "now\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    *before, last = said.splitlines()
    assert process.returncode == 128 + number and f"{number.name} before it began: nothing was written" in last
    assert before == ["importing torch and DeepSpeed: this takes some seconds"]
