"""Ranks that mpirun and srun have started: their variables -> those that torch and DeepSpeed
read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.distributed.scheduler_env import are_all_here, expand_tasks_per_node, first_host, set_rank_environment

ROOT = Path(__file__).resolve().parents[2]
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "7",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
RANK_5_OF_7 = {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}


def adopted(variables: dict[str, str]) -> dict[str, str]:
    """Only what was added."""
    after = dict(variables)
    set_rank_environment(after)
    return {name: value for name, value in after.items() if name not in variables}


def test_a_rank_of_mpirun_is_known_by_its_numbers():
    found = adopted(OPENMPI | {"MASTER_ADDR": "alpha"})
    assert found == RANK_5_OF_7 | {"MASTER_PORT": "29500"}


def test_ranks_of_mpirun_on_one_host_meet_there():
    assert adopted(OPENMPI | {"OMPI_COMM_WORLD_SIZE": "3"})["MASTER_ADDR"] == "127.0.0.1"


def test_ranks_of_mpirun_on_several_hosts_must_be_told_where_to_meet():
    with pytest.raises(ValueError, match="7 ranks, 3 of them here, .* add -x MASTER_ADDR=HOST"):
        adopted(OPENMPI)


def test_a_rank_of_srun_meets_the_others_on_the_first_node():
    found = adopted(SLURM)
    port = int(found.pop("MASTER_PORT"))
    assert found == RANK_5_OF_7 | {"MASTER_ADDR": "gpu07"}
    assert 20_000 <= port < 30_000


def test_all_ranks_of_a_step_come_to_one_port_and_other_jobs_to_another():
    other_rank = adopted(SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"})
    assert other_rank["MASTER_PORT"] == adopted(SLURM)["MASTER_PORT"]
    assert adopted(SLURM | {"SLURM_JOB_ID": "4712"})["MASTER_PORT"] != adopted(SLURM)["MASTER_PORT"]
    assert adopted(SLURM | {"SLURM_STEP_ID": "3"})["MASTER_PORT"] != adopted(SLURM)["MASTER_PORT"]


def test_what_the_caller_has_set_stays():
    assert adopted(SLURM | {"MASTER_ADDR": "beta", "MASTER_PORT": "1234"}) == RANK_5_OF_7


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SLURM | {"RANK": "0"},
        OPENMPI | {"RANK": "0"},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
    ],
    ids=["no launcher", "torchrun below srun", "deepspeed below mpirun", "a batch script itself"],
)
def test_a_process_that_is_no_rank_of_theirs_is_left_alone(variables):
    assert adopted(variables) == {}


@pytest.mark.parametrize(("text", "counts"), [("8", [8]), ("8(x2)", [8, 8]), ("2(x3),1", [2, 2, 2, 1]), ("4,3(x2)", [4, 3, 3])])
def test_numbers_a_node_in_short_form(text, counts):
    assert expand_tasks_per_node(text) == counts


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("alpha", "alpha"),
        ("alpha,beta", "alpha"),
        ("gpu[07-09,12]", "gpu07"),
        ("gpu[3,5-7],old1", "gpu3"),
        ("rack1-[007-010]-ib", "rack1-007-ib"),
        ("10.0.0.1,10.0.0.2", "10.0.0.1"),
    ],
)
def test_the_first_host_of_a_list_in_short_form(text, host):
    assert first_host(text) == host


@pytest.mark.parametrize("text", ["", "x", "2(3)", "2,,3"])
def test_what_cannot_be_read_is_said(text):
    with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE"):
        expand_tasks_per_node(text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun (Debian: openmpi-bin)")
def test_ranks_of_a_real_mpirun_join_each_other(tmp_path):
    """The process group of DeepSpeed itself. Without the translation each would be rank 0 of 1."""
    script = tmp_path / "join.py"
    script.write_text(
        "from mats_ds.distributed.ranks import start_distributed\n"
        "import torch, torch.distributed as dist\n"
        "info = start_distributed()\n"
        "ranks = torch.tensor([float(info.rank)])\n"
        "dist.all_reduce(ranks)\n"
        "print(f'{info.rank} of {info.world_size}, {info.local_world_size} here, sum {ranks.item():g}', flush=True)\n"
        "dist.destroy_process_group()\n"
    )
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment = os.environ | allowed | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = ["mpirun", "-n", "3", "--oversubscribe", "-x", "PYTHONPATH", sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{rank} of 3, 3 here, sum 3" for rank in range(3)]


@pytest.mark.parametrize(
    ("variables", "all_here"),
    [
        ({}, True),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, False),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, False),
    ],
)
def test_ranks_of_other_machines_are_known_by_their_number(monkeypatch, variables, all_here):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert are_all_here() == all_here
