"""The loop on the real DeepSpeed engine: forked gloo ranks, small models, clips made of noise."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from mats_ds.config.batch_plan import plan_batch
from mats_ds.config.ds_config import read_ds_config, zero_stage_of
from mats_ds.config.recipe import OptimSection
from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.core.events import RunInfo
from mats_ds.core.token_grid import TokenGrid
from mats_ds.distributed.ranks import start_distributed
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.training.checkpoints.resume import find_resume_point
from mats_ds.training.checkpoints.resume import resume as resume_engine
from mats_ds.training.checkpoints.saver import CheckpointSaver
from mats_ds.training.csv_monitor import HEADERS
from mats_ds.training.engine import make_engine, static_bytes
from mats_ds.training.loop import fit
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import make_schedule, parameter_groups

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 4, 4))  # 48 tokens
PATTERN = "try [1] *"  # DeepSpeed looks for its files by patterns, and this matches none of them
GLOBAL_BATCH = 16
NUM_VIDEOS = 20


def make_clip(position):
    """Clip number `position` of an endless data set: a ramp that moves, so that there is something
    to learn."""
    generator = torch.Generator().manual_seed(position)
    offset, slope = torch.randint(0, 100, (2,), generator=generator).tolist()
    row, column = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    frames = [(offset + (2 + slope % 4) * (row + column + 3 * time)) % 256 for time in range(4)]
    noise = torch.randint(0, 12, (4, 16, 24, 3), generator=generator)
    return (torch.stack(frames)[..., None] + noise).clamp(0, 255).to(torch.uint8)


def endless_batches(plan, rank, first_step, bad_at=None):
    """This rank's micro-batches from `first_step` on; `bad_at` = (step, rank, videos): those are
    reported unreadable there."""
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
                seed_B=torch.tensor(positions),
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
        self.norms.append(math.nan if event.grad_norm is None else float(event.grad_norm))

    def on_end(self, outcome):
        self.outcome = outcome


def train(
    *,
    num_steps=6,
    ds_config="zero2_tiny",
    extra=None,
    micro_batch=2,
    folder=None,
    checkpoint_steps=0,
    keep=2,
    keep_every=0,
    resume=False,
    model_class=MaskedAutoencoder,
    bad_at=None,
    max_bad_fraction=0.1,
    seed=0,
    log=None,
    hang_seconds=60.0,
    stop_saving_after=None,
):
    """One run as pretrain.py makes it, on clips from memory. Returns (LossLog, static bytes,
    plan)."""
    ranks = start_distributed()
    config = {**read_ds_config(CONFIGS / f"{ds_config}.json"), "train_micro_batch_size_per_gpu": micro_batch, **(extra or {})}
    plan = plan_batch(config, recipe_batch=GLOBAL_BATCH, world_size=ranks.world_size)
    optim = OptimSection(base_lr=0.05, min_lr=1e-4, warmup_lr=1e-4, steps=20, warmup_steps=3)
    torch.manual_seed(seed)
    model = model_class(
        grid=GRID, width=24, depth=2, heads=3, decoder_width=16, decoder_heads=2, decoder_depth=1, checkpoint_blocks="all"
    )
    sizes = dict(global_batch=plan.global_batch, zero_stage=zero_stage_of(config))
    point = find_resume_point(folder / "checkpoints", ranks, **sizes) if resume else None
    engine = make_engine(
        model, parameter_groups(model, optim), config, plan, load_universal=point is not None and point.is_converted
    )
    first_step = resume_engine(engine, point, ranks).step
    run = RunInfo(
        run_dir=str(folder), rank=ranks.rank, world_size=ranks.world_size, device="cpu", device_name="CPU", recipe_name="test",
        model_name="test", num_parameters=0, precision="fp32", zero_stage=2, micro_batch=micro_batch,
        accumulation=plan.accumulation, global_batch=plan.global_batch, total_steps=num_steps, steps_per_epoch=2,
        first_step=first_step, learning_rate=0.0, num_tokens=48, kept=14, visible=4, targets=10, forward_macs_per_clip=1,
        model_flops_per_clip=1, hardware_flops_per_clip=1,
    )  # fmt: skip
    log = log or LossLog()
    observers = [log, Console(log_steps=2, memory_bytes=lambda: None), Monitor(engine, every_steps=1, memory_bytes=lambda: None)]
    finish_saves = lambda: None  # noqa: E731
    if folder is not None:
        kept = dict(keep=keep, keep_every_steps=keep_every, resumed_from=None if point is None else point.checkpoint.tag)
        with contextlib.suppress(OSError):  # one that cannot be made is a test of its own
            folder.mkdir(parents=True, exist_ok=True)
        saver = CheckpointSaver(
            engine, folder / "checkpoints", ranks, recipe="name: test", global_batch=plan.global_batch, **kept
        )
        if stop_saving_after is not None:
            begin = saver.begin
            saver.begin = lambda step, extra: begin(step, extra) if step <= stop_saving_after else None
        observers.append(Checkpointer(saver, every_steps=checkpoint_steps))
        finish_saves = saver.finish
    fit(
        engine,
        endless_batches(plan, ranks.rank, first_step, bad_at),
        run=run,
        learning_rate=make_schedule(optim, steps_per_epoch=2, learning_rate_scale=plan.learning_rate_scale).learning_rate,
        loss_of=lambda engine, batch: engine(batch.frames_BTHWC, batch.seed_B),
        finish_saves=finish_saves,
        observers=observers,
        num_videos=NUM_VIDEOS,
        max_bad_fraction=max_bad_fraction,
        hang_seconds=hang_seconds,
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


@pytest.mark.parametrize("world_size", [2, pytest.param(8, marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_zero_2_divides_what_it_should(ranks):
    whole, halves = ranks(train_options, 1, {"num_steps": 1}), ranks(train_options, 2, {"num_steps": 1})
    [one], [half, other] = [result[4] for result in whole], [result[4] for result in halves]
    assert half == other
    assert half["weights"] == one["weights"]
    for kind in ("gradients", "master_weights", "moments"):
        assert half[kind] == pytest.approx(one[kind] / 2, rel=0.01)  # padding to whole elements


def test_a_resumed_run_is_equal_to_the_bit(ranks, tmp_path):
    [(_, straight, *_), _] = ranks(train_options, 2, {"folder": tmp_path / "straight", "num_steps": 6})
    ranks(train_options, 2, {"folder": tmp_path / PATTERN, "num_steps": 4, "checkpoint_steps": 2})
    results = ranks(train_options, 2, {"folder": tmp_path / PATTERN, "num_steps": 6, "resume": True, "seed": 99})
    for _, losses, *_ in results:
        assert losses == straight[4:]
    assert sorted(path.name for path in (tmp_path / PATTERN / "checkpoints").glob("step-*")) == [
        "step-00000004",
        "step-00000006",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 0, 1, 3])
def test_more_and_fewer_ranks_go_on_with_the_same_losses(ranks, one_rank_losses, stage, tmp_path):
    options = {"folder": tmp_path / PATTERN, "extra": {"zero_optimization": {"stage": stage}}, "checkpoint_steps": 2}
    losses = [ranks(train_options, 4, {**options, "num_steps": 2})[0][1]]
    for num_steps, world_size in ((4, 2), (5, 1), (8, 4)):
        results = ranks(train_options, world_size, {**options, "num_steps": num_steps, "resume": True, "seed": 99})
        assert len({tuple(found) for _, found, *_ in results}) == 1
        losses.append(results[0][1])
    assert [len(each) for each in losses] == [2, 2, 1, 3]
    assert sum(losses, []) == pytest.approx(one_rank_losses[:8], abs=1e-5)
    # what was converted on the way is gone
    assert not list((tmp_path / PATTERN / "checkpoints").glob(".*"))


def clipping_once_resumed(options):
    """What the engine of a resumed run clips at."""
    found = []
    globals()["fit"] = lambda engine, *_, **__: found.append(engine.optimizer.clip_grad)
    train(**options, resume=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "now"), [(1.0, 0.0), (0.0, 0.5)])
def test_a_resumed_run_clips_as_its_json_says(ranks, tmp_path, saved, now):
    """DeepSpeed went on with the clipping of the run that saved."""
    options = {"ds_config": "zero2", "folder": tmp_path}
    ranks(train_options, 1, {**options, "num_steps": 1, "extra": {"gradient_clipping": saved}})
    assert ranks(clipping_once_resumed, 1, {**options, "extra": {"gradient_clipping": now}}) == [[now]]


@pytest.mark.slow
def test_another_zero_stage_or_global_batch_is_told_what_to_do(ranks, tmp_path):
    ranks(train_options, 2, {"folder": tmp_path, "num_steps": 1})
    options = {"folder": tmp_path, "resume": True}
    [text] = ranks(train_options, 1, {**options, "extra": {"zero_optimization": {"stage": 3}}}, expect_errors=True)
    assert "saved under ZeRO stage 2 and the DeepSpeed JSON says 3" in text
    [text] = ranks(train_options, 1, {**options, "micro_batch": 5}, expect_errors=True)
    assert "trained with 16 clips a step and 1 rank would make 15" in text and "optim.global_batch=16" in text


class WiderModel(MaskedAutoencoder):
    def __init__(self, *, width, **rest):
        super().__init__(width=2 * width, **rest)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_of_another_model_is_told_apart(ranks, tmp_path, world_size):
    ranks(train_options, 1, {"folder": tmp_path, "num_steps": 1})
    for text in ranks(
        train_options, world_size, {"folder": tmp_path, "resume": True, "model_class": WiderModel}, expect_errors=True
    ):
        assert "ValueError:" in text and "step-00000001 is of another model than the recipe's: " in text
        assert "/recipe.yaml" in text


@pytest.mark.slow
def test_every_so_many_steps_one_is_kept_for_good(ranks, tmp_path):
    ranks(train_options, 1, {"folder": tmp_path, "checkpoint_steps": 1, "keep_every": 3, "num_steps": 8})
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [3, 6, 7, 8]


def test_too_many_unreadable_videos_stop_all_ranks_with_the_list(ranks):
    texts = ranks(train_options, 2, {"bad_at": (1, 1, (3, 4, 5))}, expect_errors=True)
    assert len(texts) == 2
    for text in texts:
        assert "3 of 20 videos are unreadable or damaged, more than data.max_bad_fraction=0.1" in text
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


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_their_csv_files(ranks, tmp_path):
    monitor = {"csv_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "run"}}
    options = {"extra": {**monitor, "wall_clock_breakdown": True}, "folder": tmp_path / "run-folder", "checkpoint_steps": 2}
    ranks(train_options, 1, {**options, "num_steps": 3, "stop_saving_after": 2})
    assert {path.stem for path in (tmp_path / "run").iterdir()} <= set(HEADERS), "files that a resumed run would not know"
    index = b"sample,shard\n1,2\n900,3\n"
    (tmp_path / "run" / "index.csv").write_bytes(index)  # extract --out on the same folder
    ranks(train_options, 1, {**options, "num_steps": 4, "resume": True})
    assert (tmp_path / "run" / "index.csv").read_bytes() == index
    for name in ("mats_loss", "Train_Samples_lr"):
        with (tmp_path / "run" / f"{name}.csv").open() as file:
            header, *rows = list(csv.reader(file))
        assert header[0] == "step" and [int(clips) for clips, _ in rows] == [16, 32, 48, 64]


def test_the_checkpoint_says_what_it_is(ranks, tmp_path):
    ranks(train_options, 1, {"folder": tmp_path, "num_steps": 2})
    folder = tmp_path / "checkpoints"
    assert (folder / "latest").read_text() == "step-00000002"
    content = json.loads((folder / "step-00000002" / "complete.json").read_text())
    assert content["step"] == 2 and content["world_size"] == 1 and content["files"]
