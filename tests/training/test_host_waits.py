"""A whole training step, forward and backward, DeepSpeed's engine and all observers: the host waits
for the device once, for the step before."""

from __future__ import annotations

import io
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from mats_ds.config.batch_plan import plan_batch
from mats_ds.config.ds_config import read_ds_config
from mats_ds.config.finetune_recipe import AugmentSection
from mats_ds.config.recipe import OptimSection
from mats_ds.core.clips import ClipBatch
from mats_ds.core.events import RunInfo
from mats_ds.core.token_grid import TokenGrid, TokenPruning
from mats_ds.data.augment.augmenter import Augmenter
from mats_ds.distributed.ranks import start_distributed
from mats_ds.metering.recorder import Recorder
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.training.ema import WeightAverage
from mats_ds.training.engine import make_engine
from mats_ds.training.loop import fit
from mats_ds.training.losses import make_loss, reconstruction_loss_of
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import layer_scale, parameter_groups
from tests.training.host_waits import HostWaits

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 4, 4))  # 48 tokens
CANDIDATES = GRID.with_tau(4)
NUM_CLASSES, MICRO_BATCH, NUM_STEPS, ACCUMULATION = 5, 4, 6, 2
WHOLE = (2, NUM_STEPS - 1)  # between these numbers of finished steps nothing is first or last
SIZES = dict(grid=GRID, candidate_grid=CANDIDATES, width=24, depth=2, heads=3, drop_path=0.2)


class Saver:
    def check_room(self, extra):
        pass

    def poll(self):
        pass

    def begin(self, step, extra):
        pass

    finish = poll


def make_batch(step, device):
    dice = torch.Generator().manual_seed(step)
    shape = (MICRO_BATCH, CANDIDATES.num_frames, CANDIDATES.height, CANDIDATES.width, 3)
    seeds = [100 * step + clip for clip in range(MICRO_BATCH)]
    return ClipBatch(
        frames_BTHWC=torch.randint(0, 256, shape, dtype=torch.uint8, generator=dice).to(device),
        label_B=torch.arange(MICRO_BATCH, device=device) % NUM_CLASSES,
        sample_B=torch.arange(MICRO_BATCH, device=device),
        valid_B=torch.ones(MICRO_BATCH, dtype=torch.bool, device=device),
        seed_B=torch.tensor(seeds, device=device),
        paths=tuple(f"video{clip}.mp4" for clip in range(MICRO_BATCH)),
        clip_seeds=tuple(seeds),
    )


def make_pretraining(pruning, recompute):
    model = MaskedAutoencoder(
        **SIZES, decoder_width=16, decoder_heads=2, decoder_depth=1, pruning=pruning, recompute=recompute
    )  # fmt: skip
    return model, reconstruction_loss_of, lambda name: 1.0


def make_finetuning(pruning, recompute):
    model = VideoClassifier(**SIZES, num_classes=NUM_CLASSES, pruning=pruning, recompute=recompute, head_dropout=0.1)
    augment = AugmentSection(mixup=0.8, cutmix=1.0, cutmix_share=0.5, random_erasing=0.5)
    loss_of = make_loss(Augmenter(augment, num_classes=NUM_CLASSES, micro_batch=MICRO_BATCH), label_smoothing=0.1)
    return model, loss_of, lambda name: layer_scale(name, depth=2, layer_decay=0.75)


MAKERS = {"pretrain": make_pretraining, "finetune": make_finetuning}


