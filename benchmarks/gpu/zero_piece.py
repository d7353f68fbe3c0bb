"""One process of `zero.py`: prints a line `ANSWER {json}` for every figure.

python benchmarks/gpu/zero_piece.py '{"piece": "resume" or "ranks", "device": "cuda", ...}'
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from mats_ds import TokenGrid  # noqa: E402
from mats_ds.config.batch_plan import MICRO_BATCH_KEY, plan_batch  # noqa: E402
from mats_ds.config.recipe import OptimSection  # noqa: E402
from mats_ds.distributed.ranks import RankInfo  # noqa: E402
from mats_ds.models.classifier import VideoClassifier  # noqa: E402
from mats_ds.models.mae import MaskedAutoencoder  # noqa: E402
from mats_ds.planning.memory import ZeroSettings, plan_memory, plan_static  # noqa: E402
from mats_ds.planning.workload import Workload  # noqa: E402
from mats_ds.training.checkpoints.resume import find_resume_point, resume  # noqa: E402
from mats_ds.training.checkpoints.saver import CheckpointSaver  # noqa: E402
from mats_ds.training.engine import make_engine, static_bytes  # noqa: E402
from mats_ds.training.optim import parameter_groups  # noqa: E402

NUM_CLASSES, HALF = 400, 3


def answer(**figures: object) -> None:
    print("ANSWER " + json.dumps(figures), flush=True)


def join(question: dict, *, world_size: int) -> None:
    """Be the only rank there is, or rank 0 of many that are not there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if world_size > 1:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    if question["device"] == "cpu":
        torch.set_num_threads(1)


def settings_of(question: dict) -> dict:
    """The project's ZeRO-2 file; float32 on a CPU."""
    config = json.loads((ROOT / "ds_configs" / "zero2.json").read_text(encoding="utf-8")) | {MICRO_BATCH_KEY: question["batch"]}
    if question["device"] == "cpu":
        config["bf16"] = {"enabled": False}
    return config


def grid_of(question: dict) -> TokenGrid:
    return TokenGrid() if question["device"] == "cuda" else TokenGrid(num_frames=8, height=32, width=32, tubelet=(2, 8, 8))


def build_engine(model: torch.nn.Module, config: dict, *, batch: int, world_size: int):
    plan = plan_batch(config, recipe_batch=batch * world_size, world_size=world_size)
    engine = make_engine(model, parameter_groups(model, OptimSection()), config, plan)
    engine.train()
    return engine


