"""DeepSpeed at work: starts the process group, builds the ZeRO engine, and asks it what it really
does.

What of the JSON reaches `deepspeed.initialize` is in ds_config.py.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mats_ds.config.batch_plan import BatchPlan
from mats_ds.config.ds_config import clipping_of, hand_over, leaves_check_to_guard, precision_of, zero_stage_of
from mats_ds.training.optim import guard_steps

logger = logging.getLogger(__name__)

BYTES_PER_FLOAT32 = 4
# the variable and the programs that torch and Triton look for
COMPILERS = {"cpu": ("CXX", ("g++",)), "cuda": ("CC", ("gcc", "clang"))}


@dataclass(frozen=True)
class InForce:
    """The settings that weights are trained with. `gradient_clipping`: the largest norm of the
    gradients, 0 for any."""

    precision: str
    gradient_clipping: float
    zero_stage: int
    micro_batch: int
    accumulation: int


def make_engine(
    model: nn.Module,
    groups: list[dict[str, Any]],
    ds_config: Mapping[str, Any],
    plan: BatchPlan,
    *,
    compile_model: bool = False,
    load_universal: bool = False,
) -> Any:
    """deepspeed.initialize with the JSON of `read_ds_config`, the batch of `plan`, and nothing left
    to DeepSpeed's defaults.

    `compile_model` makes torch compile the model in place (the names in checkpoints stay as they
    are), when the first batch comes. `load_universal`: it will be given a checkpoint that was
    converted for another number of ranks. Whatever stage and precision: a step whose gradients are
    not finite is left out, by DeepSpeed or by a guard (see optim.py).
    Raises ValueError for a JSON without optimizer, for compiling under ZeRO-3 or without a
    compiler, for what DeepSpeed refuses, and where it does something else than the JSON says.
    """
    import deepspeed
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if "optimizer" not in ds_config:
        raise ValueError(
            'the DeepSpeed JSON has no "optimizer": add {"type": "AdamW", "params": {"torch_adam": true, "fused": true}}'
        )
    config = hand_over(ds_config, accumulation=plan.accumulation, micro_batch=plan.micro_batch)
    if leaves_check_to_guard(ds_config) and "compute_grad_norm" in DeepSpeedZeroConfig.model_fields:
        config["bf16"] = {**config["bf16"], "check_grad_overflow": False}
        config["zero_optimization"] = {**config["zero_optimization"], "compute_grad_norm": False}
    if load_universal:
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
    if compile_model:
        if zero_stage_of(ds_config) == 3:
            raise ValueError("model.compile does not go with ZeRO stage 3, which gathers weights in between: use stage 2")
        check_compiler(next(model.parameters()).device)
        # Not `model.compile()`: it would take in DeepSpeed's own hooks, which break the graph.
        model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
    try:
        engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=config)
    except AssertionError as error:
        if not _is_refusal(error):
            raise
        raise ValueError(f"DeepSpeed refuses the JSON: {' '.join(str(error).split())[:400]}") from error
    asked = InForce(
        precision_of(ds_config), clipping_of(ds_config), zero_stage_of(ds_config), plan.micro_batch, plan.accumulation
    )
    actual = in_force(engine)
    if actual != asked:
        pairs = ((name, value, getattr(asked, name)) for name, value in vars(actual).items())
        differs = [f"{name} {value!r} instead of {wanted!r}" for name, value, wanted in pairs if value != wanted]
        raise ValueError(f"DeepSpeed trains with another setting than the JSON says: {'; '.join(differs)}")
    guard_steps(engine)
    return engine


def check_compiler(device: torch.device) -> None:
    """Raises ValueError where torch.compile would not find the machine's compiler, which builds its
    C++ for a CPU and Triton's launchers for a GPU: it would end in the first step."""
    variable, names = COMPILERS["cuda" if device.type == "cuda" else "cpu"]
    if not (os.environ.get(variable) or any(map(shutil.which, names))):
        raise ValueError(
            f"model.compile=true needs {' or '.join(names)}, and none is on the PATH: install it (on Debian or Ubuntu: sudo "
            f"apt-get install g++), name a compiler with {variable}, or leave model.compile out"
        )


def in_force(engine: Any) -> InForce:
    """The settings of a live engine: read off its weights and its optimizer where they have them,
    else off its config."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    weights = names[next(engine.module.parameters()).dtype]
    settings = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    return InForce(
        precision=weights if weights == settings else f"{settings} with weights in {weights}",
        gradient_clipping=float(getattr(engine.optimizer, "clip_grad", engine.gradient_clipping())),
        zero_stage=int(engine.zero_optimization_stage()),
        micro_batch=engine.train_micro_batch_size_per_gpu(),
        accumulation=engine.gradient_accumulation_steps(),
    )


def optimizer_name(engine: Any) -> str:
    """The class that updates the weights: torch's AdamW, or DeepSpeed's FusedAdam or
    DeepSpeedCPUAdam."""
    return type(engine.basic_optimizer).__name__


def _is_refusal(error: BaseException) -> bool:
    """Whether DeepSpeed itself explains why it will not start."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return bool(str(error)) and module.startswith("deepspeed.")


def full_parameters(engine: Any) -> AbstractContextManager:
    """A context in which every rank holds all parameters, also under ZeRO-3."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(engine.module.parameters()), enabled=engine.zero_optimization_stage() == 3)


def static_bytes(engine: Any) -> dict[str, int]:
    """Bytes that this rank holds throughout the run, by kind: weights, gradients, optimizer states,
    communication buckets.

    Weights and the partition of master weights are read off the engine's tensors; moments are two
    float32 values per element of the partition; gradients are one value of the model's type per
    element that this rank owns; buckets follow the JSON. Kinds that are offloaded begin with
    `host_`.
    """
    parameters = list(engine.module.parameters())
    element = parameters[0].element_size()
    stage = engine.zero_optimization_stage()
    total = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    optimizer = engine.optimizer
    # ZeRO-1 and -2, ZeRO-3
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
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
