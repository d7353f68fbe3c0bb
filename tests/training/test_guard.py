"""Gradients that are not finite never reach the weights, whoever looks at them: DeepSpeed or our
guard."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mats_ds.config.batch_plan import plan_batch
from mats_ds.config.ds_config import hand_over, leaves_check_to_guard, read_ds_config
from mats_ds.distributed.ranks import start_distributed
from mats_ds.training.engine import full_parameters, make_engine
from mats_ds.training.optim import StepGuard, grad_norm_of, left_out_by

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
GUARDED = ("zero1", "zero2", "zero2_8x24g", "zero2_8x80g", "zero2_finetune")
FUSED = {"type": "AdamW", "params": {"torch_adam": True, "fused": True}}
FOREACH = {"type": "AdamW", "params": {"torch_adam": True}}
BAD_STEP = 2


class Spoil(torch.autograd.Function):
    """Its input; going backward, one element of the gradient is replaced."""

    @staticmethod
    def forward(ctx, values, bad):
        ctx.bad = bad
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.bad is not None:
            gradient = gradient.clone()
            gradient.view(-1)[0] = ctx.bad
        return gradient, None


class Spoiled(nn.Module):
    """Two layers; the first one's gradients are not finite where `bad` is a number, and the loss
    is."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.bad = nn.Linear(6, 10), nn.Linear(10, 3), None

    def forward(self, inputs):
        return self.second(Spoil.apply(self.first(inputs), self.bad))


def weights_of(engine):
    with full_parameters(engine):
        return [parameter.tolist() for parameter in engine.module.parameters()]


def train(path, steps, bad, accumulation):
    """Weights before and after every step; the second rank's gradients of BAD_STEP are spoiled in
    the first micro-batch. And what was found out about each step."""
    info = start_distributed()
    config = {**read_ds_config(path), "train_micro_batch_size_per_gpu": 2}
    torch.manual_seed(0)
    model = Spoiled()
    plan = plan_batch(config, recipe_batch=2 * info.world_size * accumulation, world_size=info.world_size)
    groups = [{"params": [p for p in model.parameters() if p.ndim == ndim], "lr": 1e-2} for ndim in (2, 1)]
    engine = make_engine(model, groups, config, plan)
    dtype = next(model.parameters()).dtype
    weights, found, norms = [weights_of(engine)], [], []
    for step in steps:
        skipped = engine.skipped_steps
        for turn in range(accumulation):
            dice = torch.Generator().manual_seed(100 * step + 10 * turn + info.rank)
            inputs, targets = torch.randn(2, 6, generator=dice, dtype=dtype), torch.randn(2, 3, generator=dice, dtype=dtype)
            model.bad = bad if step == BAD_STEP and turn == 0 and info.rank == info.world_size - 1 else None
            loss = (engine(inputs) - targets).square().mean()
            assert loss.isfinite()
            engine.backward(loss)
            engine.step()
        by_guard = left_out_by(engine)
        found.append(bool(by_guard) if by_guard is not None else engine.skipped_steps > skipped)
        weights.append(weights_of(engine))
        norms.append(None if (norm := grad_norm_of(engine)) is None else float(norm))
    return weights, found, by_guard is not None, norms


def write(folder, **content):
    path = folder / "ds.json"
    path.write_text(json.dumps({"optimizer": FUSED, "zero_allow_untested_optimizer": True, **content}))
    return str(path)


def bf16(stage, **zero):
    return {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, **zero}}


CASES = {
    "fp32, plain": ({}, True),
    "fp32, plain, not fused": ({"optimizer": FOREACH}, True),
    "fp32, plain, clipped": ({"gradient_clipping": 0.1}, True),
    "fp32, ZeRO-1": ({"zero_optimization": {"stage": 1}}, False),
    "fp32, ZeRO-2": ({"zero_optimization": {"stage": 2}}, False),
    "fp32, ZeRO-3": ({"zero_optimization": {"stage": 3}}, False),
    "bf16, ZeRO-1": (bf16(1), True),
    "bf16, ZeRO-2": (bf16(2), True),
    "bf16, ZeRO-2, overlapped": (bf16(2, overlap_comm=True, contiguous_gradients=True), True),
    "bf16, ZeRO-2, clipped": ({**bf16(2), "gradient_clipping": 0.1}, False),
    "bf16, ZeRO-2, not fused": ({**bf16(2), "optimizer": FOREACH}, False),
    "bf16, ZeRO-2, offloaded": (
        {**bf16(2, offload_optimizer={"device": "cpu"}), "zero_force_ds_cpu_optimizer": False}, False
    ),
    "bf16, ZeRO-2, DeepSpeed's check": ({**bf16(2), "bf16": {"enabled": True, "check_grad_overflow": True}}, False),
    "bf16, ZeRO-3": (bf16(3), False),
}  # fmt: skip


