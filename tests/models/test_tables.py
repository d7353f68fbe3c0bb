"""Position tables and input constants stay in float32 in a model that is cast, as they do in
DeepSpeed's engine."""

from __future__ import annotations

import copy

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.models.feature_extractor import VideoEncoder

GRID = TokenGrid(num_frames=8, height=32, width=48, tubelet=(2, 8, 8))  # 4 tubelets of 4 x 6 places
SIZES = dict(grid=GRID, width=96, depth=3, heads=3)
TABLES = {"positions_ND", "decoder_positions_ND", "patch_embed.scale_P", "patch_embed.shift_P"}


def make_classifier():
    torch.manual_seed(3)
    return VideoClassifier(**SIZES, num_classes=7, head_init_scale=50.0)  # logits of some size


def random_frames(batch=5):
    return torch.randint(0, 256, (batch, 8, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    "cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.to("cpu", torch.bfloat16), lambda m: m.half()]
)
def test_whichever_way_a_model_is_cast_its_tables_keep_every_bit(cast):
    decoder = dict(decoder_width=24, decoder_depth=1, decoder_heads=2)
    for model in (make_classifier(), MaskedAutoencoder(**SIZES, **decoder), VideoEncoder(make_classifier(), token_norm=None)):
        before = {name: table.clone() for name, table in model.named_buffers()}
        after = dict(cast(model).named_buffers())
        assert {name.removeprefix("trunk.") for name in before} <= TABLES and len(before) >= 3
        assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)
        assert {parameter.dtype for parameter in model.parameters()} <= {torch.bfloat16, torch.half}


def test_tables_go_to_the_device_that_the_model_goes_to():
    model = make_classifier().to("meta", torch.bfloat16)
    assert {table.device.type for table in model.buffers()} == {"meta"}
    assert {table.dtype for table in model.buffers()} == {torch.float32}


def logits_of_engine_and_cast():
    """(float32, the bf16 engine's module, the model cast by hand, the model with its tables cast as
    well)."""
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.engine import make_engine

    start_distributed()
    model, frames = make_classifier(), random_frames()
    others = [copy.deepcopy(model).eval() for _ in range(3)]
    others[1].to(torch.bfloat16)
    rounded = others[2].to(torch.bfloat16)
    for module in rounded.modules():
        for name, table in module._buffers.items():
            module._buffers[name] = table.to(torch.bfloat16)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 10**6, "allgather_bucket_size": 10**6},
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
    }
    engine = make_engine(model, [{"params": list(model.parameters())}], config, plan_batch(config, recipe_batch=1, world_size=1))
    engine.module.eval()
    with torch.no_grad():
        exact, cast, rounded = (other(frames).float().tolist() for other in others)
        return exact, engine.module(frames).float().tolist(), cast, rounded


def test_a_cast_model_gives_the_logits_of_the_bf16_engine_to_the_bit(ranks):
    [logits] = ranks(logits_of_engine_and_cast, 1)
    exact, engine, cast, rounded = map(torch.tensor, logits)
    assert torch.equal(cast, engine)
    error, error_of_rounded = (float((found - exact).square().mean().sqrt()) for found in (cast, rounded))
    assert error < 0.75 * error_of_rounded, (error, error_of_rounded)
