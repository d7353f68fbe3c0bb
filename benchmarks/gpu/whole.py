"""The trainer itself on this machine: videos -> NVDEC -> training -> records -> report; what limits
it.

On the synthetic set, and on real clips where a folder is given. Clips/s and the fraction of time
that training waits for clips are of the steps after the first third. The report of the run is kept
beside the results.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.part import NEEDS_GPU, Part, begin_part  # noqa: E402

WAITING_IS_MUCH = 0.10
MICRO_BATCH = 32


def main() -> int:
    part = begin_part("whole")
    needed = ("torch", "timm", "einops", "deepspeed", "pydantic", "yaml", "av", *(("nvidia.dali",) if part.on_gpu else ()))
    if absent := part.lacks(*needed):
        part.add_line("training", f"not run without {', '.join(absent)}")
        return part.finish()
    with tempfile.TemporaryDirectory() as folder:
        train(part, Path(folder), "synthetic", write_set(part, Path(folder) / "set"))
        if part.videos and Path(part.videos).is_dir():
            train(part, Path(folder), "real", part.videos)
        else:
            part.add_line("training, real clips", "give --videos DIR")
    return part.finish()


def write_set(part: Part, folder: Path) -> str:
    from mats_ds.data.synthetic import write_synthetic_set

    sizes = dict(num_videos=48, num_frames=150, height=256, width=340) if part.on_gpu else dict(num_videos=6, num_frames=40)
    return str(write_synthetic_set(folder, **sizes))


def train(part: Part, folder: Path, name: str, manifest: str) -> None:
    """One run of mats_ds/pretrain.py by itself, and its report."""
    run_dir, config = folder / f"run-{name}", folder / "ds.json"
    steps = (40 if part.quick else 60) if part.on_gpu else 6
    settings = json.loads((ROOT / "ds_configs" / ("zero2.json" if part.on_gpu else "zero2_tiny.json")).read_text("utf-8"))
    settings["train_micro_batch_size_per_gpu"] = MICRO_BATCH if part.on_gpu else 2
    config.write_text(json.dumps(settings), encoding="utf-8")
    overrides = [f"data.manifest={manifest}", f"run.max_steps={steps}", "data.max_bad_fraction=0.5", "run.checkpoint_steps=0"]
    overrides += ["model.name=small", f"optim.global_batch={MICRO_BATCH}"] if part.on_gpu else ["optim.global_batch=4"]
    recipe = "default" if part.on_gpu else "tiny"
    command = [sys.executable, "mats_ds/pretrain.py", "--recipe", recipe, "--ds_config", str(config), "--out", str(run_dir)]
    status = subprocess.run([*command, *overrides], cwd=ROOT, env=rank_environment(part)).returncode
    if status:
        part.add_line(f"training, {name}", f"ended with status {status}: see the log", "MISSED")
        return
    report(part, name, run_dir)


def rank_environment(part: Part) -> dict[str, str]:
    """Of the only rank of a run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ours = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    ours |= {"MASTER_PORT": str(port)} | ({} if part.on_gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})
    return {**os.environ, **ours}


def report(part: Part, name: str, run_dir: Path) -> None:
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
    part.add(run=name, clips_per_second=speed, waiting=waiting, records=len(records), peak_bytes=records[-1].device_peak_bytes)
    part.add_line(f"training, {name}", text, "" if part.on_gpu else NEEDS_GPU)
    made = subprocess.run([sys.executable, "profiling/report.py", str(run_dir)], cwd=ROOT, capture_output=True, text=True)
    page = run_dir / "report.html"
    if page.is_file():
        kept = part.path.with_name(f"report-{name}.html")
        shutil.copy(page, kept)
        part.add_line(f"report, {name}", f"kept as {kept.name}")
    else:
        part.add_line(f"report, {name}", f"none was written: {(made.stderr or made.stdout)[-120:]}", "MISSED")


if __name__ == "__main__":
    raise SystemExit(main())
