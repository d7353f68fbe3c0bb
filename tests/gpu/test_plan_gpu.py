"""The planner against a real card: peaks of torch's allocator, and rank 0 of 8 on one GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from mats_ds.core.token_grid import TokenPruning
from mats_ds.planning.memory import ZeroSettings, plan_memory, plan_static
from mats_ds.planning.workload import Workload

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]

# Run in a process of its own: DeepSpeed and the fake process group keep state.
MEASURE = """
import json, os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/profiling"]
import torch, torch.distributed as dist, deepspeed
from torch.testing._internal.distributed.fake_pg import FakeStore
from mats_ds.config.recipe import OptimSection
from mats_ds.planning.tensor_bytes import SavedBytes
from mats_ds.planning.workload import Workload
from mats_ds.core.token_grid import TokenPruning
from mats_ds.config.batch_plan import plan_batch
from mats_ds.training.engine import make_engine, static_bytes
from mats_ds.training.optim import parameter_groups
import plan_exact

question = json.loads(sys.argv[2])
world_size, micro = question["world_size"], question["micro_batch"]
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE="1")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
deepspeed.init_distributed(verbose=False)
changes = question["changes"]
work = Workload(pruning=TokenPruning(changes.pop("strategy", "mats")), **changes)
if question["finetune"]:
    work = work.for_finetuning()
config = json.load(open(sys.argv[1] + "/ds_configs/" + question["ds_config"] + ".json"))
config["train_micro_batch_size_per_gpu"] = micro
plan = plan_batch(config, recipe_batch=micro * world_size, world_size=world_size)
model = plan_exact.build_model(work)
engine = make_engine(model, parameter_groups(model, OptimSection()), config, plan)
engine.train()
saved = SavedBytes(engine.module)
for _ in range(3):
    batch = tuple(part.cuda() for part in plan_exact.blank_batch(work, micro))
    torch.cuda.reset_peak_memory_stats()
    engine.backward(plan_exact.run_loss(engine, work, batch))
    engine.step()
    del batch
torch.cuda.synchronize()
print("ANSWER " + json.dumps({
    "peak": torch.cuda.max_memory_allocated(),
    "saved": saved.num_bytes,
    "static": static_bytes(engine),
    "partition": sum(part.numel() for part in engine.optimizer.single_partition_of_fp32_groups),
}))
"""


def measure(**question):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(ROOT), json.dumps(question)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "DS_LOG_LEVEL": "ERROR"},
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(answers[-1].removeprefix("ANSWER "))


@pytest.mark.parametrize("ds_config", ["zero1", "zero2"])
@pytest.mark.parametrize("finetune", [False, True], ids=["pretrain", "finetune"])
@pytest.mark.parametrize(
    "changes",
    [
        {"model_name": "small"},
        {"model_name": "small", "strategy": "tube"},
        {"model_name": "base", "recompute": "pointwise"},
        {"model_name": "base", "checkpoint_blocks": "all"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_the_plan_is_within_5_percent_of_the_allocators_peak(changes, finetune, ds_config):
    question = dict(changes=changes, finetune=finetune, ds_config=ds_config, world_size=8, micro_batch=16)
    answer = measure(**question)
    pruning = TokenPruning(changes.get("strategy", "mats"))
    work = Workload(pruning=pruning, **{name: value for name, value in changes.items() if name != "strategy"})
    work = work.for_finetuning() if finetune else work
    config = json.loads((ROOT / "ds_configs" / f"{ds_config}.json").read_text())
    planned = plan_memory(work, config, world_size=8, micro_batch=16)
    shown = json.dumps(
        {"planned": planned.bytes_by_kind, "moments": planned.moments, "measured": answer, "work": asdict(work)}, default=str
    )
    assert planned.activations.saved_bytes == pytest.approx(answer["saved"], rel=0.05), shown
    assert planned.peak_bytes == pytest.approx(answer["peak"], rel=0.05), shown


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_zero_parts_are_within_1_percent(world_size):
    answer = measure(changes={"model_name": "small"}, finetune=False, ds_config="zero2", world_size=world_size, micro_batch=2)
    config = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    planned = plan_static(Workload(model_name="small"), ZeroSettings.of(config), world_size=world_size)
    for kind, size in answer["static"].items():
        assert planned[kind] == pytest.approx(size, rel=0.01), kind
    assert planned["master_weights"] == pytest.approx(4 * answer["partition"], rel=0.01)
