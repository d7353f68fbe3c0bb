"""A training step of the model alone, on one device: clips/s, MFU, memory, its two halves; beside
Hugging Face's VideoMAE.

bf16 weights (float32 on a CPU), synthetic frames that lie on the device, forward and backward: the
optimizer is ZeRO's and measured in zero.py. Ours and the peer take turns in every round, and ratios
are medians over rounds of one process. Cells come in the order of their worth; those that the time
does not reach are named. Every cell's peak is compared with the plan's.
"""

from __future__ import annotations

import gc
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.cells import PAPER_BATCH, TITLES, Cell, list_cells  # noqa: E402
from benchmarks.gpu.part import Part, begin_part  # noqa: E402

NUM_CLASSES = 400
RATIOS = {"pretrain": (0.3, 0.1), "finetune": (0.6, 0.6)}
MIB = 2**20
LAUNCH = re.compile(r"cu(da)?Launch\w*|cudaGraphLaunch|cudaMem(cpy|set)\w*")
GOAL_MFU, GOAL_SPEED, GOAL_MEMORY, GOAL_PLAN = 0.50, 4.0, 0.30, 0.05
# a guess: a cell that cannot end in time is not begun
COMPILE_SECONDS = {"small": 40, "base": 45, "large": 80, "tiny": 30}


