"""Advice for a run that ran out of memory: a run's settings and its memory by kind -> one line.
Pure text, no device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mats_ds.core.events import RunInfo
from mats_ds.core.gpus import GPUS
from mats_ds.core.storage.package_files import own_command
from mats_ds.metering.device_memory import ACTIVATIONS, CACHE, CLIPS

LARGE_FRACTION = 0.15  # of the GPU's memory in use: worth an advice of its own
EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


def advise_on_memory(run: RunInfo, kinds: Mapping[str, int]) -> str:
    """One line on what to lower, what helps most first. `kinds`: memory by kind at the last
    measured peak, may be empty."""
    total = sum(kinds.values())
    fractions = {kind: size / total for kind, size in kinds.items()} if total else {}
    lower = []
    if run.micro_batch > 1:
        half = max(1, run.micro_batch // 2)
        lower.append(
            f"train_micro_batch_size_per_gpu in the DeepSpeed JSON (now {run.micro_batch}, try {half}: accumulation keeps the "
            "global batch)"
        )
    # most blocks keep their activations
    if run.hardware_flops_per_clip <= 1.2 * run.model_flops_per_clip:
        lower.append("activations by recomputing them: model.checkpoint_blocks=all")
    if run.kept > run.visible > 0:
        lower.append(f"selection.keep_ratio (now {run.kept / run.num_tokens:.2f} of the tokens; this changes what is learned)")
    if fractions.get("buckets", 0) > LARGE_FRACTION:
        lower.insert(0, "reduce_bucket_size and allgather_bucket_size in the DeepSpeed JSON")
    optimizer = sum(fractions.get(kind, 0) for kind in ("master_weights", "moments"))
    if optimizer > LARGE_FRACTION and optimizer > fractions.get(ACTIVATIONS, 0) + fractions.get(CLIPS, 0):
        lower.insert(0, "optimizer states by more ranks or --ds_config zero2_offload")
    text = "lower " + ", or ".join(lower) if lower else "use a smaller model, more ranks, or --ds_config zero2_offload"
    if fractions.get(CACHE, 0) > LARGE_FRACTION:
        text = f"set {EXPANDABLE} ({100 * fractions[CACHE]:.0f}% of the memory is reserved but free), or {text}"
    return f"{text}; what fits says `{plan_command(run)}`"


def plan_command(run: RunInfo) -> str:
    """The command that plans this very run, recipe, JSON, ranks and GPU, and names the largest
    micro-batch that fits."""
    folder = Path(run.run_dir)
    known = next((gpu.name for gpu in GPUS.values() if gpu.device_name == run.device_name), None)
    words = ["--recipe", folder / "recipe.yaml", "--ds_config", folder / "ds_config.json", "--gpus", run.world_size]
    return own_command("plan", *words, *(("--gpu", known) if known else ()))
