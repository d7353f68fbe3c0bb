"""What pre-training is worth: fine-tune from pre-trained weights and from scratch at the same
budget, over seeds, and test both.

    python benchmarks/transfer.py [--sets synthetic FOLDER] [--seeds 4] [--jobs 2]
        [--out benchmarks/results]

`synthetic` writes a set of its own whose labels are directions of motion; FOLDER holds videos,
train.csv and val.csv (lines of `path label`), of which small copies are made first. For every seed:
mats_ds/pretrain.py on the training videos, without their labels; mats_ds/finetune.py from these
weights, and from those that pre-training began with ("from scratch"), with the same recipe, steps,
clips and augmentation; mats_ds/evaluate.py on the last weights of each, so that nothing is chosen
with the validation set. All are separate processes of one thread on a CPU. What is done is kept in
--work and not done again. `transfer_page.py` says how certain the figures are.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.transfer_page import PRETRAINED, SCRATCH, Run, SetResult, write_page
from mats_ds.config.load import load_recipe
from mats_ds.core.run_dir import collect_versions
from mats_ds.core.storage.files import write_json
from mats_ds.core.storage.output_folder import open_output_folder
from mats_ds.data.manifest import read_manifest
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.model_spec import describe_model
from mats_ds.models.weights.native import save_weights

ROOT = Path(__file__).resolve().parents[1]
SYNTHETIC = "synthetic"
DONE = "done.json"
COMMAND = "benchmarks/transfer.py"
COPY_SIDE = 96  # pixels of the shorter side of the copies


@dataclass(frozen=True)
class Plan:
    """How one set is trained on. `clip`: overrides of both recipes; `pretraining`, `finetuning`: of
    one of them."""

    pretrain_steps: int
    finetune_steps: int
    num_views: int
    clip: tuple[str, ...]
    pretraining: tuple[str, ...]
    finetuning: tuple[str, ...]


SMALL_CLIP = ("clip.num_frames=8", "clip.height=48", "clip.width=48")
PRETRAINING = ("optim.base_lr=3.2e-2", "optim.warmup_steps=40", "selection.keep_ratio=0.5", "selection.visible_ratio=0.2")
FINETUNING = ("optim.base_lr=1.6e-2", "optim.warmup_steps=20", "finetune.layer_decay=1")
SYNTHETIC_PLAN = Plan(
    pretrain_steps=500,
    finetune_steps=150,
    num_views=3,
    # a mirrored direction is another class
    clip=(*SMALL_CLIP, "clip.flip=false", "clip.crop_scales=[1.0]"),
    pretraining=PRETRAINING,
    finetuning=(*FINETUNING, "selection.keep_ratio=0.3", "model.drop_path=0"),
)
VIDEO_PLAN = Plan(
    pretrain_steps=300,
    finetune_steps=300,
    num_views=5,
    clip=(*SMALL_CLIP, "clip.stride=4"),
    pretraining=PRETRAINING,
    finetuning=(*FINETUNING, "selection.keep_ratio=0.5"),
)


@dataclass(frozen=True)
class VideoSet:
    """Two manifests, and where the runs on them are kept."""

    name: str
    folder: Path
    train: Path
    val: Path


def open_set(source: str, work: Path, *, num_train: int, num_val: int) -> VideoSet:
    """The synthetic set, or small copies of the videos of a folder; made once. Raises SystemExit
    for a folder without lists."""
    if source == SYNTHETIC:
        folder = work / SYNTHETIC
        size = dict(num_frames=48, height=64, width=64)
        train = write_synthetic_set(folder / "train", num_videos=num_train, seed=1, **size)
        return VideoSet(SYNTHETIC, folder, train, write_synthetic_set(folder / "val", num_videos=num_val, seed=2, **size))
    videos = Path(source)
    lists = {part: videos / f"{part}.csv" for part in ("train", "val")}
    for path in lists.values():
        if not path.is_file():
            raise SystemExit(f"{path} is missing: a set is `{SYNTHETIC}` or a folder with videos, train.csv and val.csv")
    folder = work / videos.resolve().name
    for part, path in lists.items():
        options = [str(path), "--root", str(videos), "--out", str(folder / part), "--short-side", str(COPY_SIDE)]
        run_once(folder / part, "prepare.py", ["transcode", *options])
    return VideoSet(folder.name, folder, folder / "train" / "manifest.csv", folder / "val" / "manifest.csv")


def run_once(out: Path, script: str, arguments: Sequence[str], *, made_from: Path | None = None) -> float:
    """Run `python mats_ds/SCRIPT ARGUMENTS`, which writes the folder `out`; returns its CPU
    seconds.

    `out` lies in the benchmark's own folder: what an earlier command has left there is removed.
    Nothing is run where the same command has done so before, on the same run of the command that
    wrote the folder `made_from`.
    Raises SystemExit with the last lines of a command that fails.
    """
    done, log = done_file(out), out.with_name(f"{out.name}.log")
    source = None if made_from is None else json.loads(done_file(made_from).read_text())
    what = {"arguments": [script, *arguments], "made_from": source}
    if done.is_file():
        before = json.loads(done.read_text())
        if {key: before.get(key) for key in what} == what:
            return before["cpu_seconds"]
    done.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "mats_ds" / script), *arguments]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    print(f"{time.strftime('%H:%M:%S')} {script} -> {out}", flush=True)
    with log.open("w") as stream:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {child.returncode}:\n{log.read_text()[-2000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    write_json(done, {**what, "cpu_seconds": cpu_seconds, "ended": time.time()})
    return cpu_seconds


def done_file(out: Path) -> Path:
    """What says that, how and when a folder was finished."""
    return out.with_name(f"{out.name}.{DONE}")


def run_seed(videos: VideoSet, plan: Plan, seed: int, *, ds_config: Path) -> list[Run]:
    """Pre-train once, fine-tune and test twice."""
    folder, num_videos = videos.folder / f"seed-{seed}", len(read_manifest(videos.val))
    shared = ["--ds_config", str(ds_config), f"data.manifest={videos.train}", f"run.seed={seed}", *plan.clip]
    pretraining = ["--recipe", "tiny", f"optim.steps={plan.pretrain_steps}", *shared, *plan.pretraining]
    finetuning = ["--recipe", "finetune_tiny", f"optim.steps={plan.finetune_steps}", *shared, *plan.finetuning]
    views = ["--clips", str(plan.num_views), "--crops", "1", "--device", "cpu"]
    pretrained, fresh = folder / "pretrained", folder / "fresh.safetensors"
    pretraining_seconds = run_once(pretrained, "pretrain.py", [*pretraining, "--out", str(pretrained)])
    write_first_weights(fresh, overrides=[*plan.clip, *plan.pretraining], seed=seed)
    runs = []
    for arm, weights in ((PRETRAINED, pretrained), (SCRATCH, fresh)):
        tuned = folder / f"finetuned-{arm.replace(' ', '-')}"
        tested = tuned.with_name(f"{tuned.name}-tested")
        arguments = [*finetuning, f"finetune.weights={weights}", "--out", str(tuned)]
        seconds = run_once(tuned, "finetune.py", arguments, made_from=pretrained if arm == PRETRAINED else None)
        arguments = ["--model", str(tuned), "--manifest", str(videos.val), *views, "--out", str(tested)]
        run_once(tested, "evaluate.py", arguments, made_from=tuned)
        hits = read_hits(tested / "predictions.csv", num_videos=num_videos)
        runs.append(Run(seed, arm, hits, pretraining_seconds if arm == PRETRAINED else 0.0, seconds))
    return runs


def write_first_weights(path: Path, *, overrides: Sequence[str], seed: int) -> None:
    """The weights that mats_ds/pretrain.py begins with at this seed: the two arms differ in nothing
    but the training between."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MaskedAutoencoder.from_recipe(load_recipe("tiny", overrides))
    save_weights(path, describe_model(model), model.state_dict(), note=f"untrained, seed {seed}")