def make_clips(question: dict, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    grid, batch = grid_of(question), question["batch"]
    generator = torch.Generator().manual_seed(step)
    shape = (batch, grid.num_frames, grid.height, grid.width, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return frames.to(question["device"]), (torch.arange(batch) + step * batch).to(question["device"])


def wait(question: dict) -> None:
    if question["device"] == "cuda":
        torch.cuda.synchronize()


def train(engine, question: dict, steps: range) -> tuple[list[float], float, float]:
    """Losses, seconds of the last step, and the optimizer's fraction of it."""
    losses = []
    for step in steps:
        frames, seeds = make_clips(question, step)
        wait(question)
        begin = time.perf_counter()
        loss = engine(frames, seeds)
        engine.backward(loss)
        wait(question)
        middle = time.perf_counter()
        engine.step()
        wait(question)
        total = time.perf_counter() - begin
        losses.append(loss.item())
    return losses, total, (time.perf_counter() - middle) / total


def check_resume(question: dict) -> None:
    join(question, world_size=1)
    config, folder = settings_of(question), Path(question["folder"])

    def fresh(seed: int):
        torch.manual_seed(seed)
        model = MaskedAutoencoder.from_name(question["size"], grid=grid_of(question))
        return build_engine(model, dict(config), batch=question["batch"], world_size=1)

    straight = fresh(0)
    losses, seconds, fraction = train(straight, question, range(2 * HALF))
    first = fresh(0)
    begun, *_ = train(first, question, range(HALF))
    ranks = RankInfo(0, 0, 1, 1, torch.device(question["device"]))
    saver = CheckpointSaver(first, folder, ranks, recipe="", global_batch=question["batch"], keep=1)
    saver.begin(HALF, {})
    saver.finish()
    second = fresh(1)  # other weights, which must be replaced
    point = find_resume_point(folder, ranks, global_batch=question["batch"], zero_stage=2)
    resumed = resume(second, point, ranks)
    ended, *_ = train(second, question, range(resumed.step, 2 * HALF))
    pairs = zip(straight.module.parameters(), second.module.parameters(), strict=True)
    answer(
        losses_equal=losses == begun + ended,
        weights_equal=all(torch.equal(one, other) for one, other in pairs),
        losses=losses,
        step_seconds=seconds,
        optimizer_share=fraction,
    )


def nvml_used_bytes() -> int | None:
    """What the driver counts for the GPU, all processes together."""
    try:
        import pynvml

        pynvml.nvmlInit()
        # torch would make its context to answer
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(int(first or 0))).used
    except Exception:  # of a driver that does not count it
        return None


def check_ranks(question: dict) -> None:
    on_gpu, began_seconds = question["device"] == "cuda", time.monotonic()
    others_bytes = context_bytes = None
    if on_gpu:
        others_bytes = nvml_used_bytes()
        torch.zeros(1, device="cuda")
        wait(question)
        if others_bytes is not None:
            context_bytes = nvml_used_bytes() - others_bytes - torch.cuda.memory_reserved()
    join(question, world_size=question["world_size"])
    for cell in question["cells"]:
        if time.monotonic() - began_seconds > question["seconds"]:
            return
        measure_rank(question, dict(cell), others_bytes, context_bytes)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def measure_rank(question: dict, cell: dict, others_bytes: int | None, context_bytes: int | None) -> None:
    on_gpu, batch, world_size = question["device"] == "cuda", question["batch"], question["world_size"]
    grid, config, task = grid_of(question), settings_of(question), cell.pop("task")
    name = f"{task} {' '.join(map(str, cell.values()))} x {batch}"
    work = Workload(grid=grid, candidate_grid=grid, **cell)
    options = dict(grid=grid, recompute=work.recompute, checkpoint_blocks=work.checkpoint_blocks)
    if task == "finetune":
        work = work.for_finetuning(num_classes=NUM_CLASSES, drop_path=0.0)
        model = VideoClassifier.from_name(work.model_name, num_classes=NUM_CLASSES, **options)
    else:
        model = MaskedAutoencoder.from_name(work.model_name, **options)
    before = torch.cuda.memory_allocated() if on_gpu else 0
    engine = build_engine(model, config, batch=batch, world_size=world_size)
    for step in range(3):
        frames, seeds = make_clips(question, step)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        wait(question)
        begin = time.perf_counter()
        loss = engine(frames, seeds)
        loss = loss if task == "pretrain" else torch.nn.functional.cross_entropy(loss.float(), seeds % NUM_CLASSES)
        engine.backward(loss)
        engine.step()
        wait(question)
        seconds = time.perf_counter() - begin
        del frames, seeds, loss
    planned = plan_memory(work, config, world_size=world_size, micro_batch=batch)
    measured, static = static_bytes(engine), plan_static(work, ZeroSettings.of(config), world_size=world_size)
    figures = {"name": name, "planned_bytes": planned.peak_bytes, "static": measured, "step_seconds": seconds}
    figures["static_equal"] = all(abs(static[kind] - size) <= 0.01 * max(1, size) for kind, size in measured.items())
    if on_gpu:
        figures |= {"peak_bytes": torch.cuda.max_memory_allocated() - before, "before_bytes": before}
        figures |= {"reserved_bytes": torch.cuda.memory_reserved(), "context_bytes": context_bytes}
        if context_bytes is not None:
            figures["nvml_bytes"] = nvml_used_bytes() - others_bytes
    answer(**figures)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    {"resume": check_resume, "ranks": check_ranks}[asked["piece"]](asked)
