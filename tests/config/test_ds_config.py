"""What of a DeepSpeed JSON is taken, refused before anything starts, or said not to be used."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.config.ds_config import clipping_of, hand_over, notes_on, precision_of, read_ds_config, state_clipping

ROOT = Path(__file__).resolve().parents[2]
TINY = json.loads((ROOT / "ds_configs" / "zero2_tiny.json").read_text())
HARD = ROOT / ".." / "shared" / "hard_inputs"


def write(folder, changes):
    """zero2_tiny.json with some values changed: "a.b" is key b of section a; None takes a key
    out."""
    tree = json.loads(json.dumps(TINY))
    for name, value in changes.items():
        *sections, key = name.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
        if value is None:
            del inner[key]
    path = folder / "ds.json"
    path.write_text(json.dumps(tree))
    return path


# What DeepSpeed takes for something else than it says: any value that is not empty, "false" too,
# switched a precision on.
NOT_BOOLEAN = [
    {f"{section}.enabled": value}
    for section in ("bf16", "fp16", "torch_autocast", "tensorboard", "csv_monitor", "flops_profiler", "comms_logger")
    for value in ("true", "false", 1, 0, 0.0, [], "")
]
SECTIONS_OF_OTHERS = """
elasticity compression_training progressive_layer_drop curriculum_learning data_efficiency
quantize_training eigenvalue hybrid_engine autotuning tensor_parallel pipeline sparse_attention
nebula compile weight_quantization
"""
REFUSED = [
    *NOT_BOOLEAN,
    # one precision, and no other arithmetic than the run says
    {"fp16.enabled": True},
    {"fp16.enabled": True, "bf16.enabled": True},
    {"bfloat16": {"enabled": True}},
    {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
    {"amp": {"enabled": True}},
    {"bf16.bf16_master_weights_and_grads": True},
    {"bf16.check_grad_overflow": False},
    {"bf16.auto_cast": True},
    {"data_types": {"grad_accum_dtype": "bf16"}},
    {"communication_data_type": "fp16"},
    {"zero_optimization.stage": 0, "bf16.enabled": True},
    # filled in by Hugging Face's Trainer only
    {"gradient_clipping": "auto"},
    {"train_micro_batch_size_per_gpu": "auto"},
    {"zero_optimization.reduce_bucket_size": "auto"},
    {"optimizer.params.lr": "auto"},
    {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}},
    {"optimizer.params.betas": [0.9, "auto"]},
    # of another kind
    {"gradient_clipping": -1},
    {"gradient_clipping": True},
    {"gradient_clipping": "1.0"},
    {"gradient_clipping": [1.0]},
    {"gradient_clipping": 10**400},
    {"train_micro_batch_size_per_gpu": 2.0},
    {"gradient_accumulation_steps": True},
    {"gradient_accumulation_steps": 0},
    {"train_batch_size": "16"},
    {"zero_optimization": True},
    {"zero_optimization": 2},
    {"zero_optimization.stage": "2"},
    {"zero_optimization.stage": 4},
    {"zero_optimization.stage": True},
    {"zero_optimization.stage": 2.0},
    {"zero_optimization.reduce_bucket_size": 0},
    {"zero_optimization.reduce_bucket_size": -5},
    {"zero_optimization.reduce_bucket_size": "5e8"},
    {"zero_optimization.reduce_bucket_size": 0.5},
    {"zero_optimization.reduce_bucket_size": 10**400},
    {"zero_optimization.allgather_bucket_size": 3},
    {"zero_optimization.overlap_comm": "false"},
    {"zero_optimization.contiguous_gradients": 1},
    {"bf16": True},
    {"optimizer": "AdamW"},
    {"optimizer.params": []},
    {"optimizer.params.torch_adam": "true"},
    {"optimizer.params.betas": 0.9},
    {"optimizer.params.lr": "0.001"},
    {"steps_per_print": "never"},
    {"log_level": "loud"},
    {"flops_profiler.profile_step": "3"},
    {"checkpoint.tag_validation": "Perhaps"},
    # another optimizer, or the same with other arithmetic
    {"optimizer": None},
    {"optimizer.type": None},
    {"optimizer.type": "SGD"},
    {"optimizer.type": "Lion"},
    {"optimizer.type": 3},
    {"optimizer.type": "Adam", "optimizer.params.adam_w_mode": False},
    {"optimizer.params.amsgrad": True},
    {"optimizer.params.maximize": True},
    {"optimizer.params.max_grad_norm": 1.0},
    {"optimizer.params.momentum": 0.9},
    {"optimizer.params.foreach": True},
    {"optimizer.params.torch_adam": False},
    {"optimizer.params.fused": None, "optimizer.params.bias_correction": False},
    # sums, weights and clips of another kind
    {"gradient_predivide_factor": 4.0},
    {"prescale_gradients": True},
    {"gradient_allreduce_op": "sum"},
    {"zero_optimization.zero_quantized_weights": True},
    {"zero_optimization.zero_quantized_gradients": True},
    {"zero_optimization.load_from_fp32_weights": False},
    {"zero_optimization.compute_grad_norm": False},
    {"zero_optimization.zenflow": {"topk_ratio": 0.1}},
    {"zero_optimization.gradient_clipping": 1.0},
    {"zero_optimization.cpu_offload": True},
    {"zero_optimization.legacy_stage1": True},
    {"zero_optimization.offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}},
    {"zero_optimization.offload_optimizer": {"device": "gpu"}},
    {"zero_optimization.offload_optimizer": {"device": "cpu", "ratio": 0.5}},
    {"zero_optimization.offload_param": {"device": "cpu"}},
    {"zero_optimization.stage": 0, "zero_optimization.offload_optimizer": {"device": "cpu"}},
    {"checkpoint.load_universal": True},
    {"checkpoint.use_node_local_storage": True},
    *({key: {"enabled": True}} for key in SECTIONS_OF_OTHERS.split()),
    {"sparse_gradients": True},
    {"sequence_parallel_size": 2},
    {"expert_parallel": {"ep_size": 2}},
    # unknown
    {"zero_optimisation": {"stage": 2}},
    {"gradient_cliping": 1.0},
    {"zero_optimization.reduce_bucket": 5},
    {"bf16.enable": True},
    {"comms_logger.level": 3},
]


@pytest.mark.parametrize("changes", REFUSED, ids=lambda changes: json.dumps(changes)[:70])
def test_what_would_train_something_else_is_one_line_that_names_it(tmp_path, changes):
    with pytest.raises(ValueError) as caught:
        read_ds_config(write(tmp_path, changes))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"{tmp_path / 'ds.json'}: ")
    assert any(name.rpartition(".")[2] in text for name in changes)


TAKEN = [
    {},
    {"gradient_clipping": None},
    {"gradient_clipping": 1},
    {"bf16.enabled": True},
    {"bf16.enabled": False, "fp16.enabled": False},
    {"zero_optimization.reduce_bucket_size": 5e8, "zero_optimization.allgather_bucket_size": 5e8},
    {"zero_optimization": None},
    {"zero_optimization.stage": 3, "zero_optimization.offload_param": {"device": "cpu"}},
    {"zero_optimization.offload_optimizer": {"device": "cpu", "pin_memory": True}},
    {"zero_optimization.round_robin_gradients": True},
    {"optimizer": {"type": "adamw"}},
    {"optimizer.params.fused": None, "optimizer.params.foreach": True},
    {"optimizer.params.amsgrad": False, "optimizer.params.adam_w_mode": True},
    {"gradient_predivide_factor": 1, "prescale_gradients": False},
    {"torch_autocast": {"enabled": False}},
    {"train_batch_size": 12},
    {"tensorboard": {"enabled": False, "output_path": "logs"}, "wandb": {"enabled": True, "project": "x"}},
    {"flops_profiler": {"enabled": True, "profile_step": 2}, "comms_logger": {"enabled": True}},
    {"wall_clock_breakdown": True, "timers": {"throughput": {"enabled": False}}},
    {"_comment": "auto", "zero_optimization._why": "auto"},
]


@pytest.mark.parametrize("changes", TAKEN, ids=lambda changes: json.dumps(changes)[:70])
def test_what_changes_only_how_hardware_runs_it_is_taken(tmp_path, changes):
    path = write(tmp_path, changes)
    assert read_ds_config(path) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"gradient_clipping": 0.0',
            '"gradient_clipping": 0.0, "gradient_clipping": 1.0',
            "'gradient_clipping' is given more than",
        ),
        ('"stage": 2', '"stage": 2, "stage": 3', "'stage' is given more than once"),
        ('"gradient_clipping": 0.0', '"gradient_clipping": NaN', "NaN is no number of JSON"),
        ('"gradient_clipping": 0.0', '"gradient_clipping": -Infinity', "-Infinity is no number of JSON"),
        ('"gradient_clipping": 0.0', '"gradient_clipping": 1e999', "1e999 is beyond what a number can hold"),
    ],
)
def test_json_that_means_two_things_is_none(tmp_path, old, new, words):
    text = json.dumps(TINY)
    assert old in text
    (tmp_path / "ds.json").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match="is not valid JSON: ") as caught:
        read_ds_config(tmp_path / "ds.json")
    assert words in str(caught.value)


def test_all_faults_are_named_at_once(tmp_path):
    path = write(tmp_path, {"gradient_clipping": -1, "bf16.enabled": "true", "zero_optimization.stage": "2"})
    with pytest.raises(ValueError) as caught:
        read_ds_config(path)
    for words in ("gradient_clipping", "got -1", "bf16.enabled must be true or false", 'got "true"', 'got "2"'):
        assert words in str(caught.value)


def test_what_the_recipe_decides_is_said_with_its_value(tmp_path):
    given = {"lr": 0.5, "betas": [0.1, 0.2], "eps": 0.1, "weight_decay": 0.9}
    changes = {f"optimizer.params.{key}": value for key, value in given.items()}
    changes |= {
        "optimizer.type": "Adam",
        "scheduler": {"type": "WarmupLR"},
        "activation_checkpointing": {"cpu_checkpointing": True},
    }
    config = read_ds_config(write(tmp_path, changes))
    notes = "\n".join(notes_on(config))
    for words in ('"lr": 0.5', "optim.base_lr", '"betas": [0.1, 0.2]', '"eps": 0.1', '"weight_decay": 0.9'):
        assert words in notes
    assert '"scheduler" in the DeepSpeed JSON is not used' in notes and "model.recompute" in notes
    assert '"Adam": DeepSpeed runs it as AdamW' in notes
    handed = hand_over(config, accumulation=3, micro_batch=2)
    assert handed["optimizer"]["params"] == {"torch_adam": True, "fused": True}
    assert not {"scheduler", "activation_checkpointing"} & set(handed)


def test_a_silent_json_does_not_clip_and_says_so(tmp_path):
    config = read_ds_config(write(tmp_path, {"gradient_clipping": None}))
    assert clipping_of(config) == hand_over(config, accumulation=1, micro_batch=2)["gradient_clipping"] == 0.0
    assert state_clipping(config)["gradient_clipping"] == 0.0
    [note] = notes_on(config)
    assert "not clipped" in note and "DeepSpeed alone would clip at 1" in note
    assert notes_on(TINY) == []


@pytest.mark.parametrize(("changes", "name"), [({}, "FusedAdam"), ({"device": "cpu"}, "DeepSpeedCPUAdam")])
def test_an_optimizer_that_compiles_for_minutes_says_so_before(tmp_path, changes, name):
    changes = {"optimizer.params": {}, **({"zero_optimization.offload_optimizer": changes} if changes else {})}
    [note] = notes_on(read_ds_config(write(tmp_path, changes)))
    assert f"compiles {name}" in note and "minutes" in note and '"torch_adam": true' in note


def test_a_file_that_no_person_wrote_is_not_read(tmp_path):
    path = write(tmp_path, {"_comment": "x" * 1_000_000})
    with pytest.raises(ValueError, match="longer than 1,000,000 bytes"):
        read_ds_config(path)


def test_what_is_handed_over_has_this_runs_batch_and_no_comments(tmp_path):
    changes = {"_why": 1, "zero_optimization._why": 2, "train_batch_size": 12, "fp16.enabled": False}
    handed = hand_over(read_ds_config(write(tmp_path, changes)), accumulation=3, micro_batch=4)
    assert (handed["gradient_accumulation_steps"], handed["train_micro_batch_size_per_gpu"]) == (3, 4)
    assert not {"_why", "train_batch_size", "fp16"} & set(handed) and "_why" not in handed["zero_optimization"]


def test_deepspeeds_own_defaults_are_those_that_are_stated():
    """Where a version of DeepSpeed has other defaults, docs/reference/deepspeed.md and the table of
    keys have to be read again."""
    from deepspeed.runtime.config import DeepSpeedConfig

    silent = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1})
    assert (silent.prescale_gradients, silent.gradient_predivide_factor) == (False, 1.0)
    assert not silent.torch_autocast_enabled and not silent.bfloat16_config.enabled and not silent.float16_config.enabled
    assert silent.communication_data_type is None and silent.grad_accum_dtype is None
    assert not silent.bfloat16_config.bf16_master_weights_and_grads
    zero = silent.zero_config
    assert not (zero.zero_quantized_weights or zero.zero_quantized_gradients) and zero.load_from_fp32_weights


@pytest.mark.skipif(not HARD.is_dir(), reason="no ../shared/hard_inputs")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ds_bf16_string", 'bf16.enabled must be true or false, got "true"'),
        ("ds_both_precisions", "fp16.enabled can only be false"),
        ("ds_clipping_auto", 'gradient_clipping is "auto"'),
        ("ds_optimizer_values_ignored", None),
        ("ds_scheduler_ignored", None),
    ],
)
def test_the_shared_inputs(name, words):
    path = HARD / f"{name}.json"
    if words is None:
        assert "is not used" in "\n".join(notes_on(read_ds_config(path)))
        return
    with pytest.raises(ValueError) as caught:
        read_ds_config(path)
    assert words in str(caught.value)


def test_precision_is_what_deepspeed_would_take():
    assert precision_of({}) == "fp32" and precision_of({"bf16": {"enabled": True}}) == "bf16"
    assert math.isclose(clipping_of({"gradient_clipping": 1}), 1.0)
    with pytest.raises(ValueError, match="enables fp16"):
        precision_of({"fp16": {"enabled": True}})


@pytest.mark.slow
def test_a_notebook_that_reads_a_json_gets_no_warning_of_its_accelerator():
    code = "from mats_ds.config.ds_config import read_ds_config; read_ds_config('zero2_tiny')"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
