"""The loop on the real DeepSpeed engine: forked gloo ranks, small models, clips made of noise."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from mats_ds.clips import BadClip, ClipBatch, TokenGrid
from mats_ds.config import OptimSection
from mats_ds.events import RunInfo
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.training.batch import plan_batch
from mats_ds.training.checkpoint import find_checkpoint, load_checkpoint
from mats_ds.training.engine import make_engine, read_ds_config, start_distributed, static_bytes
from mats_ds.training.loop import fit
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import make_schedule, parameter_groups

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 4, 4))  # 48 tokens
GLOBAL_BATCH = 16
NUM_VIDEOS = 20


def make_clip(position):
    """Clip number `position` of an endless data set: a ramp that moves, so that there is something to learn."""
    generator = torch.Generator().manual_seed(position)
    offset, slope = torch.randint(0, 100, (2,), generator=generator).tolist()
    row, column = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    frames = [(offset + (2 + slope % 4) * (row + column + 3 * time)) % 256 for time in range(4)]
    noise = torch.randint(0, 12, (4, 16, 24, 3), generator=generator)
    return (torch.stack(frames)[..., None] + noise).clamp(0, 255).to(torch.uint8)


def endless_batches(plan, rank, first_step, bad_at=None):
    """This rank's micro-batches from `first_step` on; `bad_at` = (step, rank, videos): those are reported unreadable there."""
    step = first_step
    while True:
        for micro in range(plan.accumulation):
            start = step * GLOBAL_BATCH + (micro * plan.world_size + rank) * plan.micro_batch
            positions = list(range(start, start + plan.micro_batch))
            bad = ()
            if bad_at and (step, rank) == bad_at[:2] and micro == 0:
                bad = tuple(BadClip(f"video{video}.mp4", video, "truncated") for video in bad_at[2])
            yield ClipBatch(
                frames_BTHWC=torch.stack([make_clip(position) for position in positions]),
                label_B=torch.full((len(positions),), -1),
                sample_B=torch.tensor(positions) % NUM_VIDEOS,
                valid_B=torch.ones(len(positions), dtype=torch.bool),
                key_B=torch.tensor(positions),
                bad=bad,
                paths=tuple(f"video{position}.mp4" for position in positions),
            )
        step += 1


class LossLog:
    def __init__(self):
        self.losses, self.norms, self.outcome = [], [], None

    def on_start(self, run):
        pass

    def on_step(self, event):
        self.losses.append(float(event.loss))
        self.norms.append(float(event.grad_norm))

    def on_end(self, outcome):
        self.outcome = outcome


class PoisonedModel(MaskedAutoencoder):
    """Its loss is not a number for the clip with key 70."""

    def forward(self, frames_BTHWC, key_B=None):
        return super().forward(frames_BTHWC, key_B) * torch.where((key_B == 70).any(), math.nan, 1.0)


def train(
    *,
    num_steps=6,
    ds_config="zero2_tiny",
    extra=None,
    micro_batch=2,
    folder=None,
    checkpoint_steps=0,
    resume=False,
    model_class=MaskedAutoencoder,
    bad_at=None,
    max_bad_fraction=0.1,
    seed=0,
    log=None,
):
    """One run as pretrain.py makes it, on clips from memory. Returns (LossLog, static bytes, plan)."""
    place = start_distributed()
    config = {**read_ds_config(CONFIGS / f"{ds_config}.json"), "train_micro_batch_size_per_gpu": micro_batch, **(extra or {})}
    plan = plan_batch(config, recipe_batch=GLOBAL_BATCH, world_size=place.world_size)
    optim = OptimSection(base_lr=0.05, min_lr=1e-4, warmup_lr=1e-4, steps=20, warmup_steps=3)
    torch.manual_seed(seed)
    model = model_class(
        grid=GRID, width=24, depth=2, heads=3, decoder_width=16, decoder_heads=2, decoder_depth=1, checkpoint_blocks="all"
    )
    engine = make_engine(model, parameter_groups(model, optim), config, plan)
    found = find_checkpoint(folder / "checkpoints") if resume else None
    first_step = load_checkpoint(engine, found).step if found else 0
    run = RunInfo(
        run_dir=str(folder), rank=place.rank, world_size=place.world_size, device="cpu", device_name="CPU", recipe_name="test",
        model_name="test", num_parameters=0, precision="fp32", zero_stage=2, micro_batch=micro_batch,
        accumulation=plan.accumulation, global_batch=plan.global_batch, total_steps=num_steps, steps_per_epoch=2,
        first_step=first_step, learning_rate=0.0, num_tokens=48, kept=14, visible=4, targets=10, forward_macs_per_clip=1,
        model_flops_per_clip=1, hardware_flops_per_clip=1,
    )  # fmt: skip
    log = log or LossLog()
    observers = [log, Console(log_steps=2, memory_bytes=lambda: None), Monitor(engine, every_steps=1, memory_bytes=lambda: None)]
    if folder is not None:
        observers.append(Checkpointer(engine, folder / "checkpoints", every_steps=checkpoint_steps, keep=2, recipe="name: test"))
    fit(
        engine,
        endless_batches(plan, place.rank, first_step, bad_at),
        run=run,
        learning_rate=make_schedule(optim, steps_per_epoch=2, learning_rate_scale=plan.learning_rate_scale).learning_rate,
        loss_of=lambda engine, batch: engine(batch.frames_BTHWC, batch.key_B),
        observers=observers,
        num_videos=NUM_VIDEOS,
        max_bad_fraction=max_bad_fraction,
    )
    return dataclasses.asdict(plan), log.losses, log.norms, log.outcome, static_bytes(engine)


