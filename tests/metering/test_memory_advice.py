"""One line on what to lower, after what takes the memory."""

from dataclasses import replace

import pytest

from mats_ds.core.cli import is_out_of_memory
from mats_ds.metering.out_of_memory import advise_on_memory, plan_command
from tests.metering.test_recorder import make_run

RUN = replace(make_run("run"), micro_batch=24, model_flops_per_clip=100, hardware_flops_per_clip=105)
MOSTLY_ACTIVATIONS = {"weights": 5, "moments": 5, "buckets": 2, "activations": 80, "cache": 3}


@pytest.mark.parametrize(
    "outcome",
    [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "OutOfMemoryError: Allocation on device 0 failed",
        "MemoryError: ", "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
        "RuntimeError: CUDA error: out of memory", "RuntimeError: CUDA_ERROR_OUT_OF_MEMORY from DALI",
    ],
)  # fmt: skip
def test_memory_that_ran_out_is_recognised(outcome):
    assert is_out_of_memory(outcome)


@pytest.mark.parametrize("outcome", ["finished", "TrainingStopped: the loss is not finite", "interrupted by the user"])
def test_other_ends_are_not_taken_for_it(outcome):
    assert not is_out_of_memory(outcome)


def test_the_micro_batch_comes_first_then_checkpointing_then_the_keep_ratio():
    text = advise_on_memory(RUN, MOSTLY_ACTIVATIONS)
    places = [text.index(words) for words in ("now 24, try 12", "model.checkpoint_blocks=all", "selection.keep_ratio (now 0.30")]
    assert places == sorted(places)
    assert "\n" not in text and "bucket" not in text and "offload" not in text and "expandable" not in text


def test_what_is_done_already_is_not_advised():
    text = advise_on_memory(replace(RUN, micro_batch=1, hardware_flops_per_clip=133), MOSTLY_ACTIVATIONS)
    assert text.startswith("lower selection.keep_ratio")
    text = advise_on_memory(replace(RUN, micro_batch=1, hardware_flops_per_clip=133, kept=15, visible=15), {})
    assert text.startswith("use a smaller model, more ranks, or --ds_config zero2_offload")


def test_the_plan_of_this_very_run_is_a_command_to_paste():
    text = advise_on_memory(replace(RUN, world_size=4, device_name="NVIDIA A100-SXM4-40GB"), MOSTLY_ACTIVATIONS)
    assert text.endswith(" plan --recipe run/recipe.yaml --ds_config run/ds_config.json --gpus 4 --gpu a100-40g`")
    assert "--gpu " not in plan_command(replace(RUN, device_name="NVIDIA Foo 9000"))


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"buckets": 40, "activations": 60}, "lower reduce_bucket_size and allgather_bucket_size"),
        (
            {"master_weights": 30, "moments": 40, "activations": 30},
            "lower optimizer states by more ranks or --ds_config zero2_offload",
        ),
        ({"cache": 50, "activations": 50}, "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True (50% of the memory is reserved"),
    ],
)
def test_what_takes_most_is_named_first(kinds, words):
    assert advise_on_memory(RUN, kinds).startswith(words)
