"""slurm.sbatch on stand-ins for SLURM's programs, which run its commands here, for real; no SLURM
was there to try it on.

`sbatch` runs the batch script as SLURM does (a copy, elsewhere) and again after `scontrol requeue`;
`srun` starts one process a task with SLURM's variables, passes signals on, ends all when one fails,
and returns the largest status.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mats_ds.data.synthetic import write_synthetic_set

ROOT = Path(__file__).resolve().parents[1]
SBATCH = ROOT / "slurm.sbatch"
JOB = "4711"
NUM_STEPS = 5000  # more than are done before the signal comes

SRUN = r"""
import json, os, signal, subprocess, sys, time
options, command = [], sys.argv[1:]
count = int(os.environ["NUM_TASKS"])
while command and command[0].startswith("-"):
    options.append(command.pop(0))
    if options[-1] == "-n":
        count = int(command.pop(0))
open(os.environ["CALLS"], "a").write(json.dumps(["srun", *options]) + "\n")
step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": str(count)}
env_of = lambda task: {**os.environ, **step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
tasks = [subprocess.Popen(command, env=env_of(task)) for task in range(count)]
pass_on = lambda number, frame: [task.send_signal(number) for task in tasks if task.poll() is None]
signal.signal(signal.SIGUSR1, pass_on)
signal.signal(signal.SIGTERM, pass_on)
ended = None
while any(task.poll() is None for task in tasks):
    if ended is None and any(task.poll() for task in tasks):
        ended = time.monotonic()
    if ended and time.monotonic() - ended > 30:
        [task.kill() for task in tasks]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""

SCONTROL = r"""
import json, os, sys
open(os.environ["CALLS"], "a").write(json.dumps(["scontrol", *sys.argv[1:]]) + "\n")
"""

SQUEUE = r"""
import os
print(os.environ.get("JOB_STATE", "RUNNING"))
"""


class Cluster:
    """A folder of stand-ins, a project, and what they were asked."""

    def __init__(self, folder: Path, *, project: Path, num_tasks: int = 2) -> None:
        self.tools, self.calls, self.project = folder / "tools", folder / "calls", project
        self.tools.mkdir(parents=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE}.items():
            (self.tools / name).write_text(f"#!{sys.executable}\n{text}")
            (self.tools / name).chmod(0o755)
        spool = folder / "spool"
        spool.mkdir()
        self.script = Path(shutil.copy(SBATCH, spool / "slurm_script"))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD", "MASTER"))},
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "MATS_PYTHON": sys.executable,
            "CALLS": str(self.calls),
            "NUM_TASKS": str(num_tasks),
            "SLURM_JOB_ID": JOB,
            "SLURM_SUBMIT_DIR": str(project),
            "SLURM_CPUS_PER_TASK": "3",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(self.script), *arguments],
            cwd=self.project,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def asked(self, program: str) -> list[list[str]]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == program]


@pytest.fixture
def cluster(tmp_path):
    """Its trainer writes down what it was given and ends with the status in TASK_STATUS."""
    project = tmp_path / "a project"
    for name in ("pretrain", "finetune"):
        script = project / "mats_ds" / f"{name}.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(
            "import json, os, sys\n"
            "open(f'task-{os.environ[\"SLURM_PROCID\"]}', 'w').write(json.dumps(sys.argv))\n"
            "sys.exit(int(os.environ.get('TASK_STATUS', '0')))\n"
        )
    return Cluster(tmp_path, project=project)


def test_is_valid_bash_and_its_lines_are_known_to_sbatch():
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    lines = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", SBATCH.read_text(), re.MULTILINE)
    options = dict(lines)
    assert len(lines) == len(re.findall(r"^#SBATCH", SBATCH.read_text(), re.MULTILINE)) == len(options)
    assert options["--ntasks-per-node"] == options["--gpus-per-node"], "one task is one rank is one GPU"
    assert options["--signal"] == "USR1@120" and "--requeue" in options
    first_command = SBATCH.read_text().index("\nset -euo")
    assert SBATCH.read_text().rindex("#SBATCH --") < first_command, "sbatch reads none below the first command"


def test_every_task_gets_the_arguments_as_they_are_and_goes_on_where_it_was(cluster):
    done = cluster.run("pretrain", "--recipe", "k400", "--out", "a b", "x.y='c: d'")
    assert done.returncode == 0, done.stderr
    for task in "01":
        words = json.loads((cluster.project / f"task-{task}").read_text())
        assert words[0] == f"{cluster.project}/mats_ds/pretrain.py"
        assert words[1:3] == ["--ds_config", f"{cluster.project}/ds_configs/zero2.json"]
        assert words[5:] == ["--recipe", "k400", "--out", "a b", "x.y='c: d'", "--resume", "auto"]
    assert cluster.asked("srun") == [["--kill-on-bad-exit=1", "--cpus-per-task=3", "--gpu-bind=none"]]


def test_without_out_a_job_keeps_its_folder_over_restarts(cluster):
    assert cluster.run("finetune", "--recipe", "finetune_tiny").returncode == 0
    words = json.loads((cluster.project / "task-0").read_text())
    assert words[words.index("--out") + 1] == f"runs/slurm-{JOB}"
    assert words[words.index("--ds_config") + 1].endswith("zero2_finetune.json")