def main() -> int:
    part = begin_part("step")
    if absent := part.lacks("torch", "timm", "einops", "numpy"):
        part.add_line("step", f"not measured without {', '.join(absent)}")
        return part.finish()
    import torch

    rate = measure_rate(part) if part.on_gpu else None
    left, has_peer = [], not part.lacks("transformers")
    for cell in list_cells(part):
        cell = cell if has_peer else replace(cell, peer=False)
        if part.seconds_left() < (COMPILE_SECONDS[cell.size] if cell.compiled else 8 if part.on_gpu else 1):
            left.append(str(cell))
            continue
        try:
            report(part, cell, measure(cell, part), rate)
        except torch.OutOfMemoryError:
            part.add_line(str(cell), "does not fit")
        except Exception as error:  # of a compiler or a peer: the other cells go on
            part.add(cell=str(cell), error=repr(error))
            part.add_line(str(cell), f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
        free(part)
    find_largest(part)
    judge_plan(part)
    if left:
        part.add_line("not reached in time", "; ".join(left))
    return part.finish()


def measure_rate(part: Part) -> float:
    """FLOP/s of a large bf16 product on this device."""
    import torch

    from mats_ds.metering.peak_flops import measure_peak

    rate = measure_peak(torch.device(part.device))
    part.add(matrix_flops_per_second=rate)
    return rate


def grid_of(part: Part):
    from mats_ds import TokenGrid

    return TokenGrid() if part.on_gpu else TokenGrid(num_frames=16, height=64, width=64, tubelet=(2, 8, 8))


def build(cell: Cell, grid):
    from mats_ds import MaskedAutoencoder, VideoClassifier

    options = dict(grid=grid, recompute=cell.recompute, checkpoint_blocks=cell.checkpoint)
    if cell.task == "pretrain":
        return MaskedAutoencoder.from_name(cell.size, **options)
    return VideoClassifier.from_name(cell.size, num_classes=NUM_CLASSES, **options)


def make_step(cell: Cell, part: Part, *, of_peer: bool) -> tuple[Callable[[], object], object]:
    """A function that computes the loss of the batch, and the model."""
    import torch

    from mats_ds.models.compiling import capture_passes, compile_blocks

    grid, device = grid_of(part), torch.device(part.device)
    dtype = torch.bfloat16 if part.on_gpu else torch.float32
    generator = torch.Generator().manual_seed(0)
    if of_peer:
        from benchmarks.gpu.peer import build_peer

        model, mask = build_peer(cell.task, cell.size, grid=grid, batch=cell.batch, num_classes=NUM_CLASSES)
        some = torch.randn(1, grid.num_frames, 3, grid.height, grid.width, generator=generator)
        pixels = some.to(device, dtype).repeat(cell.batch, 1, 1, 1, 1)
        model = model.to(device, dtype).train()
        if mask is None:
            return lambda: model(pixel_values=pixels).logits.float().square().mean(), model
        mask = mask.to(device)
        return lambda: model(pixel_values=pixels, bool_masked_pos=mask).loss, model
    shape = (1, grid.num_frames, grid.height, grid.width, 3)
    some = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames = some.to(device).repeat(cell.batch, 1, 1, 1, 1)  # what they show changes no time
    seeds = torch.arange(cell.batch, device=device)
    model = build(cell, grid).to(device, dtype).train()
    if cell.compiled:
        compile_blocks(model)
    if cell.captured:
        capture_passes(model, micro_batch=cell.batch)
    if cell.task == "pretrain":
        return lambda: model(frames, seeds), model
    return lambda: model(frames, seeds).float().square().mean(), model


def time_step(step: Callable[[], object], part: Part) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    wait(part)
    begin = time.perf_counter()
    loss = step()
    wait(part)
    middle = time.perf_counter()
    loss.backward()
    wait(part)
    return middle - begin, time.perf_counter() - middle


def time_streak(step: Callable[[], object], part: Part) -> float:
    """Seconds of a step among many, back to back, with one wait at their end: as in training, where
    the host runs ahead."""
    count = 20 if part.on_gpu else 2
    wait(part)
    begin = time.perf_counter()
    for _ in range(count):
        step().backward()
    wait(part)
    return (time.perf_counter() - begin) / count


def count_launches(step: Callable[[], object]) -> dict[str, int]:
    """How often the host hands work to the GPU in forward and backward, by the name of the call:
    kernels (CUDA's own and Triton's), graphs, copies."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step().backward()
    calls = Counter(event.name for event in profiler.events())
    return {name: number for name, number in calls.items() if LAUNCH.fullmatch(name)}


def wait(part: Part) -> None:
    if part.on_gpu:
        import torch

        torch.cuda.synchronize()


def free(part: Part) -> None:
    gc.collect()
    if part.on_gpu:
        import torch

        torch.compiler.reset()
        torch.cuda.empty_cache()


def measure(cell: Cell, part: Part, *, rounds: int = 5) -> dict:
    """Figures of a cell; those of the peer under `peer_...`."""
    import torch

    steps, peaks = {}, {}
    for name in ["ours"] + ["peer"] * cell.peer:
        before = torch.cuda.memory_allocated() if part.on_gpu else 0
        steps[name], model = make_step(cell, part, of_peer=name == "peer")
        began_seconds = time.perf_counter()
        for _ in range(2):  # kernels are chosen, gradients made
            steps[name]().backward()
        wait(part)
        peaks[name] = {"start_seconds": time.perf_counter() - began_seconds}
        if part.on_gpu:
            peaks[name] |= measure_peaks(steps[name], model, before)
            peaks[name]["launches"] = count_launches(steps[name])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds if part.on_gpu else 2):
        for name, step in steps.items():
            times[name].append(time_step(step, part))
    figures = {"steady_seconds": time_streak(steps["ours"], part)}
    for name, halves in times.items():
        stem = "" if name == "ours" else "peer_"
        forward, backward = (statistics.median(half) for half in zip(*halves, strict=True))
        best = min(sum(pair) for pair in halves)
        figures |= {f"{stem}forward_seconds": forward, f"{stem}backward_seconds": backward, f"{stem}best_seconds": best}
        figures |= {f"{stem}clips_per_second": cell.batch / statistics.median(sum(pair) for pair in halves)}
        figures |= {f"{stem}{key}": value for key, value in peaks[name].items()}
    if cell.peer:
        pairs = zip(times["ours"], times["peer"], strict=True)
        figures["times_the_peers_speed"] = statistics.median(sum(theirs) / sum(ours) for ours, theirs in pairs)
    return figures


def measure_peaks(step: Callable[[], object], model, before: int) -> dict[str, int]:
    """Bytes on top of what was allocated `before` the model: `extra` on top of weights, gradients
    and inputs; `peak` of a step that makes the gradients, as a step of training does."""
    import torch

    peaks = {}
    for name in ("extra", "peak"):
        if name == "peak":
            model.zero_grad(set_to_none=True)
        resting = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step().backward()
        torch.cuda.synchronize()
        peaks[f"{name}_bytes"] = torch.cuda.max_memory_allocated() - (resting if name == "extra" else before)
    return {**peaks, "reserved_bytes": torch.cuda.memory_reserved()}


def report(part: Part, cell: Cell, figures: dict, rate: float | None) -> None:
    from mats_ds import step_flops

    flops = step_flops(
        cell.size, grid_of(part), *RATIOS[cell.task], task=cell.task, num_classes=NUM_CLASSES,
        recompute=cell.recompute, checkpoint_blocks=cell.checkpoint,
    )  # fmt: skip
    speed = cell.batch / figures["steady_seconds"]
    figures["model_flops_per_second"] = 2 * flops.training_macs * speed
    figures |= plan_of(part, cell)
    fraction = figures["forward_seconds"] / (figures["forward_seconds"] + figures["backward_seconds"])
    text = f"{speed:.4g} clips/s, forward {fraction:.0%} of the step"
    if part.on_gpu:
        figures["mfu"] = figures["model_flops_per_second"] / rate
        text += f", MFU {figures['mfu']:.1%}, {figures['extra_bytes'] / cell.batch / MIB:.0f} MiB a clip"
        text += f", {sum(figures['launches'].values()):,} launches"
    part.add(cell=str(cell), **vars(cell), **figures)
    if cell.compiled and cell.batch != PAPER_BATCH:
        part.judge(str(cell), text, holds=figures.get("mfu", 0.0) >= GOAL_MFU)
    else:
        part.add_line(str(cell), text)
    if cell.peer:
        ratio = figures["times_the_peers_speed"]
        text = f"{ratio:.2f} x its clips/s ({figures['peer_clips_per_second']:.4g})"
        memory = figures["extra_bytes"] / figures["peer_extra_bytes"] if part.on_gpu else None
        text += f", {memory:.2f} x its memory" if memory else ""
        title = f"{cell.task} {TITLES[cell.size]} against Hugging Face"
        if cell.task == "pretrain":
            part.judge(title, text, holds=ratio >= GOAL_SPEED and (memory is None or memory <= GOAL_MEMORY))
        else:
            part.add_line(title, text)


def plan_of(part: Part, cell: Cell) -> dict:
    """The plan's peak of the same step without ZeRO and optimizer."""
    from mats_ds.planning.memory import plan_memory
    from mats_ds.planning.workload import Workload

    grid = grid_of(part)
    work = Workload(
        model_name=cell.size, grid=grid, candidate_grid=grid, recompute=cell.recompute, checkpoint_blocks=cell.checkpoint
    )
    work = work if cell.task == "pretrain" else work.for_finetuning(num_classes=NUM_CLASSES, drop_path=0.0)
    ds_config = {"bf16": {"enabled": part.on_gpu}, "zero_optimization": {"stage": 0}}
    planned = plan_memory(work, ds_config, world_size=1, micro_batch=cell.batch)
    moments = {name: size for name, size in planned.moments.items() if name != "the optimizer"}
    states = sum(size for kind, size in planned.bytes_by_kind.items() if kind in ("master_weights", "moments"))
    return {"planned_peak_bytes": max(moments.values()) - states}


def judge_plan(part: Part) -> None:
    """Of all eager cells, how far the plan is off; a compiled step's memory is the compiler's."""
    cells = [cell for cell in part.cells if cell.get("planned_peak_bytes") and not cell["compiled"]]
    if not part.on_gpu:
        part.judge("plan against peak", f"{len(cells)} cells planned", holds=False)
        return
    off = {cell["cell"]: cell["planned_peak_bytes"] / cell["peak_bytes"] - 1 for cell in cells}
    if off:
        worst = max(off, key=lambda name: abs(off[name]))
        good = sum(abs(value) <= GOAL_PLAN for value in off.values())
        text = f"{good} of {len(off)} cells within 5%, the worst {off[worst]:+.1%} ({worst})"
        part.judge("plan against peak", text, holds=good == len(off))


def find_largest(part: Part) -> None:
    """The largest micro-batch of every size that fits, by doubling, as far as the time allows."""
    if not part.on_gpu:
        part.add_line("largest micro-batch", "doubling until memory ends", "needs a GPU")
        return
    import torch

    for size in ("small", "base", "large"):
        step, fits, batch, ends = None, 0, 32, ""
        while part.seconds_left() > 6 and batch <= 2048:
            try:
                step = make_step(Cell("pretrain", size, batch), part, of_peer=False)[0]
                step().backward()
                wait(part)
                fits = batch
            except torch.OutOfMemoryError:
                ends = f", {batch} does not"
                break
            finally:
                step = None
                free(part)
            batch *= 2
        if fits:
            part.add(largest=size, batch=fits)
            part.add_line(f"largest micro-batch, pretrain {TITLES[size]}", f"{fits} fits{ends}")


if __name__ == "__main__":
    raise SystemExit(main())