def make_fit(folder, task, ds_config, changes, pruning, recompute, *others):
    """A run of NUM_STEPS on this rank that has begun with nothing but `fit`, and its recorder.
    others: observers that come last."""
    ranks = start_distributed()
    config = {**read_ds_config(CONFIGS / f"{ds_config}.json"), "train_micro_batch_size_per_gpu": MICRO_BATCH, **changes}
    plan = plan_batch(config, recipe_batch=MICRO_BATCH * ACCUMULATION, world_size=1)
    torch.manual_seed(0)
    model, loss_of, scale_of = MAKERS[task](TokenPruning(**pruning), recompute)
    average = WeightAverage(model, decay=0.9, device=ranks.device)
    engine = make_engine(model, parameter_groups(model, OptimSection(), lr_scale_of=scale_of), config, plan)
    run = RunInfo(
        run_dir=str(folder), rank=0, world_size=1, device="cuda", device_name="CPU", recipe_name="test", model_name="test",
        num_parameters=0, precision="bf16", zero_stage=2, micro_batch=MICRO_BATCH, accumulation=plan.accumulation,
        global_batch=plan.global_batch, total_steps=NUM_STEPS, steps_per_epoch=2, first_step=0, learning_rate=0.0, num_tokens=48,
        kept=14, visible=4, targets=10, forward_macs_per_clip=1, model_flops_per_clip=1, hardware_flops_per_clip=1, task=task,
    )  # fmt: skip
    recorder = Recorder(folder, ranks.device)
    observers = [
        recorder,
        Console(log_steps=1, memory_bytes=recorder.memory, stream=io.StringIO()),
        Monitor(engine, every_steps=1, memory_bytes=recorder.memory),
        average,
        Checkpointer(Saver(), every_steps=0),
        *others,
    ]
    batches = [make_batch(step, ranks.device) for step in range(ACCUMULATION)]
    arguments = dict(run=run, learning_rate=lambda step: 1e-3, loss_of=loss_of, observers=observers)
    return partial(fit, engine, itertools.cycle(batches), **arguments, num_videos=MICRO_BATCH, max_bad_fraction=0.1), recorder


def count_waits(*options):
    """The waits of the whole steps of a run, how often in each an earlier step's numbers were read,
    and the operators of a step. Options of `make_fit`."""
    waits = HostWaits()
    start_distributed()
    waits.replace_device()
    train, recorder = make_fit(*options)
    with waits.watch():
        train()
    assert (recorder.latest.step, waits.done) == (NUM_STEPS, NUM_STEPS)
    late = [waits.late.count(done) for done in range(*WHOLE)]
    return waits.between(*WHOLE), late, waits.num_operators[WHOLE[0]]


NOT_OVERLAPPED = {"zero_optimization": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True}}
FINETUNING = {"keep_ratio": 0.6, "visible_ratio": 0.6}


@pytest.mark.parametrize(
    ("task", "pruning", "recompute"),
    [
        ("pretrain", {}, "none"),
        ("finetune", FINETUNING, "pointwise"),
        pytest.param("pretrain", {"compensate_camera": True}, "pointwise", marks=pytest.mark.slow),
        pytest.param("pretrain", {"strategy": "run_length"}, "none", marks=pytest.mark.slow),
        pytest.param("pretrain", {"strategy": "tube"}, "none", marks=pytest.mark.slow),
        pytest.param("pretrain", {"strategy": "running_cell"}, "none", marks=pytest.mark.slow),
        pytest.param("finetune", {**FINETUNING, "merge_dropped": True}, "none", marks=pytest.mark.slow),
    ],
)
def test_the_host_waits_once_a_step_and_for_the_step_before(ranks, tmp_path, task, pruning, recompute):
    [(found, late, _)] = ranks(count_waits, 1, tmp_path, task, "zero2", NOT_OVERLAPPED, pruning, recompute)
    assert found == []
    assert all(late), "and numbers are read"


@pytest.mark.slow
def test_deepspeeds_own_look_at_the_gradients_is_seen_to_wait(ranks, tmp_path):
    """What the guard is for, and that these tests would find it."""
    checked = {**NOT_OVERLAPPED, "bf16": {"enabled": True, "check_grad_overflow": True}}
    [(_, _, ours)] = ranks(count_waits, 1, tmp_path, "pretrain", "zero2", NOT_OVERLAPPED, {}, "none")
    [(found, _, theirs)] = ranks(count_waits, 1, tmp_path, "pretrain", "zero2", checked, {}, "none")
    num_steps = WHOLE[1] - WHOLE[0]
    # the check, the verdict on the norm, and a number of the host for each of two parameter groups
    assert sum(what == "aten::_local_scalar_dense" for what, _ in found) == 2 * num_steps
    assert sum(what == "tensor of values of the host" for what, _ in found) == 2 * num_steps
    assert all("/deepspeed/" in where for _, where in found)
    assert theirs > ours


@pytest.mark.slow
def test_an_overlapped_reduction_waits_at_the_end_of_every_backward_pass(ranks, tmp_path):
    """DeepSpeed's doing, and the shipped JSONs have it: docs/reference/deepspeed.md says so."""
    [(found, *_)] = ranks(count_waits, 1, tmp_path, "pretrain", "zero2", {}, {}, "none")
    assert [what for what, _ in found] == ["synchronize"] * ACCUMULATION * (WHOLE[1] - WHOLE[0])
