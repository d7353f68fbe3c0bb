"""Two hosts, two ranks each, with the real launcher over a real cable between network namespaces;
see hosts.py.

One is cut off in mid-run: every rank ends within a bounded time and says why, and the other host
goes on alone. Then what must not start: another recipe on one host, and a run folder that is not
shared. And the whole way through launch.sh, pdsh and ssh.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mats_ds.config.load import load_recipe
from mats_ds.data.synthetic import write_synthetic_set
from tests.faults.hosts import HOST_NAMES, NETWORK_CARD, TwoHosts, why_not

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / "mats_ds" / "pretrain.py"
HANG_SECONDS = 20  # run.hang_seconds: how long a rank waits for the others
START_SECONDS = 240  # four ranks on two cores import torch and DeepSpeed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}")]


@pytest.fixture
def folder(tmp_path):
    write_synthetic_set(tmp_path / "set", num_videos=12, num_frames=24, height=48, width=80)
    return tmp_path


@pytest.fixture
def hosts():
    with TwoHosts() as hosts:
        yield hosts


def arguments_of(folder: Path, *more: str) -> list[str]:
    arguments = ["--recipe", "tiny", "--ds_config", str(ROOT / "ds_configs" / "zero2_tiny.json"), "--out", str(folder / "run")]
    arguments += [f"data.manifest={folder / 'set'}", "clip.num_frames=4", "clip.height=32", "clip.width=48", "optim.steps=5000"]
    arguments += ["optim.warmup_steps=2", "run.log_steps=1", "run.checkpoint_steps=2", f"run.hang_seconds={HANG_SECONDS}"]
    return [*arguments, *more]


def said_on(folder: Path) -> list[str]:
    """What each host printed."""
    return [(folder / "logs" / f"{name}.log").read_text() for name in HOST_NAMES]


def wait_for_end(launched: list[subprocess.Popen], *, seconds: float, folder: Path) -> list[int]:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in launched):
        assert time.monotonic() < deadline, "\n".join(["not ended after", f"{seconds} s", *said_on(folder)])
        time.sleep(0.1)
    return [process.returncode for process in launched]


def whole_checkpoints(folder: Path) -> list[int]:
    return sorted(int(file.parent.name.removeprefix("step-")) for file in folder.glob("run/checkpoints/step-*/complete.json"))


def test_a_host_that_is_cut_off_ends_the_run_and_the_other_goes_on_alone(hosts, folder):
    arguments = arguments_of(folder)
    launched = hosts.launch(PRETRAIN, arguments, logs=folder / "logs", folder=folder)
    deadline = time.monotonic() + START_SECONDS
    while not whole_checkpoints(folder):
        assert time.monotonic() < deadline and not any(process.poll() for process in launched), "\n".join(said_on(folder))
        time.sleep(0.1)
    hosts.cut_cable()
    # As long as a rank waits, a second to start its last collective, and what the launcher leaves
    # the others to end: 30 s.
    assert wait_for_end(launched, seconds=HANG_SECONDS + 45, folder=folder) == [1, 1]
    for said in said_on(folder):
        (first, *_) = [line for line in said.splitlines() if "stopped: " in line]
        assert "another rank has died, hangs or is cut off from the network" in first and "--resume auto" in first
        assert "Traceback" not in said
    step = whole_checkpoints(folder)[-1]

    alone = hosts.launch(
        PRETRAIN,
        [*arguments, "--resume", "auto", f"run.max_steps={step + 2}"],
        logs=folder / "alone",
        folder=folder,
        on=[0],
    )
    assert alone[0].wait(START_SECONDS) == 0, (folder / "alone" / "alpha.log").read_text()
    said = (folder / "alone" / "alpha.log").read_text()
    assert f"steps: {step + 1} to {step + 2}" in said and "2 ranks x micro-batch 2 x accumulation 4 = 16" in said
    assert whole_checkpoints(folder)[-1] == step + 2
    record = json.loads((folder / "run" / "records" / "rank-00000.jsonl").read_text().splitlines()[-1])
    assert record["step"] == step + 2


def test_another_recipe_on_one_host_is_an_error_on_both_before_the_first_step(hosts, folder):
    launched = hosts.launch(
        PRETRAIN, arguments_of(folder), logs=folder / "logs", folder=folder, extra={1: ["optim.base_lr=0.5", "run.seed=7"]}
    )
    assert wait_for_end(launched, seconds=START_SECONDS, folder=folder) == [2, 2]
    base_lr = load_recipe("tiny").optim.base_lr
    differing = [f"optim.base_lr: {base_lr} on alpha; 0.5 on beta", "run.seed: 0 on alpha; 7 on beta"]
    for said in said_on(folder):
        assert "error: the hosts of this run do not have the same:\n" in said and "Traceback" not in said
        assert "".join(f"  the recipe: {line}\n" for line in differing) in said
    assert not (folder / "run" / "records").exists()


def test_a_run_folder_that_is_not_shared_is_an_error_on_both(hosts, folder):
    own = folder / "disk of beta"
    for path in (own, folder / "run"):
        path.mkdir()
    hosts[1].own_folders[folder / "run"] = own
    launched = hosts.launch(PRETRAIN, arguments_of(folder), logs=folder / "logs", folder=folder)
    assert wait_for_end(launched, seconds=START_SECONDS, folder=folder) == [2, 2]
    for said in said_on(folder):
        assert f"run folder {folder / 'run'} is not the same everywhere: beta does not see what alpha writes there" in said
    assert list(own.iterdir()) == [] and list((folder / "run").iterdir()) == [], "a failed start leaves nothing"


@pytest.mark.skipif(not all(map(shutil.which, ("sshd", "ssh-keygen"))), reason="needs Debian's openssh-server and -client")
@pytest.mark.parametrize(("method", "tool"), [("pdsh", "pdsh"), ("openmpi", "ompi_info")])
def test_launch_sh_starts_ranks_on_both_hosts(hosts, folder, method, tool):
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool} (Debian: pdsh, openmpi-bin)")
    variables = hosts.serve_ssh(folder / "ssh")
    (folder / "hosts").write_text("".join(f"{host.address} slots=2\n" for host in hosts.hosts))
    there = {"GLOO_SOCKET_IFNAME": NETWORK_CARD, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    (folder / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in there.items()))
    variables |= {"MATS_PYTHON": sys.executable, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    command = ["bash", str(ROOT / "launch.sh"), "pretrain", "--hostfile", "hosts", "--launcher", method]
    command += arguments_of(folder, "run.max_steps=2")
    launch = hosts[0].start(command, log=folder / "log", variables=variables, folder=folder)
    hosts.started.append(launch)
    assert launch.wait(START_SECONDS) == 0, (folder / "log").read_text()
    said = (folder / "log").read_text()
    assert "4 ranks x micro-batch 2 x accumulation 2 = 16" in said and "step 2/2 " in said
    assert {file.name for file in (folder / "run" / "records").iterdir()} == {f"rank-{rank:05d}.jsonl" for rank in range(4)}
