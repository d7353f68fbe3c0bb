"""The keys of a DeepSpeed JSON: those taken, with their values, those ignored, and those that would
train something else.

Read off DeepSpeed 0.19's sources (runtime/config.py, precision_config.py, zero/config.py,
zero/offload_config.py, engine.py); docs/reference/deepspeed.md says what it does where the JSON is
silent. A key that is in none of the tables is refused: DeepSpeed silently ignores unknown keys of
the top level.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST_WHOLE = 2**63 - 1
# Given by the recipe to every parameter group: the values in the JSON would be the defaults of
# groups that have none.
RECIPE_KEYS = {"lr": "optim.base_lr", "betas": "optim.betas", "eps": "optim.eps", "weight_decay": "optim.weight_decay"}


@dataclass(frozen=True)
class Kind:
    """A kind of value: its name and its test."""

    name: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Only:
    """A key of which one value is taken, DeepSpeed's own default; `why` says what any other would
    do."""

    value: Any
    why: str


def _is_whole(value: Any, least: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return least <= value <= LARGEST_WHOLE and value == math.floor(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LARGEST_WHOLE


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


def one_of(*values: Any) -> Kind:
    """One of some values of exact types: 1 is neither 1.0 nor true."""
    name = ", ".join(map(to_json, values[:-1])) + f" or {to_json(values[-1])}"
    return Kind(name, lambda value: any(type(value) is type(option) and value == option for option in values))


def to_json(value: Any) -> str:
    """A plain value as JSON writes it, cut where it is long."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("an integer of at least 1", lambda value: _is_whole(value, 1))
SIZE = Kind("an integer of at least 0", lambda value: _is_whole(value, 0))
STRICT_COUNT = Kind("an integer of at least 1", lambda value: isinstance(value, int) and _is_whole(value, 1))
EVEN = Kind("an even integer of at least 2", lambda value: _is_whole(value, 2) and value % 2 == 0)
NUMBER = Kind("a number of at least 0", _is_number)
PAIR = Kind("two numbers of at least 0", lambda value: _is_list(value, _is_number) and len(value) == 2)
TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", lambda value: _is_list(value, lambda item: isinstance(item, str)))
DEPTH = Kind("-1 or an integer of at least 0", lambda value: isinstance(value, int) and _is_whole(value, -1))
ANYTHING = Kind("anything", lambda value: True)

_OTHER_PRECISION = "the weights and figures of a run are those of bf16 with float32 masters, or of fp32"
_OTHER_SUM = "gradients are the mean over the global batch, as the recipes' learning rates mean it"
_OTHER_WEIGHTS = "weights or gradients would be rounded to few bits on their way"

_ZERO_SWITCHES = """
contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions
overlap_comm round_robin_gradients parameter_alignment ignore_unused_parameters
memory_efficient_linear override_module_apply log_trace_cache_warnings enable_sanity_checks
pipeline_loading_checkpoint gather_16bit_weights_on_model_save
stage3_gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params
stage3_use_all_reduce_for_fetch_params allgather_sequential stage3_allgather_sequential
"""
_ZERO_SIZES = """
sub_group_size prefetch_bucket_size stage3_prefetch_bucket_size param_persistence_threshold
stage3_param_persistence_threshold model_persistence_threshold stage3_model_persistence_threshold
max_live_parameters stage3_max_live_parameters max_reuse_distance stage3_max_reuse_distance
module_granularity_threshold stage3_module_granularity_threshold
"""
ZERO = {
    "stage": one_of(0, 1, 2, 3),
    **dict.fromkeys(
        _ZERO_SWITCHES.split(),
        BOOLEAN,
    ),
    "reduce_bucket_size": COUNT,
    "allgather_bucket_size": EVEN,
    **dict.fromkeys(
        _ZERO_SIZES.split(),
        SIZE,
    ),
    "offload_optimizer": {
        "device": one_of("none", "cpu"),
        "pin_memory": BOOLEAN,
        "fast_init": BOOLEAN,
        "pipeline_read": BOOLEAN,
        "pipeline_write": BOOLEAN,
        "buffer_count": COUNT,
        "cpuadam_cores_perc": NUMBER,
        "ratio": Only(1.0, "the plan and the report count optimizer states as all on the host or all on the GPU"),
        "super_offload": Only(False, "it is another optimizer"),
    },
    "offload_param": {
        "device": one_of("none", "cpu"),
        "pin_memory": BOOLEAN,
        "buffer_count": COUNT,
        "buffer_size": SIZE,
        "max_in_cpu": SIZE,
    },
    "compute_grad_norm": Only(True, "the gradient norm is recorded, and it shows steps that are not finite"),
    "load_from_fp32_weights": Only(True, "a resumed run would begin with rounded weights"),
    "elastic_checkpoint": Only(False, "--resume auto converts checkpoints for another number of ranks by itself"),
    "legacy_stage1": Only(False, "DeepSpeed has removed it"),
    "zero_quantized_weights": Only(False, _OTHER_WEIGHTS),
    "zero_quantized_nontrainable_weights": Only(False, _OTHER_WEIGHTS),
    "zero_quantized_gradients": Only(False, _OTHER_WEIGHTS),
    "zero_hpz_partition_size": Only(1, "the plan and the report count one copy of the weights a group of ranks"),
}

