"""Compiled blocks and captured passes on an NVIDIA GPU under ZeRO-2: the losses of eager steps, and
how often the host hands work to the GPU. Not run yet: no GPU was there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

CODE = """
import json, re, sys
from collections import Counter
import torch
from torch.profiler import ProfilerActivity, profile
from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.config.batch_plan import MICRO_BATCH_KEY, plan_batch
from mats_ds.config.ds_config import read_ds_config
from mats_ds.config.recipe import OptimSection
from mats_ds.distributed.ranks import start_distributed
from mats_ds.models.compiling import capture_passes
from mats_ds.training.engine import make_engine
from mats_ds.training.optim import parameter_groups

how, options = sys.argv[1], json.loads(sys.argv[2])
start_distributed()
grid = TokenGrid(num_frames=8, height=64, width=96, tubelet=(2, 16, 16))
config = {**read_ds_config("ds_configs/zero2.json"), MICRO_BATCH_KEY: 4}
plan = plan_batch(config, recipe_batch=8, world_size=1)
torch.manual_seed(0)
model = MaskedAutoencoder.from_name("small", grid=grid, **options)
engine = make_engine(model, parameter_groups(model, OptimSection()), config, plan, compiled=how != "eager")
engine.train()
for group in engine.optimizer.param_groups:
    group["lr"] = 1e-4
if how == "captured":
    capture_passes(model, micro_batch=4)

def take_step(step):
    losses = []
    for part in range(plan.accumulation):
        generator = torch.Generator().manual_seed(100 * step + part)
        frames = torch.randint(0, 256, (4, 8, 64, 96, 3), dtype=torch.uint8, generator=generator).cuda()
        torch.manual_seed(step)
        loss = engine(frames, torch.arange(4, device="cuda") + step)
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    return losses

losses = [loss.item() for step in range(6) for loss in take_step(step)]
with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
    take_step(6)
    torch.cuda.synchronize()
calls = Counter(event.name for event in profiler.events() if re.fullmatch(r"cu(da)?Launch\\w*|cudaGraphLaunch", event.name))
print("ANSWER", json.dumps({"losses": losses, "calls": calls}))
"""


def train(how, **options):
    run = subprocess.run(
        [sys.executable, "-c", CODE, how, json.dumps(options)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.rpartition("ANSWER ")[2])


@pytest.mark.parametrize(
    "options", [{}, {"drop_path": 0.3}, {"checkpoint_blocks": "all", "drop_path": 0.3}, {"recompute": "mlp"}]
)
def test_every_way_trains_alike_and_launches_less_than_the_one_before(options, capsys):
    pytest.importorskip("deepspeed")
    answers = {how: train(how, **options) for how in ("eager", "compiled", "captured")}
    launches = {how: sum(answer["calls"].values()) for how, answer in answers.items()}
    with capsys.disabled():
        print(f"\n  {options}: launches of a step of two micro-batches {launches}")
    for how in ("compiled", "captured"):  # in bf16, which keeps eight bits
        assert answers[how]["losses"] == pytest.approx(answers["eager"]["losses"], rel=2e-2)
    assert launches["captured"] < launches["compiled"] < launches["eager"]
    # two passes of two micro-batches
    assert answers["captured"]["calls"]["cudaGraphLaunch"] == 4
