"""What the programs compute on the golden set, as one tree of plain values: the scale that every
refactoring is held against.

    python -m tests.golden.measure    # writes expected.json and the checkpoint beside it

Only a change that is meant to change numbers writes them anew, and its commit says which and why.
The model is far smaller than `tiny` (26,000 parameters), so that a checkpoint of it fits into the
repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.golden.videos import write_set
from tests.ranks import run_ranks

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXPECTED, CHECKPOINT = HERE / "expected.json", HERE / "checkpoint"
DS_CONFIG = ["--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json")]
SUM = "sha256"  # a key whose value only the same machine and versions give again
CLIP = ["clip.num_frames=8", "clip.height=32", "clip.width=48", "optim.global_batch=4"]
STEPS, HALF = 40, 20
MACHINE_KEYS = {"balance", "started", "run_dir", "waiting_share"}
MACHINE_WORDS = ("second", "time", "version", "command", "path", "host", "date", "phase", "peak_", "projected")
PRETRAINING = ["--recipe", "tiny", *DS_CONFIG, *CLIP, f"optim.steps={STEPS}", "optim.warmup_steps=4", "run.seed=3"]
FINETUNING = [
    "--recipe", "finetune_tiny", *DS_CONFIG, *CLIP, f"optim.steps={HALF}", "optim.warmup_steps=3", "optim.base_lr=6.4e-2",
    "run.seed=5", "model.drop_path=0.2", "finetune.ema_decay=0.9", "finetune.head_dropout=0.1", "finetune.layer_decay=0.75",
    "augment.mixup=0.8", "augment.cutmix=1.0", "augment.random_erasing=0.25", "augment.rand_augment=rand-m7-n2-mstd0.5-inc1",
    "augment.random_resized_crop=[0.3,1.0]", "evaluation.every_epochs=2", "evaluation.clips=2", "evaluation.crops=1",
]  # fmt: skip


def program(name: str, arguments: list[str], folder: str, statuses: tuple[int, ...]) -> str:
    """Standard output of `mats_ds/NAME.py ARGUMENTS` with the golden set's model, started in
    `folder`.

    Raises RuntimeError with all that it said where it ends with none of `statuses`.
    """
    import importlib

    from mats_ds.models.sizes import MODEL_SIZES, ModelSize

    MODEL_SIZES["tiny"] = ModelSize(24, 2, 3, 18, 1, 2)
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.chdir(folder)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = importlib.import_module(f"mats_ds.{name}").main(arguments)
        except SystemExit as stop:
            status = stop.code
    if status not in statuses:
        raise RuntimeError(f"{name} ended with {status}:\n{output.getvalue()}\n{errors.getvalue()}")
    return output.getvalue()


def run(name: str, *arguments: Any, folder: Path, num_ranks: int = 1, statuses: tuple[int, ...] = (0,)) -> str:
    """What rank 0 of a program prints."""
    return run_ranks(program, num_ranks, name, [str(each) for each in arguments], str(folder), statuses)[0]


def run_profiling(name: str, *arguments: Any, folder: Path) -> str:
    """Standard output of `python profiling/NAME.py ARGUMENTS`."""
    import subprocess

    command = [sys.executable, str(ROOT / "profiling" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: over the budget, or not judged
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def measure_pretraining(folder: Path) -> dict[str, Any]:
    """40 steps on two ranks, and the last 20 again from a checkpoint of the first."""
    manifest = "data.manifest=train/list.csv"
    run("pretrain", *PRETRAINING, manifest, "--out", "pre", f"run.checkpoint_steps={HALF}", folder=folder, num_ranks=2)
    shutil.copytree(folder / "pre", folder / "half")
    remove_after_half(folder / "half")
    run("pretrain", *PRETRAINING, manifest, "--out", "half", "--resume", "auto", folder=folder, num_ranks=2)
    return {"straight": read_steps(folder / "pre"), "resumed": read_steps(folder / "half")[-HALF:]}


def measure_old_checkpoint(folder: Path) -> dict[str, Any]:
    """The last 20 steps from the checkpoint in the repository, which older code has written."""
    manifest = "data.manifest=train/list.csv"
    shutil.copytree(CHECKPOINT, folder / "old")
    run("pretrain", *PRETRAINING, manifest, "--out", "old", "--resume", "auto", folder=folder, num_ranks=2)
    return {"resumed": read_steps(folder / "old")[-HALF:]}


def measure_finetuning(folder: Path) -> dict[str, Any]:
    """20 steps on two ranks with drop path, mixing, an average of the weights and tests on the
    way."""
    lists = ["data.manifest=train/list.csv", "evaluation.manifest=val/list.csv"]
    run("finetune", *FINETUNING, *lists, "finetune.weights=pre", "--out", "tuned", folder=folder, num_ranks=2)
    tests = [json.loads(line) for line in (folder / "tuned" / "evaluation.jsonl").read_text().splitlines()]
    return {"steps": read_steps(folder / "tuned"), "tests": keep_results(tests)}


def measure_evaluation(folder: Path) -> dict[str, Any]:
    """results.json without its account of the run, and predictions.csv, on two ranks."""
    options = ["--model", "tuned", "--weights_from", "last", "--manifest", "val/list.csv", "--clips", 2, "--crops", 3]
    run("evaluate", *options, "--keep_ratio", 0.3, 1, "--out", "tested", folder=folder, num_ranks=2)
    results = keep_results(json.loads((folder / "tested" / "results.json").read_text()))
    for name in ("run", "weights_used"):  # the second names a file
        results.pop(name, None)
    predictions = read_table(folder / "tested" / "keep-1" / "predictions.csv")
    return {"results": results, "predictions": [[cell.rpartition("/")[2] for cell in row] for row in predictions]}


def measure_features(folder: Path) -> dict[str, Any]:
    """The norm of every array of every shard, and the digest of its bytes."""
    from safetensors.numpy import load_file

    options = ["--model", "pre", "--manifest", "val/list.csv", "--clips", 2, "--crops", 1]
    run("extract", *options, "--pool", "tubelet", "--shard_videos", 3, "--out", "features", folder=folder)
    shards = {}
    for path in sorted((folder / "features").rglob("*.safetensors")):
        for name, array in sorted(load_file(path).items()):
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            norm = float((array.astype(float) ** 2).sum() ** 0.5)
            shards[f"{path.stem}.{name}"] = {"shape": list(array.shape), "norm": norm, SUM: digest}
    return shards


def measure_check(folder: Path) -> list[list[str]]:
    """The manifest that `prepare check` writes of the videos and of one file that is none."""
    (folder / "train" / "torn.mkv").write_bytes((folder / "train" / "00.mkv").read_bytes()[:900])
    listed = (folder / "train" / "list.csv").read_text() + "torn.mkv,1\n"
    (folder / "train" / "with_torn.csv").write_text(listed)
    source = folder / "train" / "with_torn.csv"
    # a bad one is left out
    run("prepare", "check", source, "--out", "checked.csv", "--workers", 1, folder=folder)
    header, *rows = read_table(folder / "checked.csv")
    kept = [number for number, name in enumerate(header) if name not in ("decode_seconds", "clip_seconds", "bytes")]
    return [[row[number].rpartition("/")[2] for number in kept] for row in (header, *rows)]


def measure_plans(folder: Path) -> dict[str, Any]:
    """The plan's figures for the default recipe, a fine-tuning and ZeRO-3 of a larger model."""
    questions = {
        "default": [],
        "finetune": ["--recipe", "finetune_k400", "--gpus", 4, "--gpu", "h100", "--micro_batch", 24],
        "large": ["--recipe", "ssv2", "--ds_config", ROOT / "ds_configs" / "zero3.json", "model.name=large"],
    }
    plans = {name: run_profiling("plan", "--json", *words, folder=folder) for name, words in questions.items()}
    return {name: keep_results(json.loads(plan)) for name, plan in plans.items()}