@pytest.mark.parametrize(
    ("variables", "put_back"),
    [
        ({"TASK_STATUS": "0"}, False),
        ({"TASK_STATUS": "1"}, False),
        ({"TASK_STATUS": "2"}, False),
        ({"TASK_STATUS": "75"}, True),
        ({"TASK_STATUS": "75", "SLURM_RESTART_COUNT": "3"}, True),
        ({"TASK_STATUS": "75", "SLURM_RESTART_COUNT": "200"}, False),
        ({"TASK_STATUS": "75", "JOB_STATE": "CANCELLED"}, False),
        ({"TASK_STATUS": "75", "JOB_STATE": ""}, False),
    ],
)
def test_only_what_was_saved_and_not_cancelled_is_put_back_into_the_queue(cluster, variables, put_back):
    done = cluster.run("pretrain", **variables)
    assert done.returncode == int(variables["TASK_STATUS"]), done.stderr
    assert cluster.asked("scontrol") == ([["requeue", JOB]] if put_back else [])
    assert ("saved" in done.stderr) == (variables["TASK_STATUS"] == "75")


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["pretrain"], {"SLURM_JOB_ID": ""}, "this is a job: type  sbatch"),
        ([], {}, "expected pretrain or finetune"),
        (["--recipe", "k400"], {}, "got '--recipe k400'"),
        (["pretrain"], {"SLURM_SUBMIT_DIR": "/nowhere"}, "there is no /nowhere/mats_ds/pretrain.py"),
        (
            ["pretrain"],
            {"MATS_PYTHON": "", "VIRTUAL_ENV": "/nowhere"},
            "no Python at /nowhere/bin/python: type  bash launch.sh setup",
        ),
    ],
)
def test_a_mistake_is_one_error_before_any_rank_starts(cluster, arguments, variables, words):
    done = cluster.run(*arguments, **variables)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert cluster.asked("srun") == []


@pytest.mark.slow
def test_two_real_ranks_save_at_the_signal_and_go_on_in_the_next_start(tmp_path):
    """The trainer itself. The signal comes to the tasks, as --signal=USR1@120 sends it."""
    cluster = Cluster(tmp_path, project=ROOT)
    videos = write_synthetic_set(tmp_path / "set", num_videos=12, num_frames=24, height=48, width=80).parent
    run = tmp_path / "run"
    arguments = ["pretrain", "--recipe", "tiny", "--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json"), "--out", str(run)]
    arguments += [f"data.manifest={videos}", "clip.num_frames=4", "clip.height=32", "clip.width=48", f"optim.steps={NUM_STEPS}"]
    arguments += ["optim.warmup_steps=2", "run.log_steps=1"]
    log = tmp_path / "log"
    with log.open("w") as file:
        job = subprocess.Popen(
            ["bash", str(cluster.script), *arguments],
            cwd=ROOT,
            env=cluster.environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 200
            while f"step 3/{NUM_STEPS:,} " not in log.read_text():
                assert job.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            steps = [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
            (srun,) = [pid for pid in steps if "srun" in Path(f"/proc/{pid}/cmdline").read_text()]
            os.kill(srun, signal.SIGUSR1)
            assert job.wait(60) == 75, log.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)  # the ranks too: they would hold the job's port
    assert cluster.asked("scontrol") == [["requeue", JOB]]
    said = log.read_text()
    (saved,) = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")]
    assert "4711, start 1" in said and "SIGUSR1" in said and saved >= 3
    again = cluster.run(*arguments, f"run.max_steps={saved + 2}", SLURM_RESTART_COUNT="1")
    assert again.returncode == 0, again.stderr
    assert f"steps: {saved + 1} to {saved + 2}" in again.stderr and "start 2" in again.stdout
    assert len(cluster.asked("scontrol")) == 1


@pytest.mark.slow
def test_launch_sh_with_deepspeeds_slurm_launcher_joins_its_tasks(tmp_path):
    """DeepSpeed asks srun for one task a slot of the hostfile; the ranks find each other by SLURM's
    variables."""
    cluster = Cluster(tmp_path, project=ROOT, num_tasks=99)
    (cluster.tools / "sinfo").write_text("#!/bin/sh\n")
    (cluster.tools / "sinfo").chmod(0o755)
    (tmp_path / "hosts").write_text("alpha slots=1\nbeta slots=1\n")
    videos = write_synthetic_set(tmp_path / "set", num_videos=12, num_frames=24, height=48, width=80).parent
    command = ["bash", str(ROOT / "launch.sh"), "pretrain", "--hostfile", "hosts", "--launcher", "slurm", "--recipe", "tiny"]
    command += ["--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json"), "--out", "run", f"data.manifest={videos}"]
    command += ["clip.num_frames=4", "clip.height=32", "clip.width=48", "run.max_steps=1"]
    done = subprocess.run(command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 ranks x micro-batch 2" in done.stderr
    assert len(list((tmp_path / "run" / "records").iterdir())) == 2
