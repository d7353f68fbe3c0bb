"""What grows with the number of GPUs: memory, communication, decoding, checkpoints, batch.
Planner's figures -> Markdown tables.

    python profiling/scaling.py [--gpus 8 64 1024] [--models base large] [--gpu a100-80g]
        [--mfu 0.35]

The tables of docs/explanation/scaling.md are this program's output; a test compares them.
Everything is computed: nothing was measured on several machines, and link and disk speeds are
assumptions (mats_ds/planning/scaling.py).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from mats_ds.core.interrupts import begin_script  # noqa: E402

if __name__ == "__main__":
    begin_script()

from mats_ds.config.ds_config import list_json_names, read_ds_config, read_judged  # noqa: E402
from mats_ds.core.cli import ArgumentParser, importing, leave, run_script  # noqa: E402
from mats_ds.core.format import MIB  # noqa: E402
from mats_ds.core.gpus import find_gpu, num_engines  # noqa: E402
from mats_ds.metering.device_memory import name_kind  # noqa: E402
from mats_ds.models.sizes import MODEL_SIZES  # noqa: E402
from mats_ds.planning.forecast import ASSUMED_MFU  # noqa: E402
from mats_ds.planning.scaling import GB, Scale, Site, plan_scale  # noqa: E402

MB = 1e6
# Milliseconds of one core for a clip of 16 frames at stride 4, from the file to crops:
# benchmarks/results/loader-2026-11-22.md.
COPY_MILLISECONDS, ORIGINAL_MILLISECONDS = 8.6, 27.0
# of the recipes, of VideoMAE (arXiv 2203.12602), and of MAE (arXiv 2111.06377)
BATCHES = (192, 1024, 4096)
NAMES = {"tiny": "tiny", "small": "ViT-S", "base": "ViT-B", "large": "ViT-L", "huge": "ViT-H"}


def memory_rows(scales: Sequence[Scale]) -> list[list[str]]:
    """MiB of one GPU by kind."""
    kinds = scales[0].planned.bytes_by_kind
    rows = [[name_kind(kind), *(f"{scale.planned.bytes_by_kind[kind] / MIB:,.0f}" for scale in scales)] for kind in kinds]
    rows.append(["**in all, MiB**", *(f"**{scale.planned.total_bytes / MIB:,.0f}**" for scale in scales)])
    return rows


def link_rows(scales: Sequence[Scale]) -> list[list[str]]:
    """Bytes sent in a step, and how long that takes."""
    site = scales[0].site
    return [
        _row("buckets of gradients a step, at least", scales, lambda s: f"{s.num_buckets}"),
        _row("a GPU sends for gradients, MB", scales, lambda s: f"{s.reduced_bytes / MB:,.0f}"),
        _row("a GPU sends for weights, MB", scales, lambda s: f"{s.gathered_bytes / MB:,.0f}"),
        _row("a step computes, ms", scales, lambda s: f"{1000 * s.time.step_seconds:.0f}"),
        _row("sending, one 100 Gb/s card a machine, ms", scales, lambda s: f"{1000 * s.link_seconds(site.one_adapter):.1f}"),
        _row("sending, eight of 200 Gb/s, ms", scales, lambda s: f"{1000 * s.link_seconds(site.eight_adapters):.1f}"),
    ]


def decode_rows(scales: Sequence[Scale]) -> list[list[str]]:
    """Clips that have to be decoded, and the cores and engines for it."""
    gpus = scales[0].site.gpus_per_machine
    engines = num_engines(scales[0].planned.gpu.device_name) or 1

    def cores(scale: Scale, milliseconds: float) -> str:
        return f"{gpus * scale.clips_per_second_per_gpu * milliseconds / 1000:.0f}"

    return [
        _row("clips/s, one machine of 8 GPUs", scales, lambda s: f"{gpus * s.clips_per_second_per_gpu:,.0f}"),
        _row("clips/s, all machines", scales, lambda s: f"{s.time.clips_per_second:,.0f}"),
        _row("cores a machine, training copies", scales, lambda s: cores(s, COPY_MILLISECONDS)),
        _row("cores a machine, originals", scales, lambda s: cores(s, ORIGINAL_MILLISECONDS)),
        _row(
            f"frames/s for each of a GPU's {engines} NVDEC engines",
            scales,
            lambda s: f"{s.clips_per_second_per_gpu * s.frames_per_clip / engines:,.0f}",
        ),
    ]


def checkpoint_rows(scales: Sequence[Scale]) -> list[list[str]]:
    """Bytes and files of one checkpoint."""
    return [
        _row("a save in all, GB", scales, lambda s: f"{s.checkpoint_bytes / GB:.2f}"),
        _row("a rank's part, MB", scales, lambda s: f"{s.optimizer_bytes / MB:,.1f}"),
        _row("files", scales, lambda s: f"{s.world_size + 1:,}"),
        _row("seconds at 2 GB/s in all", scales, lambda s: f"{s.checkpoint_bytes / s.site.disk:.1f}"),
    ]


def batch_rows(scales: Sequence[Scale]) -> list[list[str]]:
    """Batch, learning rate and steps with a constant micro-batch."""
    return [
        _row("global batch, clips", scales, lambda s: f"{s.batch.global_batch:,}"),
        _row("peak learning rate, linear rule", scales, lambda s: f"{s.recipe.optim.base_lr * s.batch.learning_rate_scale:.2g}"),
        _row("steps an epoch", scales, lambda s: f"{s.time.steps_per_epoch:,}"),
        _row("steps of 200 epochs", scales, lambda s: f"{s.time.total_steps:,}"),
        _row("hours of 200 epochs, no stalls", scales, lambda s: f"{s.time.hours:.2f}"),
    ]


def held_batch_rows(world_sizes: Sequence[int], *, micro_batch: int) -> list[list[str]]:
    """The split of a constant global batch: micro-batch x accumulation."""
    rows = []
    for batch in BATCHES:
        cells = []
        for world_size in world_sizes:
            clips = batch // world_size
            micro = next((micro for micro in range(min(micro_batch, clips), 0, -1) if clips % micro == 0), 0)
            cells.append(f"{micro} x {clips // micro}" if micro and batch % world_size == 0 else "no: less than a clip a GPU")
        rows.append([f"{batch:,}", *cells])
    return rows


def format_scaling(scales: Sequence[Scale], *, world_sizes: Sequence[int], micro_batch: int) -> str:
    """All tables, each below its title."""
    heads = [f"{NAMES[scale.workload.model_name]}, {scale.world_size:,} GPUs" for scale in scales]
    makers = {
        "Memory of one GPU at the peak, MiB": memory_rows,
        "Communication of a step": link_rows,
        "Decoding": decode_rows,
        "Checkpoints": checkpoint_rows,
        "Batch and learning rate, micro-batch kept": batch_rows,
    }
    parts = [f"### {title}\n\n{_table(['', *heads], make(scales))}" for title, make in makers.items()]
    counts = [f"{world_size:,} GPUs" for world_size in world_sizes]
    held = held_batch_rows(world_sizes, micro_batch=micro_batch)
    parts.append(f"### Micro-batch x accumulation for a batch that stays\n\n{_table(['global batch', *counts], held)}")
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> None:
    gpu = find_gpu(options.gpu)
    read_judged(options.ds_config)
    # DeepSpeed prints on stdout, before the answer, that there is no GPU
    with contextlib.redirect_stdout(sys.stderr), importing("torch", "deepspeed"):
        ds_config = read_ds_config(options.ds_config)
    how = dict(gpu=gpu, ds_config=ds_config, mfu=options.mfu, site=Site())
    scales = [plan_scale(model, world_size, **how) for model in options.models for world_size in options.gpus]
    micro_batch = scales[0].batch.micro_batch
    print(format_scaling(scales, world_sizes=options.gpus, micro_batch=micro_batch))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description=(__doc__ or "").replace("profiling/scaling.py", sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default_json = Path(__file__).resolve().parents[1] / "ds_configs" / "zero2.json"
    parser.add_argument("--gpus", type=_at_least_two, nargs="+", default=[8, 64, 1024], help="numbers of GPUs (8 64 1024)")
    parser.add_argument("--models", nargs="+", choices=list(MODEL_SIZES), default=["base", "large"], help="(base large)")
    parser.add_argument("--gpu", default="a100-80g", metavar="GPU", help="kind of GPU (default: %(default)s)")
    parser.add_argument(
        "--ds_config", default=str(default_json), help=f"DeepSpeed JSON, or one of {', '.join(list_json_names())} (zero2)"
    )
    parser.add_argument("--mfu", type=float, default=ASSUMED_MFU, help="fraction of the peak (default: %(default)s, assumed)")
    return parser.parse_args(arguments)


def _at_least_two(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"expected a number of GPUs from 2 on, got {text!r}")
    return int(text)


def _row(title: str, scales: Sequence[Scale], cell: Callable[[Scale], str]) -> list[str]:
    return [title, *map(cell, scales)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    leave(main())
