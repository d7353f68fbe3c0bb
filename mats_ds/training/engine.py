"""DeepSpeed at work: starts the process group, builds the ZeRO engine, and asks it what it really
does.

What of the JSON reaches `deepspeed.initialize` is in ds_config.py.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mats_ds.config.batch_plan import BatchPlan
from mats_ds.config.ds_config import clipping_of, hand_over, leaves_check_to_guard, precision_of, zero_stage_of
from mats_ds.distributed.collectives import gather_on_all
from mats_ds.distributed.ranks import RankInfo
from mats_ds.models.compiling import compile_blocks, why_not_captured, why_not_compiled
from mats_ds.training.checkpoints.match import show_value
from mats_ds.training.optim import guard_steps

logger = logging.getLogger(__name__)

BYTES_PER_FLOAT32 = 4


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
    compiled: bool = False,
    load_universal: bool = False,
) -> Any:
    """deepspeed.initialize with the JSON of `read_ds_config`, the batch of `plan`, and nothing left
    to DeepSpeed's defaults.

    `compiled` makes torch compile the blocks of the model in place (the names in checkpoints stay
    as they are), when the first batch comes. `load_universal`: it will be given a checkpoint that
    was converted for another number of ranks. Whatever stage and precision: a step whose gradients
    are not finite is left out, by DeepSpeed or by a guard (see optim.py).
    Raises ValueError for a JSON without optimizer, for what DeepSpeed refuses, and where it does
    something else than the JSON says.
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
    if compiled:
        # Not the whole model: it would take a minute, and DeepSpeed's own hooks break the graph.
        compile_blocks(model)
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


def choose_compiled(asked: bool | str, ranks: RankInfo, *, zero_stage: int) -> str:
    """What torch is to compile, for the recipe's `model.compile`: "" nothing, "blocks", or "graphs"
    (blocks, and the passes captured); called by all ranks, the same on all.

    Raises ValueError where that was asked for and cannot be; with auto it is one line in the log.
    """
    if asked is False or (asked == "auto" and ranks.device.type == "cpu"):
        return ""
    why = why_not_compiled(ranks.device, zero_stage=zero_stage)
    if asked == "graphs" and why is None:
        why = why_not_captured(ranks.device, zero_stage=zero_stage)
    reasons = gather_on_all(why and f"on {socket.gethostname()}, {why}" if ranks.world_size > 1 else why, ranks)
    why = next((reason for reason in reasons if reason), None)
    if why is None:
        logger.info("torch compiles the transformer blocks at the first step: minutes the first time, seconds from then on")
        return "graphs" if asked == "graphs" else "blocks"
    if asked != "auto":
        raise ValueError(f"model.compile={show_value(asked)} is not possible: {why}; or go on with model.compile=false")
    logger.warning("the model runs without torch.compile, with more and smaller kernels: %s", why)
    return ""


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
