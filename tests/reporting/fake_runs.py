"""Run folders as a trainer leaves them, written without training: every figure follows from step
and rank."""

import math
import random

from mats_ds.core.events import RunInfo
from mats_ds.core.run_dir import SCHEMA, Outcome, write_outcome, write_run
from mats_ds.metering.step_record import RecordWriter, StepRecord
from mats_ds.planning.plan_file import Plan

GIB = 2**30
STATIC_BYTES, CLIP_BYTES = 3 * GIB, GIB // 16


def make_run_info(run_dir, **changes):
    fields = dict(
        run_dir=str(run_dir), rank=0, world_size=2, device="cpu", device_name="CPU", recipe_name="tiny", model_name="tiny",
        num_parameters=3_000_000, precision="fp32", zero_stage=2, micro_batch=3, accumulation=1, global_batch=6, total_steps=9,
        steps_per_epoch=4, first_step=0, learning_rate=1e-3, num_tokens=1568, kept=470, visible=156, targets=314,
        forward_macs_per_clip=19_800_000_000, model_flops_per_clip=120_000_000_000, hardware_flops_per_clip=150_000_000_000,
        static_bytes={"weights": GIB, "gradients": GIB // 2, "moments": GIB, "buckets": GIB // 2},
        versions={"torch": "2.15"}, data_name="synthetic", command="mats_ds/pretrain.py --recipe tiny",
        started="2026-01-05 10:00:00",
    )  # fmt: skip
    return RunInfo(**(fields | changes))


def make_record(step=1, rank=0, *, peak_reserved_bytes=None, **changes):
    fields = dict(
        schema=SCHEMA, step=step, epoch=(step - 1) // 4, rank=rank, unix_seconds=1.7e9 + step, loss=1.0 / step,
        learning_rate=1e-3, grad_norm=0.5, num_clips=3, num_substitutes=0, num_bad_clips=0, num_bad_clips_total=0,
        data_seconds=0.05, forward_seconds=0.25, backward_seconds=0.6, optimizer_seconds=0.05, total_seconds=1.0,
        clips_per_second=3.0, kept=470, visible=156, targets=314, num_tokens=1568, model_flops=360_000_000_000,
        hardware_flops=450_000_000_000, rss_bytes=GIB, peak_rss_bytes=2 * GIB + rank,
    )  # fmt: skip
    if peak_reserved_bytes is not None:
        fields |= dict(
            peak_allocated_bytes=peak_reserved_bytes - GIB // 2, peak_reserved_bytes=peak_reserved_bytes, allocated_bytes=GIB,
            reserved_bytes=peak_reserved_bytes, num_alloc_retries=0, num_ooms=0, nvml_used_bytes=peak_reserved_bytes + GIB,
            nvml_utilization_percent=93.0, nvml_power_watts=300.0, peak_active_bytes=peak_reserved_bytes - GIB // 2,
            peak_inactive_bytes=GIB // 4, clip_bytes=CLIP_BYTES, joules=330.0, mfu=0.36, hfu=0.45,
            activation_bytes=max(0, peak_reserved_bytes - GIB // 2 - STATIC_BYTES - CLIP_BYTES),
        )  # fmt: skip
    return StepRecord(**(fields | changes))


def make_plan(**changes):
    """A plan of the run that make_record makes up, with more activations and a shorter step."""
    kinds = {"weights": GIB, "gradients": GIB // 2, "moments": GIB, "buckets": GIB // 2, "clips": CLIP_BYTES}
    fields = dict(
        world_size=2, micro_batch=3, bytes_by_kind=kinds | {"activations": 6 * GIB, "cache": GIB // 2, "outside": GIB},
        model_flops_per_clip=120_000_000_000, hardware_flops_per_clip=150_000_000_000, clips_per_second=7.5, step_seconds=0.8,
    )  # fmt: skip
    return Plan(**(fields | changes))


def write_records(run_dir, records, *, rank=0):
    writer = RecordWriter(run_dir, rank=rank)
    for record in records:
        writer.append(record)
    writer.close()
    return writer.path


def write_fake_run(run_dir, *, num_steps=9, world_size=2, outcome="finished", record=make_record, **changes):
    """A run folder with `record(step, rank)` of every step and rank; `outcome` None: it has not
    ended."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_run(run_dir, make_run_info(run_dir, world_size=world_size, total_steps=num_steps, **changes))
    for rank in range(world_size):
        write_records(run_dir, (record(step, rank) for step in range(1, num_steps + 1)), rank=rank)
    if outcome is not None:
        write_outcome(run_dir, Outcome(outcome, num_steps, 1.7e9 + num_steps + 1))
    return run_dir


def make_lifelike_record(step, rank, *, num_steps=1200):
    """A record of a run that looks like one: noise, warm-up, a memory step, a slow loader now and
    then."""
    dice = random.Random(step * 64 + rank)
    slow = 0.35 if step % 97 < 3 and rank == 5 else 0.0
    data, forward = 0.01 + 0.01 * dice.random() + slow, 0.2 + 0.01 * dice.random() + (0.03 if rank == 3 else 0.0)
    # all wait for the last in the backward pass
    total = 0.7 + 0.02 * dice.random() + (0.35 if step % 97 < 3 else 0.0)
    backward = total - data - forward - 0.05
    warmup = num_steps / 10
    rate = 6e-4 * (step / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
    return make_record(
        step, rank, loss=0.45 + 0.6 * math.exp(-4 * step / num_steps) + 0.02 * dice.random(), learning_rate=rate,
        mfu=0.42 * 0.65 / total, joules=9 * 32 * (1 + 0.02 * dice.random()),
        grad_norm=0.3 + math.exp(-6 * step / num_steps) * dice.random(), data_seconds=data, forward_seconds=forward,
        backward_seconds=backward, optimizer_seconds=0.04, total_seconds=total, num_clips=32, clips_per_second=32 / total,
        peak_reserved_bytes=int((52 + rank * 0.7 + (6 if step > num_steps / 3 else 0)) * GIB),
    )  # fmt: skip


def gpu_record(step, rank):
    """A step on a GPU: 21 GiB in use on rank 0, a GiB more on each further one."""
    return make_record(step, rank, peak_reserved_bytes=(20 + rank) * GIB)


def run_report(capsys, *arguments):
    """Exit status, printed text, and errors of one report."""
    from mats_ds import report

    status = report.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err
