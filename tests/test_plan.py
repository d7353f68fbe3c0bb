"""plan.py as a person runs it: verdicts, exit status, JSON, the sweep, and mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mats_ds import plan as plan_script
from mats_ds.config.batch_plan import plan_batch
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.core.cli import USAGE_ERROR
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.data.manifest import Manifest
from mats_ds.planning.question import PlanOptions, resolve_question
from mats_ds.planning.sweep import METHODS, PUBLISHED_GB, SIZES, SWEPT_GPUS, TASKS
from mats_ds.planning.workload import Workload
from mats_ds.training import dry_run_sweep
from mats_ds.training.dry_run_sweep import format_judged, judge_sweep, read_exact_sweep
from mats_ds.training.optim import make_schedule

ROOT = Path(__file__).resolve().parents[1]
ZERO2 = str(ROOT / "ds_configs" / "zero2.json")
BOUND = 0.05  # of the closed form against the real engine


def run(capsys, *arguments):
    status = plan_script.main(["--ds_config", ZERO2, *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_default_run_fits_and_the_page_says_how(capsys):
    status, out, _ = run(capsys, "--gpu", "a100-80g")
    assert status == plan_script.FITS
    assert out.startswith("FITS: base pretrain (mats, 4 decoder blocks), micro-batch 24, bf16, ZeRO-2 on 8 x a100-80g")
    for words in ("AdamW moments", "communication buckets", "CUDA context", "margin", "19.78 GMACs", "12 of ", "assumed"):
        assert words in out


@pytest.mark.slow
def test_nothing_but_the_answer_is_on_stdout():
    command = [sys.executable, str(ROOT / "profiling" / "plan.py"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == plan_script.FITS, done.stderr
    assert json.loads(done.stdout)["fits"]


def test_a_run_that_does_not_fit_names_the_micro_batch_that_would(capsys):
    status, out, _ = run(capsys, "--gpu", "3090", "--finetune", "--micro_batch", "512", "model.name=huge", "--json")
    tree = json.loads(out)
    assert status == plan_script.TOO_LARGE and not tree["fits"]
    arguments = ("--gpu", "3090", "--finetune", "model.name=huge", "--micro_batch")
    assert run(capsys, *arguments, str(tree["largest_micro_batch"]))[0] == plan_script.FITS
    assert run(capsys, *arguments, str(tree["largest_micro_batch"] + 1))[0] == plan_script.TOO_LARGE
    assert sum(tree["bytes_by_kind"].values()) == tree["total_bytes"] > tree["limit_bytes"]


def test_a_recipe_for_fine_tuning_is_planned_as_one(capsys):
    recipe = sorted((ROOT / "mats_ds" / "recipes").glob("finetune_*.yaml"))[0]
    status, out, _ = run(capsys, "--recipe", str(recipe), "--json")
    assert status == plan_script.FITS
    assert json.loads(out)["forward_macs_per_clip"] > 3 * Workload().flops().forward_macs


@pytest.mark.parametrize(
    "overrides", [[], ["data.repeats=2"], ["data.repeats=4", "optim.epochs=1.3", "optim.warmup_epochs=0.1"], ["run.max_steps=7"]]
)
@pytest.mark.parametrize("gpus", [8, 3])
def test_steps_and_learning_rate_are_those_that_the_trainer_would_take(capsys, overrides, gpus):
    """By the trainer's own parts: 3,570 videos, repeats, ranks -> batch, steps an epoch,
    schedule."""
    arguments = ["--recipe", "finetune_hmdb51", "--micro_batch", "8", "--gpus", str(gpus), *overrides, "--json"]
    planned = json.loads(run(capsys, *arguments)[1])
    recipe = load_recipe("finetune_hmdb51", overrides, schema=FinetuneRecipe)
    config, repeats = {"train_micro_batch_size_per_gpu": 8}, recipe.data.repeats
    batch = plan_batch(config, recipe_batch=recipe.optim.global_batch, world_size=gpus, repeats=repeats)
    none_S = np.full(3570, np.nan)
    manifest = Manifest(["a.mp4"] * 3570, np.zeros(3570, np.int64), none_S, none_S, "set")
    sizes = dict(num_frames=16, global_batch=batch.global_batch, seed=0, repeats=repeats)
    steps_per_epoch = ClipSampler(manifest, recipe_clip=recipe.clip, **sizes).steps_per_epoch
    schedule = make_schedule(recipe.optim, steps_per_epoch=steps_per_epoch, learning_rate_scale=batch.learning_rate_scale)
    assert planned["steps_per_epoch"] == steps_per_epoch
    assert planned["steps"] == min(schedule.total_steps, recipe.run.max_steps or schedule.total_steps)
    assert planned["learning_rate"] == pytest.approx(schedule.peak)


def test_hours_follow_clips_and_mfu(capsys):
    hours = [
        json.loads(run(capsys, "--json", "--clips", clips, "--mfu", mfu)[1])["hours"]
        for clips, mfu in (("19200", "0.25"), ("38400", "0.25"), ("19200", "0.5"))
    ]
    assert hours[1] == pytest.approx(2 * hours[0]) and hours[2] == pytest.approx(hours[0] / 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--gpu", "h1000"], "no GPU 'h1000'"),
        (["--gpus", "0"], "--gpus is from 1 to 10,000"),
        (["--gpus", "99999999"], "--gpus is from 1 to 10,000"),
        (["--micro_batch", "0"], "--micro_batch is from 1 to"),
        (["--micro_batch", "9" * 23], "--micro_batch is from 1 to"),
        (["--clips", "9" * 400], "--clips is from 1 to"),
        (["--mfu", "1.5"], "--mfu is above 0 and at most 1"),
        (["--mfu", "0.5", "--measured", "runs/x"], "give one of the two"),
        (["--measured", "nowhere"], "no run folder nowhere"),
        (["--video", "large"], "WIDTHxHEIGHT"),
        (["--keep_ratio", "0.5"], "goes with --finetune"),
        (["--recipe", "nothing"], "nothing"),
        (["model.name=bass"], "base"),
        (["--ds_config", "none.json"], "zero2_finetune"),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, arguments, complaint):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (USAGE_ERROR, "")
    assert complaint in err and "Traceback" not in err


def test_zero_3_cannot_be_run_exactly_and_says_so(capsys):
    status, _, err = run(capsys, "--ds_config", str(ROOT / "ds_configs" / "zero3.json"), "--exact")
    assert status == USAGE_ERROR and "stages 0 to 2 without offload" in err


def test_the_sweep_has_every_cell_and_the_published_figures(capsys):
    status, out, _ = run(capsys, "--sweep")
    assert status == plan_script.FITS
    for size in SIZES.values():
        for gpu in SWEPT_GPUS:
            assert len([line for line in out.splitlines() if line.startswith(f"ViT-{size} 8x{gpu} ")]) == len(TASKS)
    assert all(f"published {figure}" in out for figure in PUBLISHED_GB.values())
    cells = json.loads(run(capsys, "--sweep", "--json")[1])
    assert len(cells) == len(SIZES) * len(SWEPT_GPUS) * len(METHODS) * len(TASKS)


def test_an_installed_package_leaves_the_measured_sweep_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("checkout", "nowhere"):
        monkeypatch.setattr(dry_run_sweep, "EXACT_FILE", tmp_path / folder / "exact.json")
        (tmp_path / "checkout").mkdir(exist_ok=True)
        path = dry_run_sweep.write_exact_sweep({"cells": []})
        assert path.resolve() == (tmp_path / "checkout" / "exact.json" if folder == "checkout" else tmp_path / "exact.json")
        assert read_exact_sweep(path) == {"cells": []}


def test_a_plan_needs_no_command_line():
    question = resolve_question(PlanOptions(ds_config=ZERO2, gpu="l40s", gpus=4, micro_batch=3))
    assert (question.gpu.name, question.world_size, question.batch.micro_batch) == ("l40s-48g", 4, 3)
    assert question.loader.num_pipelines == 3  # as many as an L40S has decoders


def test_the_closed_form_is_within_bounds_of_the_real_engine_on_every_cell():
    tree = read_exact_sweep()
    judged = judge_sweep(tree, Workload(recompute=tree["recompute"], checkpoint_blocks=tree["checkpoint_blocks"]))
    covered = {(each.size, each.method, each.task) for each in judged}
    assert covered == {(size, method, task) for size in SIZES for method in METHODS for task in TASKS}
    for each in judged:
        assert abs(each.deviation) < BOUND, each
        assert each.planned_saved_bytes == pytest.approx(each.exact_saved_bytes, rel=BOUND), each
    assert "ViT-L pretrain" in format_judged(judged)


def test_what_does_not_fit_is_told_what_does_with_numbers_that_the_planner_accepts(capsys):
    asked = ["--gpu", "3090-24g", "--gpus", "2", "model.name=huge"]
    status, out, _ = run(capsys, *asked, "--micro_batch", "96")
    assert status == plan_script.TOO_LARGE
    [line] = [line for line in out.splitlines() if line.startswith("to fit: ")]
    micro = line.split("train_micro_batch_size_per_gpu ")[1].split()[0]
    assert run(capsys, *asked, "--micro_batch", micro)[0] == plan_script.FITS
    assert line.endswith("model.checkpoint_blocks=all with train_micro_batch_size_per_gpu 96")
    assert run(capsys, *asked, "--micro_batch", "96", "model.checkpoint_blocks=all")[0] == plan_script.FITS
    assert "to fit" not in run(capsys, *asked, "--micro_batch", micro)[1]
