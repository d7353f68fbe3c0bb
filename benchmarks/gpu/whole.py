"""The trainer itself on this machine: videos -> NVDEC -> training -> records -> report; what limits
it, its memory beside the plan's, and where its host waits for the device.

ViT-B with micro-batches of 128 on the synthetic set; resumed under torch's debug mode, which names
every line that waits; then on real clips where a folder is given. Clips/s and the fraction of time
that training waits for clips are of the steps after the first third. The report of every run is
kept beside the results.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.part import MISSED, NEEDS_GPU, Part, begin_part  # noqa: E402

WAITING_IS_MUCH = 0.10
MICRO_BATCH = 128
GOAL_PLAN = 0.05
# Every line of Python that makes the host wait for the device becomes a warning.
WAITS_NAMED = (
    "import runpy, sys, torch\n"
    "torch.cuda.set_sync_debug_mode('warn')\n"
    "sys.argv = sys.argv[1:]\n"
    "sys.path[0] = 'mats_ds'\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def main() -> int:
    part = begin_part("whole")
    needed = ("torch", "timm", "einops", "deepspeed", "pydantic", "yaml", "av", *(("nvidia.dali",) if part.on_gpu else ()))
    if absent := part.lacks(*needed):
        part.add_line("training", f"not run without {', '.join(absent)}")
        return part.finish()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_set(part, Path(folder) / "set")
        steps = (20 if part.quick else 40) if part.on_gpu else 6
        run_dir = Path(folder) / "run-synthetic"
        if train(part, run_dir, manifest, steps=steps):
            report(part, run_dir)
            compare_with_plan(part, run_dir)
            count_waits(part, run_dir, manifest, first=steps, more=8 if part.on_gpu else 2)
        real_dir = Path(folder) / "run-real"
        if not (part.videos and Path(part.videos).is_dir()):
            part.add_line("training, real clips", "give --videos DIR")
        elif train(part, real_dir, part.videos, steps=steps):
            report(part, real_dir)
    return part.finish()


def write_set(part: Part, folder: Path) -> str:
    from mats_ds.data.synthetic import write_synthetic_set

    sizes = dict(num_videos=64, num_frames=150, height=256, width=352) if part.on_gpu else dict(num_videos=6, num_frames=40)
    return str(write_synthetic_set(folder, **sizes))


def command_of(part: Part, run_dir: Path, manifest: str, *, steps: int) -> list[str]:
    """The program and its arguments, without Python itself."""
    config = run_dir.with_suffix(".json")
    settings = json.loads((ROOT / "ds_configs" / ("zero2.json" if part.on_gpu else "zero2_tiny.json")).read_text("utf-8"))
    settings["train_micro_batch_size_per_gpu"] = MICRO_BATCH if part.on_gpu else 2
    config.write_text(json.dumps(settings), encoding="utf-8")
    recipe = "default" if part.on_gpu else "tiny"
    command = ["mats_ds/pretrain.py", "--recipe", recipe, "--ds_config", str(config), "--out", str(run_dir)]
    command += [f"data.manifest={manifest}", f"run.max_steps={steps}", "data.max_bad_fraction=0.5", "run.log_steps=1"]
    return command + (["model.name=base", f"optim.global_batch={MICRO_BATCH}"] if part.on_gpu else ["optim.global_batch=4"])


def train(part: Part, run_dir: Path, manifest: str, *, steps: int) -> bool:
    """Whether a run of mats_ds/pretrain.py by itself came to its end."""
    command = [sys.executable, *command_of(part, run_dir, manifest, steps=steps)]
    status = subprocess.run(command, cwd=ROOT, env=rank_environment(part)).returncode
    if status:
        part.add_line(run_dir.name, f"ended with status {status}: see the log", MISSED)
    return status == 0


def rank_environment(part: Part) -> dict[str, str]:
    """Of the only rank of a run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ours = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    ours |= {"MASTER_PORT": str(port)} | ({} if part.on_gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})
    return {**os.environ, **ours}