def measure_report(folder: Path) -> dict[str, Any]:
    """report.json of the pre-training without what depends on the clock or the machine."""
    return keep_results(json.loads(run_profiling("report", folder / "pre", "--json", folder=folder)))


MEASURES: dict[str, Callable[[Path], Any]] = {
    "pretraining": measure_pretraining,
    "finetuning": measure_finetuning,
    "evaluation": measure_evaluation,
    "features": measure_features,
    "check": measure_check,
    "plans": measure_plans,
    "report": measure_report,
}


def write_videos(folder: Path) -> None:
    write_set(folder / "train", num_videos=10)
    write_set(folder / "val", num_videos=5, first_number=10)


def read_steps(run_dir: Path) -> list[dict[str, Any]]:
    """Loss, gradient norm and counts of every step, as rank 0 recorded them."""
    names = ("step", "epoch", "loss", "grad_norm", "learning_rate", "num_clips", "num_substitutes", "skipped")
    records = [json.loads(line) for line in (run_dir / "records" / "rank-00000.jsonl").read_text().splitlines()]
    return [{name: record[name] for name in names if name in record} for record in records]


def find_machine() -> dict[str, str]:
    """What the last bits of a result depend on."""
    import torch

    cpu = next((line for line in read_lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    versions = {name: metadata.version(name) for name in ("torch", "av", "numpy", "deepspeed")}
    return {**versions, "cpu": cpu.partition(":")[2].strip(), "kernels": torch.backends.cpu.get_cpu_capability()}


def read_lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def read_table(path: Path) -> list[list[str]]:
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def keep_results(tree: Any) -> Any:
    """The tree without times, versions, paths and what else another machine or hour gives, and
    without sentences."""
    if isinstance(tree, dict):
        kept = {key: keep_results(value) for key, value in tree.items() if not is_of_the_machine(key)}
        return {key: value for key, value in kept.items() if not is_sentence(value)}
    if isinstance(tree, list):
        return [keep_results(each) for each in tree if not is_sentence(each)]
    return tree


def is_sentence(value: Any) -> bool:
    return isinstance(value, str) and (" " in value or "/" in value)


def is_of_the_machine(key: str) -> bool:
    return key in MACHINE_KEYS or any(word in key for word in MACHINE_WORDS)


def remove_after_half(run_dir: Path) -> None:
    """Leave the checkpoint of step 20 alone, as after a kill."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.name != f"step-{HALF:08d}":
            shutil.rmtree(folder)
    (run_dir / "checkpoints" / "latest").write_text(f"step-{HALF:08d}")


def keep_checkpoint(run_dir: Path) -> None:
    """A run folder as of step 20 that resuming needs, without DeepSpeed's scripts and without
    pictures."""
    for name in ("run.json", "recipe.yaml", "ds_config.json"):
        CHECKPOINT.mkdir(exist_ok=True)
        shutil.copy(run_dir / name, CHECKPOINT / name)
    run = json.loads((CHECKPOINT / "run.json").read_text())
    (CHECKPOINT / "run.json").write_text(json.dumps({**run, "versions": {}}, indent=1) + "\n")
    shutil.copytree(run_dir / "checkpoints" / f"step-{HALF:08d}", CHECKPOINT / "checkpoints" / f"step-{HALF:08d}")
    (CHECKPOINT / "checkpoints" / "latest").write_text(f"step-{HALF:08d}")


def write_expected() -> None:
    """Measure, and write expected.json and the checkpoint. The checkpoint stays where there is one:
    it is of older code."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_videos(folder)
        tree = {name: measure(folder) for name, measure in MEASURES.items()}
        if not CHECKPOINT.exists():
            keep_checkpoint(folder / "pre")
    EXPECTED.write_text(json.dumps({"machine": find_machine(), **tree}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_expected()