OPTIMIZER_PARAMS = {
    "torch_adam": BOOLEAN,
    "fused": BOOLEAN,
    "foreach": BOOLEAN,
    "adam_w_mode": Only(True, "false is Adam with L2 regularisation, and the recipes' weight decay is AdamW's"),
    "amsgrad": Only(False, "the recipes are for AdamW without it"),
    "maximize": Only(False, "it would raise the loss"),
    "bias_correction": Only(True, "the recipes are for AdamW with it"),
    "fp32_optimizer_states": Only(True, "the plan and the report count them in float32"),
    "lr": NUMBER,
    "eps": NUMBER,
    "weight_decay": NUMBER,
    "betas": PAIR,
}

TOP = {
    "train_micro_batch_size_per_gpu": STRICT_COUNT,
    "gradient_accumulation_steps": STRICT_COUNT,
    "train_batch_size": STRICT_COUNT,
    "gradient_clipping": NUMBER,
    "zero_optimization": ZERO,
    "bf16": {
        "enabled": BOOLEAN,
        "immediate_grad_update": BOOLEAN,
        "check_grad_overflow": Only(True, "a step whose gradients are not finite has to be left out"),
        "bf16_master_weights_and_grads": Only(False, _OTHER_PRECISION),
        "bf16_optimizer_states": Only(False, _OTHER_PRECISION),
    },
    "fp16": {
        "enabled": Only(False, 'masked video pre-training overflows in fp16: use "bf16": {"enabled": true}, or neither for fp32'),
        "fp16_master_weights_and_grads": Only(False, _OTHER_PRECISION),
        **dict.fromkeys(("auto_cast", "consecutive_hysteresis"), BOOLEAN),
        "loss_scale": NUMBER,
        **dict.fromkeys(("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"), SIZE),
    },
    "optimizer": {"type": ANYTHING, "params": OPTIMIZER_PARAMS},
    "zero_allow_untested_optimizer": BOOLEAN,
    "zero_force_ds_cpu_optimizer": BOOLEAN,
    "prescale_gradients": Only(False, _OTHER_SUM),
    "gradient_predivide_factor": Only(1.0, _OTHER_SUM),
    "gradient_allreduce_op": Only("mean", _OTHER_SUM),
    "managed_gradient_accumulation": Only(True, _OTHER_SUM),
    "disable_allgather": Only(False, "ranks would train different weights"),
    "checkpoint": {
        "tag_validation": one_of("Ignore", "Warn", "Fail"),
        "load_universal": Only(False, "--resume auto sets it where a checkpoint was converted"),
        "use_node_local_storage": Only(False, "checkpoints are checked as one folder that all ranks see"),
    },
    "torch_autocast": {"enabled": Only(False, _OTHER_PRECISION), "dtype": ANYTHING, "lower_precision_safe_modules": ANYTHING},
    "steps_per_print": COUNT,
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc"), BOOLEAN),
    "log_level": one_of("debug", "info", "warning", "error", "critical"),
    "tensorboard": {"enabled": BOOLEAN, "output_path": TEXT, "job_name": TEXT},
    "csv_monitor": {"enabled": BOOLEAN, "output_path": TEXT, "job_name": TEXT},
    "wandb": {"enabled": BOOLEAN, "group": TEXT, "team": TEXT, "project": TEXT},
    "comet": {
        "enabled": BOOLEAN,
        "samples_log_interval": COUNT,
        "online": BOOLEAN,
        **dict.fromkeys(("project", "workspace", "api_key", "experiment_name", "experiment_key", "mode"), TEXT),
    },
    "flops_profiler": {
        "enabled": BOOLEAN,
        "recompute_fwd_factor": NUMBER,
        "profile_step": STRICT_COUNT,
        "module_depth": DEPTH,
        "top_modules": STRICT_COUNT,
        "detailed": BOOLEAN,
        "output_file": TEXT,
    },
    "comms_logger": {"prof_ops": TEXTS, **dict.fromkeys(("enabled", "prof_all", "verbose", "debug"), BOOLEAN)},
    "timers": {"throughput": {"enabled": BOOLEAN, "synchronized": BOOLEAN}},
}