SPOILED = [(math.nan, 1), (-math.inf, 2)]  # what comes in, and how many micro-batches a step has
QUICK = {"fp32, plain": 0, "fp32, ZeRO-2": 0, "bf16, ZeRO-2, overlapped": 1}
KEYS = [(case, number) for case in CASES for number in range(len(SPOILED))]


def train_all(paths, keys):
    """Runs with the spoiled step and without it, for each of `keys`, one after the other on these
    ranks."""
    return {
        (case, number): [train(paths[case], steps, *SPOILED[number]) for steps in ((0, 1, BAD_STEP, 3), (0, 1, 3))]
        for case, number in keys
    }


def check_spoiled_steps(ranks, folder, keys):
    """The loss is finite and one rank's gradient is not. Weights stay as they were, and the steps
    after it are those of a run without it, to the bit: moments and Adam's count of steps, too."""
    for case, _ in keys:
        (folder / case).mkdir(exist_ok=True)
    paths = {case: write(folder / case, **CASES[case][0]) for case, _ in keys}
    for results in ranks(train_all, 2, paths, keys):
        for (case, number), [(weights, found, by_guard, norms), (straight, *_)] in results.items():
            assert found == [False, False, True, False] and by_guard == CASES[case][1], (case, number)
            assert weights[2] == weights[3] != weights[4], (case, number)
            assert weights[:3] == straight[:3] and weights[4] == straight[3], (case, number)
            if None not in norms:
                assert [math.isinf(norm) for norm in norms] == found and all(norm > 0 for norm in norms), (case, number)


def test_a_spoiled_gradient_leaves_the_step_out_on_all_ranks(ranks, tmp_path):
    check_spoiled_steps(ranks, tmp_path, list(QUICK.items()))


@pytest.mark.slow
def test_so_it_does_under_every_stage_and_precision(ranks, tmp_path):
    check_spoiled_steps(ranks, tmp_path, KEYS)


def norms_of(path):
    """The gradient norm of two steps, as the loop asks for it, and that of all gradients of a plain
    model."""
    start_distributed()
    config = {**read_ds_config(path), "train_micro_batch_size_per_gpu": 2}
    torch.manual_seed(0)
    model = Spoiled()
    groups = [{"params": [p for p in model.parameters() if p.ndim == ndim], "lr": 1e-2} for ndim in (2, 1)]
    engine = make_engine(model, groups, config, plan_batch(config, recipe_batch=4, world_size=2))
    norms = []
    for _ in range(2):
        inputs = torch.randn(2, 6, generator=torch.Generator().manual_seed(engine.global_rank)).bfloat16()
        engine.backward(engine(inputs).square().mean())
        engine.step()
        norms.append(float(grad_norm_of(engine)))
    return norms


@pytest.mark.slow
def test_the_guards_norm_is_deepspeeds(ranks, tmp_path):
    [ours, same] = ranks(norms_of, 2, write(tmp_path, **bf16(2)))
    [theirs, _] = ranks(norms_of, 2, write(tmp_path, **bf16(2) | {"bf16": {"enabled": True, "check_grad_overflow": True}}))
    assert ours == same and ours == pytest.approx(theirs, rel=1e-6) and min(ours) > 0


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_which_shipped_json_leaves_the_check_to_the_guard(name):
    assert leaves_check_to_guard(read_ds_config(CONFIGS / f"{name}.json")) == (name in GUARDED)


def test_deepspeed_does_not_wait_to_time_what_nobody_reads():
    config = read_ds_config(CONFIGS / "zero2.json")
    assert hand_over(config, accumulation=1, micro_batch=1)["timers"] == {"throughput": {"enabled": False}}
    asked = {**config, "timers": {"throughput": {"synchronized": True}}}
    assert hand_over(asked, accumulation=1, micro_batch=1)["timers"] == asked["timers"]


@pytest.mark.parametrize("fused", [True, False])
def test_a_guard_alone(fused):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    norms = iter(torch.tensor([1.0, math.nan, math.inf, 1.0]))
    guard = StepGuard(optimizer, lambda: next(norms))
    seen = []
    for _ in range(4):
        weight.grad = torch.ones(3)
        optimizer.step()
        seen.append((weight.detach().clone(), guard.left_out.item()))
    assert [left_out for _, left_out in seen] == [0, 1, 1, 0]
    assert seen[0][0].equal(seen[1][0]) and seen[1][0].equal(seen[2][0]) and not seen[2][0].equal(seen[3][0])
    assert optimizer.state[weight]["step"] == 2
