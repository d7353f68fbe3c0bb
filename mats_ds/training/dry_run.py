"""The judge of the planner: the real model in the real DeepSpeed engine, rank 0 of W, with neither
GPUs nor memory.

torch's fake process group lets one process be rank 0 of W; under FakeTensorMode every operation of
model, autograd, ZeRO and AdamW runs without data; LiveBytes adds up what is alive. The second step
is measured: the first one still makes the moments. Tensors pretend to be on a CPU, so attention is
torch's flash attention for CPUs; what CUDA kernels take and give back inside one operation is not
seen.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from mats_ds.core.run_dir import build_from, read_object
from mats_ds.core.storage.files import WrongKindOfFile, write_json
from mats_ds.planning.memory import ExactMemory, ZeroSettings
from mats_ds.planning.tensor_bytes import LiveBytes
from mats_ds.planning.workload import Workload

NUM_STEPS = 2
CACHE_VERSION = 1


def measure_exactly(
    workload: Workload, ds_config: Mapping[str, Any], *, world_size: int, micro_batch: int, accumulation: int = 1
) -> ExactMemory:
    """Run two steps of rank 0 without memory: seconds of a core, whatever the micro-batch.

    Not for a process that trains: it sets the environment of a rank and leaves a fake process group
    behind, which DeepSpeed remembers. Raises ValueError where this process has another process
    group already, and for what looks the same on fake CPU tensors: ZeRO-3 (its ranks compare notes)
    and optimizer states in host memory.
    """
    zero = ZeroSettings.of(ds_config)
    if zero.stage == 3 or zero.offloads:
        raise ValueError("--exact runs ZeRO stages 0 to 2 without offload: leave it out for this DeepSpeed JSON")
    _become_rank_zero_of(world_size)
    with _quiet():
        return _run(workload, ds_config, world_size, micro_batch, accumulation)


def measure_cached(workload: Workload, ds_config: Mapping[str, Any], *, folder: Path | None = None, **sizes: int) -> ExactMemory:
    """As `measure_exactly`, from a file of an earlier call with the same settings and versions
    where there is one."""
    import deepspeed

    settings = {
        "version": CACHE_VERSION,
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "workload": asdict(workload),
        "ds_config": ds_config,
        **sizes,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]
    path = (folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mats_ds" / "plans") / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):  # none yet, or damaged: it is measured again
        return build_from(ExactMemory, read_object(path).get("bytes"), path)
    exact = measure_exactly(workload, ds_config, **sizes)
    # a cache that cannot be written costs time, nothing else
    with contextlib.suppress(OSError, WrongKindOfFile):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"bytes": asdict(exact), "settings": settings})
    return exact


def build_model(workload: Workload) -> torch.nn.Module:
    """The model that does this work, with fresh weights."""
    from mats_ds.models.classifier import VideoClassifier
    from mats_ds.models.mae import MaskedAutoencoder

    shared = dict(
        grid=workload.grid,
        candidate_grid=workload.candidate_grid,
        pruning=workload.pruning,
        drop_path=workload.drop_path,
        recompute=workload.recompute,
        checkpoint_blocks=workload.checkpoint_blocks,
    )
    if workload.task == "finetune":
        return VideoClassifier.from_name(workload.model_name, num_classes=workload.num_classes, **shared)
    return MaskedAutoencoder.from_name(workload.model_name, decoder_depth=workload.decoder_depth, **shared)


def run_loss(engine: Any, workload: Workload, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The scalar loss of a batch (frames_BTHWC, seed_B, label_B)."""
    frames_BTHWC, seed_B, label_B = batch
    if workload.task == "pretrain":
        return engine(frames_BTHWC, seed_B)
    return torch.nn.functional.cross_entropy(engine(frames_BTHWC, seed_B).float(), label_B)


def blank_batch(workload: Workload, micro_batch: int) -> tuple[torch.Tensor, ...]:
    """Black clips of the right size."""
    grid = workload.candidate_grid
    frames_BTHWC = torch.zeros(micro_batch, grid.num_frames, grid.height, grid.width, 3, dtype=torch.uint8)
    return frames_BTHWC, torch.zeros(micro_batch, dtype=torch.int64), torch.zeros(micro_batch, dtype=torch.int64)


def _run(workload: Workload, ds_config: Mapping[str, Any], world_size: int, micro: int, accumulation: int) -> ExactMemory:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from mats_ds.config.batch_plan import MICRO_BATCH_KEY, plan_batch
    from mats_ds.config.recipe import OptimSection
    from mats_ds.training.engine import make_engine
    from mats_ds.training.optim import parameter_groups

    ds_config = {**ds_config, MICRO_BATCH_KEY: micro}
    plan = plan_batch(ds_config, recipe_batch=micro * world_size * accumulation, world_size=world_size)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live, AnswerReads():
        model = build_model(workload)
        model.to = lambda *_, **__: model  # on a device already; a fake parameter cannot be swapped
        live.restart()
        engine = make_engine(model, parameter_groups(model, OptimSection()), ds_config, plan)
        gc.collect()
        start_peak = live.peak_bytes
        engine.train()
        steps = [_run_step(engine, workload, live, micro, plan.accumulation) for _ in range(NUM_STEPS)]
    return replace(steps[-1], start_peak_bytes=start_peak)


def _run_step(engine: Any, workload: Workload, live: LiveBytes, micro: int, accumulation: int) -> ExactMemory:
    rest = live.now_bytes
    saved, forward, backward, optimizer = [], [], [], []
    for _ in range(accumulation):
        batch = blank_batch(workload, micro)
        before = live.now_bytes
        with live.peak_into(forward):
            loss = run_loss(engine, workload, batch)
        saved.append(live.now_bytes - before)
        with live.peak_into(backward):
            engine.backward(loss)
            del loss
        with live.peak_into(optimizer):
            engine.step()
        del batch
    return ExactMemory(rest, max(saved), 0, max(forward), max(backward), max(optimizer))


class AnswerReads(TorchDispatchMode):
    """Answers where a value of a fake tensor is read (a gradient norm, an overflow flag, whether a
    number lies outside of what a start allows): 1.0, or 0 for an integer.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 0
        return func(*args, **(kwargs or {}))


def _become_rank_zero_of(world_size: int) -> None:
    """A process group in which this process is rank 0 and nobody else is there; collectives do
    nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        if dist.get_backend() != "fake" or dist.get_world_size() != world_size:
            raise ValueError(
                f"this process is one of {dist.get_world_size()} ranks already: ask for {world_size} in a process of its own"
            )
        return
    os.environ.update(
        DS_ACCELERATOR="cpu",
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29500",  # nobody listens there
    )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    # else it would be compiled, for minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    deepspeed.init_distributed(verbose=False)


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        warnings.filterwarnings("ignore", message=".*_pin_memory_|.*pin_memory")
        yield
