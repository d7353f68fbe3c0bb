"""Every recipe against what is published: clips seen, learning rate at the peak, epochs, and what a
clip and a view are.

The sources of the figures, row by row:
- EVEREST: the authors' public scripts, scripts/{ucf101,hmdb51}/{pretrain,finetune}.sh of
  github.com/sunilhoho/EVEREST, and what its run_ms_pretraining.py and run_class_finetuning.py take
  where a script is silent.
- VideoMAE:
  scripts/{kinetics,ssv2}/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_*/{pretrain,finetune}.sh
  of github.com/MCG-NJU/VideoMAE (arXiv 2203.12602); --num_sample there is the number of clips a
  video.
- MATS: arXiv 2211.10636, its section on implementation, for what has no public script. 8 GPUs, 24
  clips each in pre-training and 16 in fine-tuning.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mats_ds.config.batch_plan import plan_batch
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import RECIPE_FOLDER, load_recipe
from mats_ds.training.optim import make_schedule

GPUS, PRETRAIN_CLIPS, FINETUNE_CLIPS = 8, 24, 16


class Row(NamedTuple):
    """clips: of a video in each pass over the set. peak_lr: of the batch of 8 GPUs. span: stride,
    or "uniform"."""

    recipe: str
    epochs: float
    clips: int
    warmup: float
    peak_lr: float
    span: int | str
    source: str
    changes: tuple[str, ...] = ()


PRETRAINING = [
    Row("ucf101", 3200, 1, 40, 1e-3 * 192 / 256, 4, "EVEREST, ucf101/pretrain.sh"),
    Row("hmdb51", 4800, 1, 40, 1e-3 * 192 / 256, 2, "EVEREST, hmdb51/pretrain.sh"),
    Row("k400", 200, 1, 40, 1.5e-4 * 192 / 256, 4, "MATS for epochs and batch; VideoMAE, kinetics/..._epoch_800/pretrain.sh"),
    Row("default", 200, 1, 40, 1.5e-4 * 192 / 256, 4, "as k400"),
    Row("ssv2", 200, 1, 40, 1.5e-4 * 192 / 256, 2, "MATS for epochs and batch; VideoMAE, ssv2/..._epoch_800/pretrain.sh"),
    Row("oscc", 800, 1, 40, 1e-3 * 192 / 256, "uniform", "MATS; the number of epochs is ours"),
]
K400_TWO = ("data.repeats=2", "optim.epochs=75", "optim.base_lr=5e-4")
SSV2_TWO = ("data.repeats=2", "optim.epochs=30")
FINETUNING = [
    Row("finetune_ucf101", 100, 1, 5, 1e-3 * 128 / 256, 4, "EVEREST, ucf101/finetune.sh"),
    Row("finetune_hmdb51", 50, 1, 5, 1e-3 * 128 / 256, 2, "EVEREST, hmdb51/finetune.sh"),
    Row("finetune_k400", 100, 1, 5, 1e-3 * 128 / 256, 4, "VideoMAE, kinetics/..._epoch_800/finetune.sh"),
    Row("finetune_k400", 75, 2, 5, 5e-4 * 64 / 256, 4, "VideoMAE, kinetics/..._epoch_1600/finetune.sh", K400_TWO),
    Row("finetune_ssv2", 50, 1, 5, 5e-4 * 128 / 256, "uniform", "VideoMAE, ssv2/..._epoch_800/finetune.sh"),
    Row("finetune_ssv2", 30, 2, 5, 5e-4 * 64 / 256, "uniform", "VideoMAE, ssv2/..._epoch_2400/finetune.sh", SSV2_TWO),
    Row("finetune_oscc", 100, 1, 5, 1e-3 * 128 / 256, "uniform", "MATS; epochs and batch are UCF101's"),
]
# Test clips x crops: --test_num_segment and --test_num_crop of the same scripts; OSCC: MATS.
VIEWS = {
    "finetune_ucf101": (5, 3),
    "finetune_hmdb51": (10, 3),
    "finetune_k400": (5, 3),
    "finetune_ssv2": (2, 3),
    "finetune_oscc": (1, 1),
}
# Defaults of VideoMAE's run_class_finetuning.py, and the EVEREST scripts' 0 for both: METHOD
# section 5.
MIXING = {"finetune_k400": (0.8, 1.0), "finetune_ssv2": (0.8, 1.0)}
LAPTOP = {"tiny", "finetune_tiny"}  # ours, nothing is published


def name_of(row: Row) -> str:
    return " ".join((row.recipe, *row.changes))


def load(row: Row):
    is_finetuning = row.recipe.startswith("finetune_")
    return load_recipe(row.recipe, row.changes, **({"schema": FinetuneRecipe} if is_finetuning else {}))


def test_every_recipe_has_a_row():
    rows = {row.recipe for row in PRETRAINING + FINETUNING}
    assert rows | LAPTOP == {path.stem for path in RECIPE_FOLDER.glob("*.yaml")}
    assert set(VIEWS) == {row.recipe for row in FINETUNING}


@pytest.mark.parametrize("row", PRETRAINING + FINETUNING, ids=name_of)
def test_clips_seen_epochs_warm_up_and_the_peak_of_the_learning_rate(row):
    recipe, num_videos = load(row), 12_800
    micro = FINETUNE_CLIPS if row in FINETUNING else PRETRAIN_CLIPS
    batch = plan_batch(
        {"train_micro_batch_size_per_gpu": micro},
        recipe_batch=recipe.optim.global_batch,
        world_size=GPUS,
        repeats=recipe.data.repeats,
    )
    assert (batch.accumulation, batch.global_batch) == (1, micro * GPUS)
    assert (recipe.data.repeats, recipe.optim.epochs, recipe.optim.warmup_epochs) == (row.clips, row.epochs, row.warmup)
    steps_per_epoch = num_videos * recipe.data.repeats // batch.global_batch
    schedule = make_schedule(recipe.optim, steps_per_epoch=steps_per_epoch, learning_rate_scale=batch.learning_rate_scale)
    rates = [schedule.learning_rate(step) for step in (0, schedule.warmup_steps, schedule.total_steps - 1)]
    assert schedule.peak == pytest.approx(row.peak_lr, rel=1e-12)
    assert max(rates) == rates[1] == schedule.peak
    assert schedule.warmup_steps == row.warmup * steps_per_epoch
    # clips seen in all, and the same on half of the GPUs
    assert schedule.total_steps * batch.global_batch == pytest.approx(row.clips * row.epochs * num_videos, rel=0.01)
    fewer = plan_batch(
        {"train_micro_batch_size_per_gpu": micro},
        recipe_batch=recipe.optim.global_batch,
        world_size=GPUS // 2,
        repeats=recipe.data.repeats,
    )
    assert (fewer.global_batch, fewer.learning_rate_scale) == (batch.global_batch, batch.learning_rate_scale)


@pytest.mark.parametrize("row", PRETRAINING + FINETUNING, ids=name_of)
def test_optimizer_and_the_span_and_mirroring_of_a_clip(row):
    recipe, is_finetuning = load(row), row in FINETUNING
    assert recipe.optim.betas == ((0.9, 0.999) if is_finetuning else (0.9, 0.95))
    assert (recipe.optim.weight_decay, recipe.optim.eps) == (0.05, 1e-8)
    assert recipe.optim.min_lr == (1e-6 if is_finetuning else 1e-5)
    assert recipe.optim.warmup_lr == 1e-6
    clip = recipe.clip
    assert (clip.num_frames, clip.height, clip.width, clip.tubelet) == (16, 224, 224, (2, 16, 16))
    assert (clip.sampling if row.span == "uniform" else clip.stride) == row.span
    assert (clip.sampling == "uniform") == (row.span == "uniform")
    assert clip.flip == (is_finetuning and row.recipe != "finetune_ssv2")
    assert (recipe.selection.strategy, recipe.selection.keep_ratio) == ("mats", 0.6 if is_finetuning else 0.3)
    assert recipe.selection.frame_candidates == (1.5 if "oscc" in row.recipe else 1)
    if not is_finetuning:
        assert recipe.clip.crop_scales == (1.0, 0.875, 0.75, 0.66) and recipe.selection.visible_ratio == 0.1
        assert recipe.model.drop_path == 0


@pytest.mark.parametrize("row", FINETUNING, ids=name_of)
def test_regularisation_and_views_of_fine_tuning(row):
    recipe = load(row)
    assert (recipe.finetune.layer_decay, recipe.finetune.label_smoothing, recipe.model.drop_path) == (0.75, 0.1, 0.1)
    assert (recipe.finetune.head_dropout, recipe.finetune.ema_decay) == (0, None)
    augment = recipe.augment
    assert (augment.random_resized_crop, augment.rand_augment) == ((0.08, 1.0), "rand-m7-n4-mstd0.5-inc1")
    assert augment.random_erasing == 0.25
    assert (augment.mixup, augment.cutmix) == MIXING.get(row.recipe, (0, 0))
    assert (recipe.evaluation.clips, recipe.evaluation.crops) == VIEWS[row.recipe]


@pytest.mark.parametrize("row", [row for row in FINETUNING if row.changes], ids=name_of)
def test_the_other_published_pair_is_in_the_head_of_the_recipe_to_be_copied(row):
    head = (RECIPE_FOLDER / f"{row.recipe}.yaml").read_text(encoding="utf-8").split("\nname:")[0]
    assert " ".join(row.changes) in " ".join(head.replace("#", " ").split())


def test_a_recipe_of_ones_own_mirrors_in_fine_tuning_only(tmp_path):
    """Where the file says nothing."""
    (tmp_path / "pre.yaml").write_text("model: {name: tiny}\n")
    (tmp_path / "fine.yaml").write_text("finetune: {layer_decay: 0.75}\n")
    assert not load_recipe(tmp_path / "pre.yaml").clip.flip
    assert load_recipe(tmp_path / "fine.yaml", schema=FinetuneRecipe).clip.flip
