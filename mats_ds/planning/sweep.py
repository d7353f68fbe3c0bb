"""Memory, FLOPs and time of every model size on every node, MATS beside VideoMAE: settings -> cells
-> text and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from mats_ds.config.ds_config import precision_of
from mats_ds.core.format import format_count
from mats_ds.core.gpus import GPUS, Gpu, num_engines
from mats_ds.planning.forecast import KNOWN_CLIPS, Forecast, LoaderMemory, TimePlan, forecast, largest_micro_batch, plan_time
from mats_ds.planning.memory import plan_memory
from mats_ds.planning.workload import Workload

SIZES = {"small": "S", "base": "B", "large": "L", "huge": "H"}
SWEPT_GPUS = ("a100-80g", "a100-40g", "a6000-48g", "3090-24g", "h100-80g")
METHODS = ("MATS", "VideoMAE")
TASKS = ("pretrain", "finetune")
EPOCH_CLIPS = KNOWN_CLIPS["k400"]
# EVEREST, ICML 2024 (arXiv 2211.10636), ViT-L pre-training at batch 256 on 8 GPUs, GB in total.
PUBLISHED_GB = {"MATS": 164.1, "VideoMAE": 634.1}
PUBLISHED_BATCH = 256
GB = 1e9


@dataclass(frozen=True)
class Cell:
    """One cell of the sweep. `asked`: at the JSON's micro-batch; `largest`: the largest that fits,
    0 if none does."""

    size: str
    method: str
    task: str
    asked: Forecast
    largest: int
    at_largest: Forecast | None
    time: TimePlan


def work_of(base: Workload, *, size: str, method: str, task: str) -> Workload:
    """The method's pre-training or fine-tuning with the base's clip and recomputation.

    VideoMAE: tube masking with all masked tokens in the decoder; all tokens in fine-tuning.
    """
    pruning = replace(base.pruning, strategy="mats" if method == "MATS" else "tube")
    work = replace(base, task="pretrain", model_name=size, decoder_depth=None, pruning=pruning)
    if task == "pretrain":
        return work
    work = replace(work, pruning=replace(work.pruning, strategy="mats"))
    return work.for_finetuning() if method == "MATS" else work.for_finetuning(keep_ratio=1.0)


def loader_on(gpu: Gpu, loader: LoaderMemory) -> LoaderMemory:
    """The loader's settings with as many DALI pipelines as the trainer opens on this GPU."""
    from mats_ds.data.loading.dali import DEFAULT_GRAPHS  # imports torch

    return replace(loader, num_pipelines=num_engines(gpu.device_name) or DEFAULT_GRAPHS)


def sweep(
    base: Workload, ds_config: Mapping[str, Any], *, world_size: int, micro_batch: int, loader: LoaderMemory, mfu: float
) -> list[Cell]:
    """All cells, in the order of the table."""
    cells = []
    for task, size, name, method in product(TASKS, SIZES, SWEPT_GPUS, METHODS):
        gpu = GPUS[name]
        work = work_of(base, size=size, method=method, task=task)
        how = dict(gpu=gpu, world_size=world_size, loader=loader_on(gpu, loader))
        largest = largest_micro_batch(work, ds_config, **how)
        time = plan_time(
            work.flops(),
            device_name=gpu.device_name,
            world_size=world_size,
            clips_per_step=micro_batch * world_size,
            num_clips=EPOCH_CLIPS,
            epochs=1,
            steps=None,
            mfu=mfu,
            precision=precision_of(ds_config),
        )
        cells.append(
            Cell(
                size=size,
                method=method,
                task=task,
                asked=forecast(work, ds_config, micro_batch=micro_batch, **how),
                largest=largest,
                at_largest=forecast(work, ds_config, micro_batch=largest, **how) if largest else None,
                time=time,
            )
        )
    return cells


