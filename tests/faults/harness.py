"""Starts real training runs, hurts them, and looks at what is left: what `run.py` and the tests of
faults share.

A run is `mats_ds/pretrain.py` on a small synthetic set. Where a fault does not concern the
launcher, its ranks are forked from a server that has imported everything once (tests/ranks.py says
why); no launcher then ends the others, they have to by themselves.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mats_ds.data.synthetic import write_synthetic_set
from tests.ranks import PRELOADED, free_port

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS, CHECKPOINT_STEPS = 40, 4
HANG_SECONDS = 15.0
# in the run folder: when an injected fault happened, seconds since 1970
FAULT_FILE = "fault-began.txt"
SETTINGS = [
    "clip.num_frames=4", "clip.height=32", "clip.width=48", f"optim.steps={NUM_STEPS}", "optim.warmup_steps=2",
    "run.log_steps=10", f"run.checkpoint_steps={CHECKPOINT_STEPS}", f"run.hang_seconds={HANG_SECONDS}",
]  # fmt: skip


def write_videos(folder: Path) -> Path:
    """20 short videos, 100 kB in all."""
    return write_synthetic_set(folder / "set", num_videos=20, num_frames=24, height=48, width=80).parent


@dataclass
class Job:
    """One start of a run: its processes and what they said."""

    folder: Path
    processes: list[psutil.Process]
    handles: list[Any]
    log: Path
    began: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float) -> float | None:
        """Seconds until all its processes are gone, None if they are not after that long (they are
        killed then)."""
        start = time.monotonic()
        while any(is_alive(process) for process in self.processes):
            if time.monotonic() - start > seconds:
                self.kill()
                return None
            time.sleep(0.02)
        return time.monotonic() - start

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for handle in self.handles:
            handle.join(10) if hasattr(handle, "join") else handle.wait(10)

    def statuses(self) -> list[int | None]:
        """Exit status by rank (negative: the signal that killed it); of the launcher, where there
        is one."""
        found = []
        for handle in self.handles:
            if hasattr(handle, "join"):
                handle.join(10)
                found.append(handle.exitcode)
            else:
                found.append(handle.wait(10))
        return found

    def said(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.log.parent.glob(f"{self.log.name}*")))

    def last_words(self) -> list[str]:
        """The lines with which ranks ended: one each that says what happened."""
        return [line for line in self.said().splitlines() if re.match(r"error: |(\S+: )?(stopped|interrupted): ", line)]


def start_ranks(
    folder: Path, videos: Path, *, world_size: int = 2, fault: Mapping[str, Any] | None = None, more: Sequence[str] = ()
) -> Job:
    """Ranks without a launcher, going on where the folder has a run. fault: see `be_rank`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "mats_ds.data.loading.loader"])
    log = new_log(folder)
    arguments = [*arguments_of(folder, videos), *more]
    port, handles = free_port(), []
    for rank in range(world_size):
        place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world_size, LOCAL_WORLD_SIZE=world_size, MASTER_PORT=port)
        handle = context.Process(target=be_rank, args=(place, arguments, str(log), dict(fault or {})))
        handle.start()
        handles.append(handle)
    return Job(folder, [psutil.Process(handle.pid) for handle in handles], handles, log)


