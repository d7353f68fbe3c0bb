"""Fine-tune a video classifier with motion-aware token selection: recipe + DeepSpeed JSON (+
weights) -> a run folder.

    deepspeed --num_gpus 8 mats_ds/finetune.py --recipe FILE
        --ds_config ds_configs/zero2_finetune.json finetune.weights=RUN

Reads top to bottom: join the other ranks, open the videos, build model and engine, train and test.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import argparse
import dataclasses
import json
import logging
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import list_keys
from mats_ds.core.checkpoint_files import SPEC_KEY
from mats_ds.core.cli import LAUNCHER_OPTIONS, ArgumentParser, importing, leave
from mats_ds.core.format import format_count, format_figure, format_part
from mats_ds.core.storage.package_files import own_command
from mats_ds.data.classes import resolve_classes
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.distributed.collectives import ask_first
from mats_ds.distributed.consistency import check_consistent
from mats_ds.metering.run_result import RESULT_FILE
from mats_ds.models.weights.origin import BEST_FILE, origin_of
from mats_ds.planning.workload import Workload
from mats_ds.training.options import RunOptions, add_run_options, check_start, run_training

if TYPE_CHECKING:  # what needs torch is imported where it is used, after the arguments are checked
    from mats_ds.evaluation.validation import Evaluation

logger = logging.getLogger("mats_ds")


def main(arguments: list[str] | None = None) -> int:
    """The exit status of a fine-tuning."""
    return run_training(finetune, parse_arguments(arguments), task="finetune", schema=FinetuneRecipe)


def check(arguments: list[str], *, reads_paths: bool) -> None:
    """As the ranks would, before any is started: see `check_start`. Exits with 2 for arguments that
    the program does not take."""
    check_start(parse_arguments(arguments), task="finetune", schema=FinetuneRecipe, reads_paths=reads_paths)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        recipe_keys=list_keys(FinetuneRecipe),
        launcher=LAUNCHER_OPTIONS,
        description="Fine-tune a video classifier with motion-aware token selection, from pre-trained weights or from scratch.",
        epilog=f"Example: {own_command('finetune')} --recipe finetune_ucf101 --ds_config zero2_finetune "
        "finetune.weights=runs/ucf101 data.manifest=train.csv evaluation.manifest=val.csv. "
        "The weights are a run or checkpoint of ours, a .safetensors or .pth file (VideoMAE, EVEREST), or a Hugging Face folder. "
        "The run folder gets evaluation.jsonl, result.json (the accuracy of the last weights) and best.safetensors (the weights "
        "with the best top-1, chosen on evaluation.manifest).",
    )
    add_run_options(parser, default_recipe=None)
    return parser.parse_intermixed_args(arguments)


def finetune(recipe: FinetuneRecipe, options: RunOptions) -> None:
    """One run on this rank, from the weights to the last test."""
    with importing("torch", "deepspeed"):
        import torch

        from mats_ds.data.augment.augmenter import Augmenter
        from mats_ds.data.loading.build import open_videos, read_pass
        from mats_ds.evaluation.during_training import check_unseen, open_test_loader, open_test_set, write_result
        from mats_ds.evaluation.validation import Evaluator
        from mats_ds.models.model_spec import describe_model, dump_spec
        from mats_ds.models.weights.load import build_classifier
        from mats_ds.models.weights.native import save_weights
        from mats_ds.training.ema import WeightAverage
        from mats_ds.training.engine import full_parameters
        from mats_ds.training.losses import make_loss
        from mats_ds.training.optim import layer_scale, parameter_groups
        from mats_ds.training.run import start_run

    run = start_run(recipe, options, task="finetune")
    ranks, folder, section = run.ranks, run.folder, recipe.evaluation
    manifest = run.check_inputs(lambda: open_videos(recipe.data))
    classes = resolve_classes(manifest, recipe.data.manifest, asked=recipe.finetune.num_classes)
    test_set = check_consistent(lambda: open_test_set(recipe, classes), ranks)
    num_trained_on = ask_first(lambda: check_unseen(test_set, manifest, recipe), ranks)
    sampler = ClipSampler(
        manifest,
        recipe_clip=recipe.clip,
        num_frames=recipe.candidate_grid().num_frames,
        global_batch=run.plan.global_batch,
        seed=recipe.run.seed,
        repeats=recipe.data.repeats,
        crop_areas=recipe.augment.random_resized_crop,
        rand_augment=recipe.augment.rand_augment_plan,
    )
    augment = Augmenter(recipe.augment, num_classes=classes.count, micro_batch=run.plan.micro_batch, repeats=recipe.data.repeats)

    torch.manual_seed(recipe.run.seed)
    model = build_classifier(recipe, num_classes=classes.count, class_names=classes.names)
    spec, decay = describe_model(model), recipe.finetune.ema_decay
    average = WeightAverage(model, decay=decay, device=ranks.device) if decay else None
    scale_of = partial(layer_scale, depth=len(model.encoder.blocks), layer_decay=recipe.finetune.layer_decay)
    engine = run.engine_for(model, parameter_groups(model, recipe.optim, lr_scale_of=scale_of))
    if average and run.first_step:
        average.load(run.resumed.state)
    tested = average.model if average else engine.module
    workload = Workload.from_finetuning(recipe, num_classes=classes.count)
    info = run.describe(workload, steps_per_epoch=sampler.steps_per_epoch, data_name=manifest.name)

    def extra_state() -> dict:
        return {SPEC_KEY: json.dumps(dump_spec(spec)), **(average.state() if average else {})}

    def keep_best(test: Evaluation) -> None:
        """Write the weights that were tested; rank 0 alone, but under ZeRO-3 every rank has a part
        of them."""
        with full_parameters(engine):
            if ranks.rank == 0:
                if lost := run.what_is_lost():  # what is there now is not to get our weights
                    raise FileNotFoundError(lost)
                note = f"chosen by its top-1 of {100 * test.top1:.2f}% on {test.measured_on}: no result on the same videos"
                origin = origin_of(recipe.model_dump(mode="json"), step=test.step, averaged=test.averaged, is_best=True)
                save_weights(folder / BEST_FILE, spec, tested.state_dict(), note=note, origin=origin)

    with ExitStack() as loaders:
        loader = loaders.enter_context(run.loader_for(sampler))
        info = dataclasses.replace(info, decoding=loader.decoding())
        if ranks.rank == 0:
            (folder / RESULT_FILE).unlink(missing_ok=True)  # of a run that now goes on
        videos, kinds = format_count(len(manifest), "video"), format_count(classes.count, "class")
        reading = f"{videos} of {manifest.name}, {kinds}; {loader.describe()}"
        run.announce(info, compute=describe_compute(workload, recipe), data=reading)
        watching = [average] if average else []
        if test_set is not None:
            test_loader = open_test_loader(test_set, recipe, ranks, micro_batch=run.plan.micro_batch)
            clips, crops = section.training_views
            watching.append(
                Evaluator(
                    engine,
                    tested,
                    batches=partial(read_pass, loaders.enter_context(test_loader)),
                    num_batches=test_loader.sampler.steps_per_epoch,
                    label_S=test_set.label_S,
                    ranks=ranks,
                    every_steps=max(1, round(section.every_epochs * sampler.steps_per_epoch)),
                    run_dir=folder,
                    keep_best=keep_best,
                    measured_on=test_set.name,
                    clips=clips,
                    crops=crops,
                    averaged=average is not None,
                )
            )
        loss_of = make_loss(augment, label_smoothing=recipe.finetune.label_smoothing)
        observers = run.observers(workload, *watching, num_pipelines=loader.num_graphs, extra_state=extra_state)
        run.fit(info, loss_of, loader.micro_batches(run.first_step), observers=observers, num_videos=len(manifest))
    if ranks.rank == 0:
        write_result(folder, recipe, num_trained_on=num_trained_on)
    logger.info("run folder: %s  (report: %s)", folder, own_command("report", folder))


def describe_compute(workload: Workload, recipe: FinetuneRecipe) -> str:
    """One line: GMACs of a clip beside those of all tokens."""
    part = workload.flops().forward_macs / 1e9
    full = workload.for_finetuning(keep_ratio=1.0, num_classes=workload.num_classes).flops().forward_macs / 1e9
    selection = recipe.selection
    return (
        f"forward GMACs per clip: {format_figure(part, 3)} with {format_part(selection.keep_ratio, 'tokens')} by "
        f"{selection.strategy}, "
        f"{format_figure(full, 3)} with all"
    )


if __name__ == "__main__":
    leave(main())
