"""A plan as text and as JSON: question and forecast -> what `mats plan` prints."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mats_ds.core.format import HOUR, format_bytes, format_count, format_duration, format_figure, format_flops
from mats_ds.metering.device_memory import name_kind
from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.planning.forecast import Forecast, Overheads, forecast
from mats_ds.planning.question import Question
from mats_ds.planning.workload import Workload

if TYPE_CHECKING:
    from mats_ds.planning.memory import ExactMemory

EXACT_KINDS = ("weights", "gradients", "master_weights", "moments", "buckets", "clips", "waiting_clips")
KIND_NAMES = {
    "waiting_clips": "prefetched clips, and a micro-batch that is assembled",
    "activations": "activations and temporaries at the peak",
    "decoder": "decoder surfaces and decoded clips (NVDEC, DALI)",
    "outside": "CUDA context, NCCL, cuBLAS",
}


def format_plan(question: Question, planned: Forecast, *, largest: int, exact: ExactMemory | None) -> str:
    """The verdict first, then memory, computation and time, then what was assumed."""
    lines = [_verdict(question, planned, largest), *_how_to_fit(question, planned), "", *_memory(planned), ""]
    if exact is not None:
        lines += [*_compare_exact(planned, exact), ""]
    lines += [*_blocks(planned), "", *_compute(question), "", "assumed:"]
    return "\n".join([*lines, *(f"  {note}" for note in _assumptions(question))])


def plan_to_json(question: Question, planned: Forecast, *, largest: int, exact: ExactMemory | None) -> dict[str, Any]:
    """The plan for programs; bytes, FLOPs, seconds."""
    flops = question.workload.flops()
    return {
        "fits": planned.fits,
        "card": asdict(question.gpu),
        "gpus": question.world_size,
        "micro_batch": planned.micro_batch,
        "accumulation": planned.accumulation,
        "largest_micro_batch": largest,
        "total_bytes": planned.total_bytes,
        "limit_bytes": planned.limit_bytes,
        "bytes_by_kind": planned.bytes_by_kind,
        "host_bytes": planned.memory.host_bytes,
        "tensors_bytes": planned.memory.peak_bytes,
        "peak_moment": planned.memory.peak_moment,
        "moments": planned.memory.moments,
        "saved_for_backward_bytes": planned.memory.activations.saved_bytes,
        "blocks_bytes": list(planned.memory.activations.blocks_bytes),
        "exact": None if exact is None else {**asdict(exact), "peak_bytes": exact.peak_bytes},
        "forward_macs_per_clip": flops.forward_macs,
        "model_flops_per_clip": flops.training_flops,
        "hardware_flops_per_clip": flops.hardware_flops,
        "learning_rate": _peak_learning_rate(question),
        "steps": question.time.total_steps,
        "steps_per_epoch": question.time.steps_per_epoch,
        "mfu": question.time.mfu,
        "step_seconds": question.time.step_seconds,
        "hours": question.time.hours,
        "assumptions": _assumptions(question),
    }


def _verdict(question: Question, planned: Forecast, largest: int) -> str:
    work, zero = planned.workload, question.ds_config.get("zero_optimization", {}).get("stage", 0)
    depth = f", {format_count(work.decoder_depth, 'decoder block')}" if work.task == "pretrain" else ""
    what = f"{work.model_name} {work.task} ({work.pruning.strategy}{depth}), micro-batch {planned.micro_batch:,}, "
    what += f"{question.precision}, ZeRO-{zero}"
    percent = 100 * planned.total_bytes / planned.gpu.memory_bytes
    need = f"{format_bytes(planned.total_bytes)} of {format_bytes(planned.gpu.memory_bytes)} ({percent:.0f}%)"
    verdict = "FITS" if planned.fits else "DOES NOT FIT"
    most = f"the largest micro-batch that fits is {largest:,}" if largest else "not even a micro-batch of one clip fits"
    return f"{verdict}: {what} on {planned.world_size:,} x {planned.gpu.name}: {need} a GPU; {most}"


def _how_to_fit(question: Question, planned: Forecast) -> list[str]:
    """What to set for a run that does not fit, with the numbers that do; no line for one that
    fits."""
    if planned.fits:
        return []
    recomputing = replace(planned.workload, checkpoint_blocks="all")
    micro, checkpointed = (_fitting(question, workload) for workload in (planned.workload, recomputing))
    ways = []
    if micro:
        ways.append(f"train_micro_batch_size_per_gpu {micro} in the DeepSpeed JSON (accumulation keeps the global batch)")
    if checkpointed > micro and planned.workload != recomputing:
        ways.append(f"model.checkpoint_blocks=all with train_micro_batch_size_per_gpu {checkpointed}")
    return [f"to fit: {'; or '.join(ways) or 'more GPUs, larger ones or a smaller model.name'}"]


def _fitting(question: Question, workload: Workload) -> int:
    """The largest micro-batch, up to the one asked for, that fits and that accumulates to the
    global batch (which takes memory itself); 0 if there is none."""
    batch, world_size = question.batch, question.world_size
    for micro in range(batch.micro_batch, 0, -1):
        accumulation, rest = divmod(batch.global_batch, micro * world_size)
        how = dict(world_size=world_size, micro_batch=micro, accumulation=accumulation, loader=question.loader)
        if not rest and forecast(workload, question.ds_config, gpu=question.gpu, **how).fits:
            return micro
    return 0


def _memory(planned: Forecast) -> list[str]:
    lines = [f"memory of one GPU, at the peak ({planned.memory.peak_moment}):"]
    for kind, size in planned.bytes_by_kind.items():
        source = "closed form" if kind in (*EXACT_KINDS, "activations") else "assumed, not measured on this GPU"
        lines.append(f"  {format_bytes(size):>12}  {KIND_NAMES.get(kind) or name_kind(kind)} ({source})")
    lines.append(f"  {format_bytes(planned.total_bytes):>12}  in total")
    margin = planned.gpu.memory_bytes - planned.limit_bytes
    lines.append(f"  {format_bytes(margin):>12}  margin that is kept free")
    lines += [f"  {format_bytes(size):>12}  {name_kind(kind)}" for kind, size in planned.memory.host_bytes.items()]
    return lines


def _compare_exact(planned: Forecast, exact: ExactMemory) -> list[str]:
    deviation = 100 * (planned.memory.peak_bytes / exact.peak_bytes - 1)
    peak = format_bytes(planned.memory.peak_bytes)
    return [
        "the real engine on fake tensors (--exact), tensors alone:",
        f"  {format_bytes(exact.peak_bytes):>12}  peak; the closed form says {peak} ({deviation:+.2f}%)",
        f"  {format_bytes(exact.saved_bytes):>12}  kept for backward; the closed form says "
        f"{format_bytes(planned.memory.activations.saved_bytes)}",
    ]


def _blocks(planned: Forecast) -> list[str]:
    work, acts = planned.workload, planned.memory.activations
    depth = MODEL_SIZES[work.model_name].depth
    level = f"recompute {work.recompute}, checkpoint_blocks {work.checkpoint_blocks}"
    lines = [f"kept for backward: {format_bytes(acts.saved_bytes)} ({level})"]
    stacks = [("encoder", acts.blocks_bytes[:depth], work.visible)]
    if work.task == "pretrain":
        stacks.append(("decoder", acts.blocks_bytes[depth:], work.visible + work.targets))
    for name, blocks, tokens in stacks:
        sizes = sorted(set(blocks), reverse=True)
        groups = ", ".join(f"{blocks.count(size)} of {format_bytes(size)}" for size in sizes)
        lines.append(f"  {format_bytes(sum(blocks)):>12}  {name}, {format_count(tokens, 'token')}: {groups}")
    lines.append(f"  {format_bytes(acts.other_saved_bytes):>12}  patches, last norms, loss")
    return lines


def _compute(question: Question) -> list[str]:
    flops, time, batch = question.workload.flops(), question.time, question.batch
    epoch_clips = time.steps_per_epoch * time.clips_per_step
    forward = f"{format_figure(flops.forward_macs / 1e9, 4)} GMACs ({format_flops(flops.forward_flops)})"
    lines = [
        f"computation of a clip: forward {forward}; forward and backward "
        f"{format_flops(flops.training_flops)} needed, {format_flops(flops.hardware_flops)} executed",
        f"  a step: {format_flops(flops.training_flops * time.clips_per_step)}; an epoch of "
        f"{format_count(time.steps_per_epoch, 'step')}: "
        f"{format_flops(flops.training_flops * epoch_clips)}",
        f"  batch: {batch.note}; at its peak it is {_peak_learning_rate(question):.3g}",
    ]
    if time.step_seconds is not None:
        lines.append(
            f"  time at MFU {100 * time.mfu:.0f}%: {format_figure(time.step_seconds, 3)} s a step, "
            f"{format_figure(time.clips_per_second, 3)} clips/s, "
            f"{format_duration(HOUR * time.hours)} for {format_count(time.total_steps, 'step')}"
        )
    return lines


def _peak_learning_rate(question: Question) -> float:
    return question.recipe.optim.base_lr * question.batch.learning_rate_scale


def _assumptions(question: Question) -> list[str]:
    overheads = Overheads()
    return [
        *question.notes,
        f"outside of tensors, none of it measured on this GPU: CUDA context {format_bytes(overheads.context)}, NCCL "
        f"{format_bytes(overheads.nccl)}, cuBLAS {format_bytes(overheads.cublas)}, {100 * overheads.fragments_fraction:.0f}% of "
        f"the tensors as fragments, {100 * overheads.margin_fraction:.0f}% of the GPU's memory as margin",
        f"{question.loader.num_pipelines} DALI pipelines on videos of {question.loader.width}x{question.loader.height}, "
        f"{overheads.surfaces} NVDEC surfaces each",
    ]