def report(part: Part, run_dir: Path) -> None:
    from mats_ds.metering.record_reader import read_records

    records = list(read_records(run_dir))
    steady = records[len(records) // 3 :]
    speed = sum(record.num_clips for record in steady) / sum(record.total_seconds for record in steady)
    waiting = sum(record.data_seconds for record in steady) / sum(record.total_seconds for record in steady)
    busy = [record.nvml_utilization_percent for record in steady if record.nvml_utilization_percent is not None]
    limit = "the loader limits it" if waiting > WAITING_IS_MUCH else "the model limits it"
    text = f"{speed:.4g} clips/s, {waiting:.0%} of the time waiting for clips: {limit}"
    text += f", GPU busy {statistics.mean(busy):.0f}%" if busy else ""
    mfu = [record.mfu for record in steady if record.mfu is not None]
    text += f", MFU {statistics.median(mfu):.1%}" if mfu else ""
    peak_bytes = max(record.device_peak_bytes or 0 for record in records)
    part.add(run=run_dir.name, clips_per_second=speed, waiting=waiting, records=len(records), peak_bytes=peak_bytes)
    part.add_line(run_dir.name, text, "" if part.on_gpu else NEEDS_GPU)
    made = subprocess.run([sys.executable, "profiling/report.py", str(run_dir)], cwd=ROOT, capture_output=True, text=True)
    page = run_dir / "report.html"
    if page.is_file():
        kept = part.path.with_name(f"report-{run_dir.name}.html")
        shutil.copy(page, kept)
        part.add_line(f"report of {run_dir.name}", f"kept as {kept.name}")
    else:
        part.add_line(f"report of {run_dir.name}", f"none was written: {(made.stderr or made.stdout)[-120:]}", MISSED)


def compare_with_plan(part: Part, run_dir: Path) -> None:
    """The driver's peak and torch's beside the plan of the run."""
    from mats_ds.reporting.figures import read_figures
    from mats_ds.reporting.memory import compare_with_plan as list_pairs

    pairs = [pair for pair in list_pairs(read_figures(run_dir)) if pair.planned is not None]
    part.add(run=run_dir.name, pairs={pair.name: [pair.planned, pair.measured] for pair in pairs})
    if not part.on_gpu:
        part.add_line("plan of the run", f"{len(pairs)} figures are planned", NEEDS_GPU)
        return
    for pair in pairs:
        if pair.name == "peak memory of a GPU":
            text = f"planned {pair.planned_text}, measured {pair.measured_text}"
            part.judge(pair.name, text, holds=pair.ratio is not None and abs(pair.ratio - 1) <= GOAL_PLAN)
        elif pair.ratio is not None:
            part.add_line(pair.name, f"planned {pair.planned_text}, measured {pair.measured_text}, {pair.ratio_text} x")


def count_waits(part: Part, run_dir: Path, manifest: str, *, first: int, more: int) -> None:
    """Go on with the run, every wait of the host for the device named, and see that it goes on
    where it was."""
    command = [*command_of(part, run_dir, manifest, steps=first + more), "--resume", "auto"]
    start = [sys.executable, "-W", "always", "-c", WAITS_NAMED] if part.on_gpu else [sys.executable]
    done = subprocess.run([*start, *command], cwd=ROOT, env=rank_environment(part), capture_output=True, text=True)
    print(done.stdout + done.stderr, flush=True)
    expected = f"steps: {first + 1} to {first + more}"
    if done.returncode or expected not in done.stderr:
        part.add_line("resume", f"ended with status {done.returncode}, without '{expected}': see the log", MISSED)
        return
    part.add_line("resume", f"went on: {expected}")
    if not part.on_gpu:
        part.add_line("waits of the host", "named by torch's debug mode", NEEDS_GPU)
        return
    # The first step waits while libraries are loaded; what waits in every step appears once a step.
    waits = Counter(re.findall(r"(\S+\.py:\d+): UserWarning: called a synchronizing CUDA operation", done.stderr))
    every_step = {where: count for where, count in waits.items() if count >= more}
    part.add(waits=dict(waits))
    text = ", ".join(f"{where} {count} x" for where, count in sorted(every_step.items(), key=lambda item: -item[1])[:5])
    part.judge(f"lines that wait in each of {more} steps", text or "none", holds=not every_step)


if __name__ == "__main__":
    raise SystemExit(main())