def start_launcher(folder: Path, videos: Path, *, num_gpus: int = 2, variables: Mapping[str, str] | None = None) -> Job:
    """`deepspeed --num_gpus N mats_ds/pretrain.py`, as users start it; `find_ranks` waits for its
    ranks."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(num_gpus), str(ROOT / "mats_ds/pretrain.py")]
    return start_command(command, folder, videos, variables=variables or {})


def start_launch_sh(folder: Path, videos: Path, *, num_gpus: int = 2) -> Job:
    """`bash launch.sh pretrain`, likewise."""
    command = ["bash", str(ROOT / "launch.sh"), "pretrain", "--num_gpus", str(num_gpus)]
    variables = {"MATS_PYTHON": sys.executable, "MATS_DRY_RUN": "", "CUDA_VISIBLE_DEVICES": ""}
    return start_command(command, folder, videos, variables=variables)


def start_command(command: Sequence[str], folder: Path, videos: Path, *, variables: Mapping[str, str]) -> Job:
    log = new_log(folder)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables,
    }
    with log.open("w") as stream:
        handle = subprocess.Popen(
            [*command, *arguments_of(folder, videos)], stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    return Job(folder, [psutil.Process(handle.pid)], [handle], log)


def find_ranks(job: Job, num_ranks: int, seconds: float = 300.0) -> list[psutil.Process]:
    """The rank processes below a launcher once the first step is recorded; adds them to the job."""
    wait_until(lambda: read_losses(job.folder), job, seconds)
    ranks = list_ranks(job)
    assert len(ranks) == num_ranks, [process.cmdline() for process in ranks]
    job.processes += [process for process in job.processes[0].children(recursive=True)]
    return ranks


def list_ranks(job: Job) -> list[psutil.Process]:
    """The rank processes that are there below a launcher."""
    found = []
    for process in job.processes[0].children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if any(word.endswith("/pretrain.py") for word in words) and not any(
                "launch" in Path(word).name for word in words[:4]
            ):
                found.append(process)
    return found


def arguments_of(folder: Path, videos: Path) -> list[str]:
    resume = ["--resume", "auto"] if (folder / "run.json").exists() else []
    config = str(ROOT / "ds_configs" / "zero2_tiny.json")
    return ["--recipe", "tiny", "--ds_config", config, "--out", str(folder), *resume, f"data.manifest={videos}", *SETTINGS]


def new_log(folder: Path) -> Path:
    logs = folder.with_name(f"{folder.name}-logs")
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"start-{len(list(logs.glob('*.log'))):03d}.log"
    # the ranks' own files, LOG.RANK, come later: two starts in one moment must not share them
    log.touch(exist_ok=False)
    return log


def be_rank(place: Mapping[str, int], arguments: list[str], log: str, fault: Mapping[str, Any]) -> None:
    """One rank. fault: {"kind": "nan", "steps": [...]}, {"kind": "hang" | "memory", "step": N,
    "rank": R}, {"kind": "kill at latest", "is_before": B}, {"kind": "no privileges"}.
    """
    import torch

    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    stream = open(f"{log}.{place['RANK']}", "w", buffering=1)  # noqa: SIM115 (until the process ends)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream

    import mats_ds.pretrain as pretrain
    from mats_ds.core.cli import leave
    from mats_ds.distributed import ranks as engine
    from mats_ds.training import run

    # no launcher is here to end the others of a rank that dies before it has joined
    engine.JOIN_SECONDS = HANG_SECONDS

    if fault.get("kind") == "kill at latest":
        kill_at_latest(is_before=fault["is_before"])
    elif fault.get("kind") == "no privileges":
        drop_privileges()
    elif fault:
        run.fit = inject(run.fit, fault)
    try:
        leave(pretrain.main(arguments))
    except SystemExit as end:
        os._exit(end.code)


def kill_at_latest(*, is_before: bool) -> None:
    """SIGKILL this process in the moment when `latest` is about to move to its second checkpoint,
    or has just done so."""
    replace, moves = os.replace, []

    def replace_and_die(source: Any, target: Any, **rest: Any) -> None:
        moves.extend([target] if Path(target).name == "latest" else [])
        is_time = len(moves) == 2 and Path(target).name == "latest"
        if is_time and is_before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **rest)
        if is_time:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die


def drop_privileges() -> None:
    """Let the permissions of files count for this process although it is root's. Source: capset(2),
    capability.h of Linux."""
    import ctypes

    version, dac_override, dac_read_search = 0x20080522, 1 << 1, 1 << 2
    # effective, permitted, inheritable of capabilities 0 to 31, then of the rest
    words = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(version, 0)
    library = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        return
    assert library.capget(header, words) == 0
    words[0] &= ~(dac_override | dac_read_search)
    words[1] &= ~(dac_override | dac_read_search)
    assert library.capset(header, words) == 0, os.strerror(ctypes.get_errno())


def inject(fit: Callable, fault: Mapping[str, Any]) -> Callable:
    """`fit` with a fault in the micro-batches or the losses that reach it."""
    import torch

    def faulty_fit(engine, batches, *, run, loss_of, **rest):
        micro = {"number": run.first_step * run.accumulation - 1}

        def hurt(source):
            for batch in source:
                micro["number"] += 1
                step = micro["number"] // run.accumulation + 1
                if fault["kind"] != "nan" and (step, run.rank) == (fault["step"], fault["rank"]):
                    Path(run.run_dir, FAULT_FILE).write_text(str(time.time()))
                    if fault["kind"] == "hang":
                        time.sleep(3600)
                    torch.empty(1 << 50)
                yield batch

        def loss(engine, batch):
            step = micro["number"] // run.accumulation + 1
            is_nan = fault["kind"] == "nan" and step in fault["steps"]
            return loss_of(engine, batch) * (float("nan") if is_nan else 1.0)

        fit(engine, hurt(batches), run=run, loss_of=loss, **rest)

    return faulty_fit


def read_losses(folder: Path, rank: int = 0) -> dict[int, float]:
    """Loss by step, the last record of each; a line that was torn by a kill is no record."""
    file, losses = folder / "records" / f"rank-{rank:05d}.jsonl", {}
    if file.exists():
        for line in file.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                losses[record["step"]] = float(record["loss"])  # "NaN" is a text in JSON
    return losses


def newest_step(folder: Path) -> int:
    """The step of the newest published checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")), default=0)


def wait_until(is_so: Callable[[], Any], job: Job, seconds: float = 300.0) -> None:
    """Raises TimeoutError when it is not so by then, or when the job has ended before."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until or not any(is_alive(process) for process in job.processes):
            words = "\n".join(job.said().splitlines()[-15:])
            job.kill()
            raise TimeoutError(f"the run did not come so far:\n{words}")
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
