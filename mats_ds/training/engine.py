"""The only room that knows DeepSpeed: starts the process group, reads the JSON, builds the ZeRO engine.

The JSON reaches `deepspeed.initialize` as it is; only `gradient_accumulation_steps` is filled in where it was left out.
"""

from __future__ import annotations

import difflib
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mats_ds.parsing import parse_json
from mats_ds.training.batch import ACCUMULATION_KEY, BatchPlan
from mats_ds.training.launchers import adopt_launcher
from mats_ds.training.stops import RanksLost

logger = logging.getLogger(__name__)

BYTES_PER_FLOAT32 = 4
JOIN_SECONDS = 600.0  # how long the first ranks wait for the last at the start: a machine whose command failed never comes
# Sections of the JSON whose names DeepSpeed keeps outside its module of constants.
OBJECT_KEYS = ("bf16", "fp16", "zero_optimization", "optimizer", "checkpoint")
SECTION_KEYS = """
activation_checkpointing aio autotuning bf16 comet comms_logger compile compression_training csv_monitor elasticity
flops_profiler fp16 nebula tensor_parallel tensorboard timers torch_autocast wandb zero_optimization
zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
"""


@dataclass(frozen=True)
class Place:
    """Where this process stands among its peers, and its device."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device


def start_distributed(*, timeout_seconds: float = 1800.0) -> Place:
    """Join the process group that the launcher (deepspeed, torchrun, mpirun, srun) describes; without one, be the only rank.

    A rank that waits longer than `timeout_seconds` for the others raises RuntimeError. Raises RanksLost where not all join within
    JOIN_SECONDS.
    """
    adopt_launcher()
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": os.environ.get("LOCAL_SIZE", os.environ.get("WORLD_SIZE", "1")),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("DeepSpeed").setLevel(os.environ.get("DS_LOG_LEVEL", "WARNING").upper())
    import deepspeed

    # DeepSpeed would compile a shared-memory collective with g++ at the first start on a CPU, for minutes; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{local_world_size} ranks on this machine but only {torch.cuda.device_count()} GPU(s): lower --num_gpus"
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    try:
        deepspeed.init_distributed(verbose=False, timeout=timedelta(seconds=JOIN_SECONDS))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RanksLost(
            f"not all {os.environ['WORLD_SIZE']} ranks have come to {where} within {JOIN_SECONDS:.0f} s "
            f"({str(error).splitlines()[0]}): see what the others say, and whether their machines reach that address"
        ) from None
    # ZeRO's collectives run in a copy of the group of all ranks, which would wait as long as torch does by default: 30 minutes.
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # torch before 2.15
    for group in (None, deepspeed.utils.groups._get_data_parallel_group()):
        set_timeout(timedelta(seconds=timeout_seconds), group)
    return Place(dist.get_rank(), local_rank, dist.get_world_size(), local_world_size, device)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_ds_config(path: str | Path) -> dict[str, Any]:
    """The DeepSpeed JSON as a dictionary. Raises ValueError for a missing file, broken JSON or a misspelt top-level key.

    DeepSpeed ignores unknown top-level keys without a word, so they are looked up here among the words it knows.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no DeepSpeed JSON at {path}: try ds_configs/zero2.json")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    known = known_ds_keys()
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    if unknown:
        hints = []
        for key in unknown:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hints.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        raise ValueError(f"{path}: DeepSpeed knows no key {', '.join(hints)} and would ignore it without a word")
    flat = [key for key in OBJECT_KEYS if not isinstance(config.get(key, {}), dict)]
    if flat:
        raise ValueError(f"{path}: {', '.join(flat)} must be a JSON object, like {{...}}")
    return config


def known_ds_keys() -> set[str]:
    """Every word that the installed DeepSpeed uses for a section or a key: a superset of its top-level keys."""
    from deepspeed.runtime import constants

    words = {value for value in vars(constants).values() if isinstance(value, str)}
    return words | set(SECTION_KEYS.split())


def precision_of(ds_config: Mapping[str, Any]) -> str:
    """bf16, fp16 or fp32, as the JSON switches it on. Raises ValueError for fp16, which masked video pre-training overflows."""
    for name in ("bf16", "fp16"):
        if ds_config.get(name, {}).get("enabled", False) is True:
            if name == "fp16":
                raise ValueError('the DeepSpeed JSON enables fp16: use "bf16": {"enabled": true}, or neither for fp32')
            return name
    return "fp32"


def zero_stage_of(ds_config: Mapping[str, Any]) -> int:
    """0 to 3, as the JSON states it."""
    return ds_config.get("zero_optimization", {}).get("stage", 0)


def make_engine(
    model: nn.Module,
    groups: list[dict[str, Any]],
    ds_config: Mapping[str, Any],
    plan: BatchPlan,
    *,
    compile_model: bool = False,
    load_universal: bool = False,
) -> Any:
    """deepspeed.initialize with the JSON as it is, plus the derived accumulation where the JSON leaves it out.

    `compile_model` has torch compile the whole model, in place (the names in checkpoints stay as they are), when the first
    batch comes. `load_universal`: it will be given a checkpoint that was converted for another number of ranks.
    Raises ValueError for a JSON without optimizer, and for compiling under ZeRO-3.
    """
    import deepspeed

    if "optimizer" not in ds_config:
        raise ValueError(
            'the DeepSpeed JSON has no "optimizer": add {"type": "AdamW", "params": {"torch_adam": true, "fused": true}}'
        )
    config = {**ds_config, ACCUMULATION_KEY: ds_config.get(ACCUMULATION_KEY, plan.accumulation)}
    if load_universal:
        config["checkpoint"] = {**ds_config.get("checkpoint", {}), "load_universal": True}
    if compile_model:
        if zero_stage_of(ds_config) == 3:
            raise ValueError("model.compile does not go with ZeRO stage 3, which gathers weights in between: use stage 2")
        # Not `model.compile()`: it would take in DeepSpeed's own hooks, which break the graph.
        model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=config)
    return engine


def full_parameters(engine: Any) -> AbstractContextManager:
    """Inside it every rank holds whole parameters, also under ZeRO-3."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=engine.zero_optimization_stage() == 3)


def static_bytes(engine: Any) -> dict[str, int]:
    """Bytes that this rank holds for the whole run, by kind: weights, gradients, optimizer states, communication buckets.

    Weights and the partition of master weights are read off the engine's tensors; moments are two float32 values per element of
    the partition; gradients are one value of the model's type per element that this rank owns; buckets follow the JSON.
    Kinds that are offloaded begin with `host_`.
    """
    parameters = list(engine.module.parameters())
    element = parameters[0].element_size()
    stage = engine.zero_optimization_stage()
    total = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    optimizer = engine.optimizer
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")  # ZeRO-1 and -2, ZeRO-3
    partitions = next((getattr(optimizer, name) for name in names if getattr(optimizer, name, None)), None)
    owned = sum(tensor.numel() for tensor in partitions) if partitions else total
    buckets = 0
    if stage in (1, 2):
        buckets = engine.zero_reduce_bucket_size() * element * (2 if engine.zero_overlap_comm() else 1)
    host = "host_" if engine.zero_cpu_offload() else ""
    return {
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        "gradients": (owned if stage >= 2 else total) * element,
        f"{host}master_weights": owned * BYTES_PER_FLOAT32 if partitions else 0,
        f"{host}moments": 2 * owned * BYTES_PER_FLOAT32,
        "buckets": int(buckets),
    }