def format_sweep(cells: list[Cell], *, micro_batch: int, world_size: int, mfu: float) -> str:
    """The table for a console: one line a size and node, both methods side by side."""
    lines = [
        f"Per GPU of {world_size}, ZeRO as in the JSON: GB in total at micro-batch {micro_batch} (* does not fit), the largest",
        f"micro-batch that fits, training TFLOPs a clip, minutes for an epoch of {EPOCH_CLIPS:,} clips at {100 * mfu:.0f}% MFU.",
    ]
    for task in TASKS:
        lines += ["", "pre-training" if task == "pretrain" else "fine-tuning (60% of the tokens with MATS, all with VideoMAE)"]
        lines.append(
            f"{'model':6}{'node':14}" + "".join(f"| {method:10}{'GB':>7}{'max':>6}{'TFLOP':>8}{'min':>7} " for method in METHODS)
        )
        rows = {}
        for cell in (cell for cell in cells if cell.task == task):
            rows.setdefault((cell.size, cell.asked.gpu.name), []).append(cell)
        for (size, gpu), pair in rows.items():
            text = f"{'ViT-' + SIZES[size]:6}{f'{world_size}x{gpu}':14}"
            lines.append(text + "".join(_format_cell(cell) for cell in pair))
    return "\n".join(lines)


def _format_cell(cell: Cell) -> str:
    mark = "" if cell.asked.fits else "*"
    total = f"{cell.asked.total_bytes / GB:.1f}{mark}"
    minutes = "-" if cell.time.hours is None else f"{60 * cell.time.hours:.1f}"
    flops = f"{cell.asked.workload.flops().training_flops / 1e12:.3f}"
    return f"| {'':10}{total:>7}{cell.largest:>6}{flops:>8}{minutes:>7} "


def compare_published(base: Workload, ds_config: Mapping[str, Any], *, world_size: int) -> list[str]:
    """ViT-L at the published batch: tensors of all GPUs together, at three levels of recomputation,
    beside the published GB."""
    lines = [
        f"ViT-L pre-training at a global batch of {PUBLISHED_BATCH:,} on {format_count(world_size, 'GPU')}, "
        "tensors of all GPUs at their peak, GB (published: EVEREST, decoder depth not stated):"
    ]
    for method in METHODS:
        work = work_of(base, size="large", method=method, task="pretrain")
        figures = []
        for depth in (work.decoder_depth, 4):
            for recompute, blocks in (("none", "none"), ("pointwise", "none"), ("mlp", "none"), ("none", "all")):
                changed = replace(work, decoder_depth=depth, recompute=recompute, checkpoint_blocks=blocks)
                plan = plan_memory(changed, ds_config, world_size=world_size, micro_batch=PUBLISHED_BATCH // world_size)
                name = "checkpoint_blocks=all" if blocks == "all" else f"recompute={recompute}"
                figures.append(f"{name} {plan.peak_bytes * world_size / GB:.1f}")
            figures[-1] += f" ({format_count(depth, 'decoder block')});"
        lines.append(
            f"  {method:9} published {PUBLISHED_GB[method]:.1f}; ours " + ", ".join(figures).replace(";,", ";").rstrip(";")
        )
    return lines


def sweep_to_json(cells: list[Cell]) -> list[dict[str, Any]]:
    """The cells for machines; bytes, FLOPs of a clip, hours of an epoch."""
    return [
        {
            "size": cell.size,
            "method": cell.method,
            "task": cell.task,
            "card": cell.asked.gpu.name,
            "micro_batch": cell.asked.micro_batch,
            "fits": cell.asked.fits,
            "total_bytes": cell.asked.total_bytes,
            "largest_micro_batch": cell.largest,
            "bytes_at_largest": None if cell.at_largest is None else cell.at_largest.bytes_by_kind,
            "model_flops_per_clip": cell.asked.workload.flops().training_flops,
            "epoch_hours": cell.time.hours,
        }
        for cell in cells
    ]
