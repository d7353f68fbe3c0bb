"""The DeepSpeed engine beside a plain loop of torch's AdamW on the same batches: nothing else may
change weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mats_ds.config.ds_config import read_ds_config

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
SHIPPED = sorted(FOLDER.glob("*.json"))
NUM_STEPS = 12
GLOBAL_BATCH = 8
OPTIM = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}


def make_model():
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 3))


def groups_of(model):
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.05, **OPTIM}, {"params": vectors, "weight_decay": 0.0, **OPTIM}]


def batch_of(step):
    import torch

    dice = torch.Generator().manual_seed(step)
    return torch.randn(GLOBAL_BATCH, 6, generator=dice), 30 * torch.randn(GLOBAL_BATCH, 3, generator=dice)


def train_plainly(clip_at=0.0):
    """Weights after all steps, and the norm of the gradients of each."""
    import torch

    model = make_model()
    optimizer = torch.optim.AdamW(groups_of(model))
    norms = []
    for step in range(NUM_STEPS):
        inputs, targets = batch_of(step)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_at or float("inf")).item())
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], norms


def distance_to_plain(path, clip_at):
    """The largest difference of any weight between the engine and the plain loop, and what the
    engine says that it did."""
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.engine import full_parameters, in_force, make_engine

    info = start_distributed()
    config = read_ds_config(path)
    plan = plan_batch(config, recipe_batch=GLOBAL_BATCH, world_size=info.world_size)
    model = make_model()
    engine = make_engine(model, groups_of(model), config, plan)
    for step in range(NUM_STEPS):
        inputs, targets = batch_of(step)
        for turn in range(plan.accumulation):
            first = (turn * info.world_size + info.rank) * plan.micro_batch
            mine = slice(first, first + plan.micro_batch)
            engine.backward((engine(inputs[mine]) - targets[mine]).square().mean())
            engine.step()
    plain, norms = train_plainly(clip_at)
    assert min(norms) > 1, "clipping at 1 would show"
    with full_parameters(engine):
        pairs = zip(engine.module.parameters(), plain, strict=True)
        return max((ours - theirs).abs().max().item() for ours, theirs in pairs), vars(in_force(engine))


def write(folder, name="zero2_tiny", **changes):
    """A shipped JSON in float32 with two clips a rank and some of its keys changed; None takes a
    key out."""
    tree = json.loads((FOLDER / f"{name}.json").read_text())
    tree |= {"train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": False}, **changes}
    path = folder / "ds.json"
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
    return str(path)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"gradient_clipping": None}], ids=["shipped", "silent"])
def test_twelve_steps_are_plain_adamw(ranks, tmp_path, changes, num_ranks):
    """Where the JSON was silent, DeepSpeed clipped at 1: weights were 0.013 away."""
    for distance, found in ranks(distance_to_plain, num_ranks, write(tmp_path, **changes), 0.0):
        assert distance <= 1e-7
        assert found == {
            "precision": "fp32", "gradient_clipping": 0.0, "zero_stage": 2, "micro_batch": 2, "accumulation": 4 // num_ranks
        }  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(path.stem, marks=[] if path.stem == "zero2" else pytest.mark.slow) for path in SHIPPED]
)
def test_every_shipped_json_trains_as_plain_adamw_in_float32(ranks, tmp_path, name):
    for distance, _ in ranks(distance_to_plain, 2, write(tmp_path, name), 0.0):
        assert distance <= 1e-7


def test_clipping_that_a_json_asks_for_is_done(ranks, tmp_path):
    for distance, found in ranks(distance_to_plain, 2, write(tmp_path, gradient_clipping=0.5), 0.5):
        assert distance <= 1e-6 and found["gradient_clipping"] == 0.5


IGNORED = {
    "optimizer": {
        "type": "Adam",
        "params": {"torch_adam": True, "lr": 0.5, "weight_decay": 0.9, "betas": [0.1, 0.2], "eps": 0.1},
    },
    # A scheduler that DeepSpeed would build also moves Adam's first beta.
    "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 0.1, "cycle_max_lr": 0.5, "cycle_momentum": True}},
    "fp16": {"enabled": False, "loss_scale": 128},
    "activation_checkpointing": {"partition_activations": True, "no_such_key": 1},
}


def test_what_the_recipe_decides_is_not_taken_from_the_json(ranks, tmp_path):
    """The optimizer's values, a scheduler's learning rates and momenta, and what is switched off
    change no weight."""
    [(distance, _)] = ranks(distance_to_plain, 1, write(tmp_path, **IGNORED), 0.0)
    assert distance <= 1e-7


def engine_that_does_something_else(path):
    """make_engine, where DeepSpeed reads one value differently from us."""
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training import engine as engine_module
    from mats_ds.training.engine import make_engine

    start_distributed()
    handed = engine_module.hand_over
    engine_module.hand_over = lambda *args, **kwargs: (
        handed(*args, **kwargs) | {"gradient_clipping": 1.0, "bf16": {"enabled": "1"}}
    )
    config = read_ds_config(path)
    model = make_model()
    make_engine(model, groups_of(model), config, plan_batch(config, recipe_batch=GLOBAL_BATCH, world_size=1))


def test_an_engine_that_does_something_else_does_not_train(ranks, tmp_path):
    [text] = ranks(engine_that_does_something_else, 1, write(tmp_path), expect_errors=True)
    assert text.startswith("ValueError: DeepSpeed trains with another setting than the JSON says: ")
    assert "precision 'bf16' instead of 'fp32'; gradient_clipping 1.0 instead of 0.0\n" in text


def what_comes_of(config, bug):
    """The error of make_engine for a JSON that nobody has judged; `bug`: DeepSpeed's start fails in
    code that is not its own."""
    import deepspeed

    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.engine import make_engine

    start_distributed()

    def fail(**_):
        raise AssertionError("a bug of ours")

    if bug:
        deepspeed.initialize = fail
    model = make_model()
    try:
        make_engine(model, groups_of(model), config, plan_batch(config, recipe_batch=GLOBAL_BATCH, world_size=1))
    except (AssertionError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def test_what_deepspeed_asserts_is_a_fault_of_the_json_and_what_we_assert_is_not(ranks):
    config = json.loads((FOLDER / "zero2_tiny.json").read_text())
    [text] = ranks(what_comes_of, 1, config | {"gradient_predivide_factor": 4.0}, False)
    assert text.startswith("ValueError: DeepSpeed refuses the JSON: gradient_predivide_factor") and "\n" not in text
    assert ranks(what_comes_of, 1, config, True) == ["AssertionError: a bug of ours"]