def train_options(options):
    return train(**options)


@pytest.fixture(scope="module")
def one_rank_losses(ranks):
    [(_, losses, norms, outcome, _)] = ranks(train_options, 1, {"num_steps": 20})
    assert outcome == "finished" and all(math.isfinite(norm) and norm > 0 for norm in norms)
    return losses


def test_the_loss_falls(one_rank_losses):
    assert sum(one_rank_losses[-3:]) / 3 < 0.9 * one_rank_losses[0]


def test_a_second_run_is_equal_to_the_bit(ranks, one_rank_losses):
    [(_, losses, *_)] = ranks(train_options, 1, {"num_steps": 20})
    assert losses == one_rank_losses


@pytest.mark.parametrize("world_size", [2, 8])
def test_more_ranks_give_the_same_losses_at_the_same_global_batch(ranks, one_rank_losses, world_size):
    results = ranks(train_options, world_size, {"num_steps": 20})
    for plan, losses, *_ in results:
        assert plan["accumulation"] == 8 // world_size
        assert losses == pytest.approx(one_rank_losses, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero2", "zero1", "zero3", "zero2_offload"])
def test_every_shipped_configuration_trains_alike(ranks, one_rank_losses, ds_config):
    results = ranks(train_options, 2, {"ds_config": ds_config})
    for _, losses, *_ in results:
        assert losses == pytest.approx(one_rank_losses[:6], abs=0.02)  # bf16 against fp32
        assert losses[-1] < losses[0]


def test_zero_2_divides_what_it_should(ranks):
    whole, halves = ranks(train_options, 1, {"num_steps": 1}), ranks(train_options, 2, {"num_steps": 1})
    [one], [half, other] = [result[4] for result in whole], [result[4] for result in halves]
    assert half == other
    assert half["weights"] == one["weights"]
    for kind in ("gradients", "master_weights", "moments"):
        assert half[kind] == pytest.approx(one[kind] / 2, rel=0.01)  # padding to whole elements


def test_a_resumed_run_is_equal_to_the_bit(ranks, tmp_path):
    [(_, straight, *_), _] = ranks(train_options, 2, {"folder": tmp_path / "straight", "num_steps": 6})
    ranks(train_options, 2, {"folder": tmp_path / "broken", "num_steps": 4, "checkpoint_steps": 2})
    results = ranks(train_options, 2, {"folder": tmp_path / "broken", "num_steps": 6, "resume": True, "seed": 99})
    for _, losses, *_ in results:
        assert losses == straight[4:]
    assert sorted(path.name for path in (tmp_path / "broken" / "checkpoints").glob("step-*")) == [
        "step-00000004",
        "step-00000006",
    ]


def test_another_number_of_ranks_is_told_what_to_do(ranks, tmp_path):
    ranks(train_options, 2, {"folder": tmp_path, "num_steps": 1})
    [text] = ranks(train_options, 1, {"folder": tmp_path, "resume": True}, expect_errors=True)
    assert "was saved by 2 ranks and this run has 1: resume with --num_gpus 2" in text


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_step_and_clips(ranks, tmp_path):
    texts = ranks(train_options, 2, {"model_class": PoisonedModel, "folder": tmp_path, "checkpoint_steps": 1}, expect_errors=True)
    assert len(texts) == 2
    for text in texts:  # clip 70 belongs to step 5 (64 to 79), first micro-batches, second rank: 70 and 71
        assert "the loss of step 5 is not finite on 1 rank(s)" in text
        assert "video70.mp4\n  video71.mp4\nresume" in text
    assert find_checkpoint(tmp_path / "checkpoints").step == 4


def test_too_many_unreadable_videos_stop_all_ranks_with_the_list(ranks):
    texts = ranks(train_options, 2, {"bad_at": (1, 1, (3, 4, 5))}, expect_errors=True)
    assert len(texts) == 2
    for text in texts:
        assert "3 of 20 videos are unreadable, more than data.max_bad_fraction=0.1" in text
        assert "video5.mp4: truncated" in text


def test_a_few_unreadable_videos_do_not(ranks):
    for _, losses, _, outcome, _ in ranks(train_options, 2, {"bad_at": (1, 1, (3, 4))}):
        assert outcome == "finished" and len(losses) == 6


def test_deepspeeds_own_monitors_receive_the_figures(ranks, tmp_path):
    monitor = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "run"}}
    [(_, losses, *_)] = ranks(train_options, 1, {"extra": monitor, "num_steps": 3})
    with (tmp_path / "run" / "mats_loss.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    assert [float(value) for _, value in rows] == pytest.approx(losses)
    assert [int(clips) for clips, _ in rows] == [16, 32, 48]


def test_the_checkpoint_says_what_it_is(ranks, tmp_path):
    ranks(train_options, 1, {"folder": tmp_path, "num_steps": 2})
    folder = tmp_path / "checkpoints"
    assert (folder / "latest").read_text() == "step-00000002"
    content = json.loads((folder / "step-00000002" / "complete.json").read_text())
    assert content["step"] == 2 and content["world_size"] == 1 and content["files"]