# Ignored with a log line, and not handed over: what decides instead.
IGNORED = {
    "scheduler": "the learning rate follows the recipe's optim.base_lr, warmup_epochs and epochs",
    "activation_checkpointing": "what is computed again follows the recipe's model.recompute and model.checkpoint_blocks",
    "dataloader_drop_last": "the recipe's sampler fills every batch",
    "vocabulary_size": "a video model has none",
}

# Known to DeepSpeed, in one version or another, and taken up by it: every one would train something
# else, or not start.
REFUSED = {
    "bfloat16": 'write "bf16"',
    "amp": 'it has been removed from DeepSpeed: use "bf16"',
    "data_types": "gradients and weights have the type of the run, fp32 or bf16, which memory figures count with",
    "communication_data_type": "gradients travel in the type of the run, fp32 or bf16, which memory figures count with",
    "seq_parallel_communication_data_type": "a clip is not split over ranks",
    "sequence_parallel_size": "a clip is not split over ranks",
    "data_parallel_size": "all ranks are data-parallel",
    "tensor_parallel": "the model is not split over ranks: use ZeRO stage 3",
    "expert_parallel": "the model has no experts",
    "use_data_before_expert_parallelism": "the model has no experts",
    "pipeline": "the model is not split into stages: use ZeRO stage 3",
    "hybrid_engine": "it is for training that generates text",
    "weight_quantization": "weights are trained in full",
    "compression_training": "weights are trained in full, and it has been removed from DeepSpeed",
    "quantize_training": "weights are trained in full, and it has been removed from DeepSpeed",
    "eigenvalue": "it has been removed from DeepSpeed",
    "sparse_gradients": "it has been removed from DeepSpeed",
    "sparse_attention": "it has been removed from DeepSpeed",
    "progressive_layer_drop": "it has been removed from DeepSpeed: the recipe has finetune.drop_path",
    "curriculum_learning": "the recipe decides which clips come when",
    "data_efficiency": "the recipe decides which clips and tokens come when",
    "elasticity": "it has been removed from DeepSpeed: --resume auto goes on with any number of ranks",
    "autotuning": "the plan (plan --help) finds the largest micro-batch",
    "graph_harvesting": "it has been removed from DeepSpeed",
    "nebula": "it has been removed from DeepSpeed: checkpoints are the recipe's run.checkpoint_steps",
    "datastates": "checkpoints are the recipe's run.checkpoint_steps",
    "aio": "nothing is offloaded to NVMe",
    "compile": "the recipe compiles with model.compile",
    "ddp_bf16": 'write "bf16"',
}
REFUSED_OF_ZERO = {
    "cpu_offload": 'write "offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": 'write "offload_param": {"device": "cpu"}',
    "cpu_offload_use_pin_memory": 'write "pin_memory" inside "offload_optimizer"',
    "stage3_gather_fp16_weights_on_model_save": 'write "stage3_gather_16bit_weights_on_model_save"',
    "zenflow": "it is another optimizer",
    "leaf_module": "the model has no modules that need it",
    "gradient_clipping": "it belongs to the top level of the JSON",
    "mics_shard_size": "it has been removed from DeepSpeed",
    "mics_hierarchical_params_gather": "it has been removed from DeepSpeed",
    "zeropp_loco_param": "it has been removed from DeepSpeed",
}
REFUSED_OF_PARAMS = {
    "max_grad_norm": 'write "gradient_clipping" at the top level of the JSON',
    "capturable": "steps are not captured in CUDA graphs",
    "differentiable": "nothing goes backward through a step",
    "decoupled_weight_decay": 'write "type": "AdamW"',
}