def read_hits(predictions: Path, *, num_videos: int) -> list[bool]:
    """Of every video whether its likeliest class is the true one. Raises SystemExit where one was
    left out as unreadable."""
    with predictions.open(newline="", encoding="utf-8") as stream:
        hits = [row["label"] == row["predicted"] for row in csv.DictReader(stream)]
    if len(hits) != num_videos:
        raise SystemExit(f"{predictions} has {len(hits)} of {num_videos} videos: the others cannot be read, remove them first")
    return hits


def measure_set(source: str, plan: Plan, options: argparse.Namespace) -> SetResult:
    """All seeds of one set."""
    videos = open_set(source, options.work, num_train=options.train_videos, num_val=options.val_videos)
    ds_config = write_ds_config(options.work, micro_batch=options.micro_batch)
    with ThreadPoolExecutor(options.jobs) as pool:
        of_seeds = list(pool.map(lambda seed: run_seed(videos, plan, seed, ds_config=ds_config), range(options.seeds)))
    train = read_manifest(videos.train)
    runs = [run for runs in of_seeds for run in runs]
    return SetResult(videos.name, plan, len(set(train.label_S.tolist())), len(train), runs)


def write_ds_config(work: Path, *, micro_batch: int) -> Path:
    """ds_configs/zero2_tiny.json with more clips at a time."""
    config = json.loads((ROOT / "ds_configs" / "zero2_tiny.json").read_text()) | {"train_micro_batch_size_per_gpu": micro_batch}
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"zero2_tiny_{micro_batch}.json"
    path.write_text(json.dumps(config, indent=2))
    return path


def choose_plan(source: str, options: argparse.Namespace) -> Plan:
    """The set's own plan, with what the command line changes."""
    plan = SYNTHETIC_PLAN if source == SYNTHETIC else VIDEO_PLAN
    changes = {name: value for name in ("pretrain_steps", "finetune_steps") if (value := getattr(options, name)) is not None}
    return replace(plan, **changes, clip=(*plan.clip, *options.clip))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[SYNTHETIC], metavar="SET", help=f"{SYNTHETIC}, or folders (%(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="of weights, clips, masks and augmentation (%(default)s)")
    parser.add_argument("--pretrain_steps", type=int, metavar="N", help="instead of the set's own number")
    parser.add_argument("--finetune_steps", type=int, metavar="N", help="instead of the set's own number")
    parser.add_argument("--clip", nargs="+", default=[], metavar="clip.key=value", help="changes to both recipes")
    parser.add_argument("--train_videos", type=int, default=512, help=f"of the set {SYNTHETIC} (%(default)s)")
    parser.add_argument("--val_videos", type=int, default=128, help=f"of the set {SYNTHETIC} (%(default)s)")
    parser.add_argument("--micro_batch", type=int, default=16, help="clips at a time (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each in one thread (%(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "transfer", help="folder of videos and runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(argv)
    options.work = options.work.resolve()
    # what lies in there is removed when it is to be made anew, so it must be of this benchmark
    try:
        open_output_folder(options.work, command=COMMAND, is_ours=lambda folder: any(folder.glob(f"*/*.{DONE}")))
    except ValueError as error:
        raise SystemExit(f"error: {str(error).replace('--out', '--work', 1)}") from None
    results = [measure_set(source, choose_plan(source, options), options) for source in options.sets]
    typed = sys.argv[1:] if argv is None else argv
    command = " ".join(["python benchmarks/transfer.py", *map(shlex.quote, typed)])
    page = write_page(options.out, results, command=command, versions=collect_versions())
    print(page.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
