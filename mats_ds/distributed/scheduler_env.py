"""The rank of this process as OpenMPI and SLURM number it, translated to the variables of torch's
and DeepSpeed's launchers.

`mpirun` and `srun` start one process a rank and number them in variables of their own; the other
launchers set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE (or LOCAL_SIZE), MASTER_ADDR and
MASTER_PORT themselves.
Source: the lists of environment variables in mpirun(1) of Open MPI 4 and srun(1) of SLURM 23.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

from mats_ds.core.format import format_count

DEFAULT_PORT = "29500"  # torch's and DeepSpeed's
# below the range that Linux gives to outgoing connections
FIRST_JOB_PORT, NUM_JOB_PORTS = 20_000, 10_000


def set_rank_environment(environment: MutableMapping[str, str] | None = None) -> None:
    """Translate what mpirun or srun has set, in place; nothing where RANK is set, or where neither
    has started this process.

    Raises ValueError for ranks of mpirun on several hosts without MASTER_ADDR, which mpirun does
    not set.
    """
    variables = os.environ if environment is None else environment
    if "RANK" in variables:
        return
    if "OMPI_COMM_WORLD_RANK" in variables:
        rank_variables = _of_openmpi(variables)
    elif "SLURM_STEP_NUM_TASKS" in variables:  # not set in a batch script, which is no rank although it has SLURM_PROCID
        rank_variables = _of_slurm(variables)
    else:
        return
    for name, value in rank_variables.items():
        if name.startswith("MASTER_"):  # the caller's choice stays
            variables.setdefault(name, value)
        else:
            variables[name] = value


def are_all_here() -> bool:
    """Whether all ranks are on this machine, by the variables of their launcher; without one there
    is a single rank."""
    size = os.environ.get("WORLD_SIZE", "1")
    return os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)) == size


def _of_openmpi(variables: MutableMapping[str, str]) -> dict[str, str]:
    size, local_size = variables["OMPI_COMM_WORLD_SIZE"], variables["OMPI_COMM_WORLD_LOCAL_SIZE"]
    if size != local_size and "MASTER_ADDR" not in variables:
        raise ValueError(
            f"mpirun has started {format_count(int(size), 'rank')}, {local_size} of them here, and no MASTER_ADDR tells "
            f"where they meet: "
            "add -x MASTER_ADDR=HOST, the host of rank 0 (mats does)"
        )
    return {
        "RANK": variables["OMPI_COMM_WORLD_RANK"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": variables["OMPI_COMM_WORLD_LOCAL_RANK"],
        "LOCAL_WORLD_SIZE": local_size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": DEFAULT_PORT,
    }


def _of_slurm(variables: MutableMapping[str, str]) -> dict[str, str]:
    tasks_of_nodes = expand_tasks_per_node(variables["SLURM_STEP_TASKS_PER_NODE"])
    job, step = int(variables.get("SLURM_JOB_ID", "0")), int(variables.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_of_nodes[int(variables["SLURM_NODEID"])]),
        "MASTER_ADDR": first_host(variables["SLURM_STEP_NODELIST"]),
        # All ranks must come to the same port, and two jobs that share a node to different ones.
        "MASTER_PORT": str(FIRST_JOB_PORT + (31 * job + step) % NUM_JOB_PORTS),
    }


def expand_tasks_per_node(text: str) -> list[int]:
    """SLURM's short form of a number a node, "2(x3),1", in full: [2, 2, 2, 1]. Raises ValueError
    for anything else."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}: expected numbers like 8 or 8(x4),7")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(node_list: str) -> str:
    """The first of SLURM's short form of host names: "gpu[07-09,12],old1" is gpu07."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^\[,]*))?", node_list)
    assert match is not None, "the pattern matches the empty text"
    host = "".join(part for part in match.groups() if part)
    if not host:
        raise ValueError(f"SLURM_STEP_NODELIST is {node_list!r}: expected host names like gpu01 or gpu[01-04]")
    return host
