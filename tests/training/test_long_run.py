"""Ten thousand steps of the real trainer: memory, step time, records and what is said stay as they
were at the beginning."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.data.synthetic import write_synthetic_set

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS, WINDOW = 10_000, 1000
SETTINGS = [
    "clip.num_frames=4", "clip.height=16", "clip.width=24", "clip.stride=1", f"optim.steps={NUM_STEPS}", "optim.global_batch=2",
    "data.num_workers=1", "run.checkpoint_steps=500", "run.keep_checkpoints=2", "run.keep_every_steps=5000", "run.log_steps=100",
]  # fmt: skip


def pretrain(arguments):
    from mats_ds.pretrain import main

    terminal = io.StringIO()
    with contextlib.redirect_stderr(terminal):
        status = main(arguments)
    return status, terminal.getvalue()


@pytest.fixture(scope="module")
def long_run(ranks, tmp_path_factory):
    """(run folder, terminal)"""
    folder = tmp_path_factory.mktemp("long")
    videos = write_synthetic_set(folder / "set", num_videos=8, num_frames=8, height=48, width=64).parent
    config = str(ROOT / "ds_configs" / "zero2_tiny.json")
    arguments = ["--recipe", "tiny", "--ds_config", config, "--out", str(folder / "run"), f"data.manifest={videos}", *SETTINGS]
    [(status, terminal)] = ranks(pretrain, 1, arguments, timeout_seconds=1500)
    assert status == 0, terminal
    return folder / "run", terminal


@pytest.fixture(scope="module")
def records(long_run):
    lines = (long_run[0] / "records" / "rank-00000.jsonl").read_text().splitlines()
    assert len(lines) == NUM_STEPS
    return lines, [json.loads(line) for line in lines]


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_memory_stays_flat(records):
    memory = [record["rss_bytes"] for record in records[1]]
    early, late = max(memory[WINDOW : 2 * WINDOW]), max(memory[-WINDOW:])
    print(f"{early / 2**20:.1f} MiB in the second thousand steps, {late / 2**20:.1f} in the last")
    assert late < 1.05 * early


def test_step_time_stays_flat(records):
    seconds = [record["total_seconds"] for record in records[1]]
    # The fastest tenth: a machine with other work disturbs the rest.
    early, late = (statistics.quantiles(part, n=10)[0] for part in (seconds[WINDOW : 2 * WINDOW], seconds[-WINDOW:]))
    print(f"{1e3 * early:.2f} ms a step in the second thousand, {1e3 * late:.2f} in the last")
    assert late < 1.5 * early


def test_what_is_written_is_bounded(long_run, records):
    folder, terminal = long_run
    lengths = [len(line) for line in records[0]]
    assert max(lengths) < 1500 and max(lengths) < 1.2 * min(lengths)
    assert len(terminal.splitlines()) < 50 + NUM_STEPS / 100
    kept = sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    assert kept == [5000, 9500, 10_000]
    beside = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "checkpoints" not in file.parts)
    print(f"{sum(lengths) / NUM_STEPS:.0f} bytes a record, {len(terminal.splitlines())} lines, {beside / 2**20:.1f} MiB beside")
    assert beside < NUM_STEPS * 1500 + (4 << 20)


def test_the_report_takes_seconds(long_run):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, ROOT / "profiling" / "report.py", long_run[0]], capture_output=True, check=True, timeout=120)
    assert (long_run[0] / "report.html").stat().st_size < 4 << 20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 60
