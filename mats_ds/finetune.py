"""Fine-tune a video classifier with motion-aware token selection: recipe + DeepSpeed JSON (+ weights) -> a run folder.

    deepspeed --num_gpus 8 mats_ds/finetune.py --recipe FILE --ds_config ds_configs/zero2_finetune.json finetune.weights=RUN

Reads top to bottom: settle the recipe, join the other ranks, open the videos, build model and engine, train and test.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import dump_recipe, load_recipe
from mats_ds.core.cli import ArgumentParser
from mats_ds.core.storage.files import write_json
from mats_ds.core.terminal import run_program
from mats_ds.core.text import quote_word
from mats_ds.core.token_grid import TokenCounts, count_tokens
from mats_ds.data.augment.augmenter import Augmenter
from mats_ds.data.classes import Classes, check_test_set, resolve_classes
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.data.loading.build import open_loader, open_videos, read_pass
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.shared_videos import refuse_shared
from mats_ds.data.view_sampler import ViewSampler, fit_micro_batch
from mats_ds.distributed.consistency import check_consistent
from mats_ds.evaluation.validation import Evaluation, Evaluator, read_evaluations
from mats_ds.metering.profiler import add_deep_dive_options, make_deep_dives
from mats_ds.metering.recorder import Recorder
from mats_ds.metering.run_result import RESULT_FILE, conclude
from mats_ds.models.model_spec import describe_model, dump_spec
from mats_ds.models.weights.load import build_classifier
from mats_ds.models.weights.native import save_weights
from mats_ds.models.weights.origin import BEST_FILE, origin_of
from mats_ds.planning.flops import StepFlops, step_flops
from mats_ds.planning.forecast import LoaderMemory
from mats_ds.planning.plan_observer import PlanRecorder
from mats_ds.planning.workload import Workload
from mats_ds.training.checkpoints.resume import ask_first, resume
from mats_ds.training.ema import WeightAverage
from mats_ds.training.engine import full_parameters, make_engine
from mats_ds.training.loop import fit
from mats_ds.training.losses import make_loss
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import layer_scale, make_schedule, parameter_groups
from mats_ds.training.run_folder import write_inputs
from mats_ds.training.run_info import announce, describe_run
from mats_ds.training.start import RunStart, add_run_options, leave, make_saver, run_command, start_run

logger = logging.getLogger("mats_ds")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Fine-tune a video classifier with motion-aware token selection, from pre-trained weights or from scratch.",
        epilog="Example: deepspeed --num_gpus 8 mats_ds/finetune.py --recipe finetune_ucf101 --ds_config "
        "ds_configs/zero2_finetune.json finetune.weights=runs/ucf101 data.manifest=train.csv evaluation.manifest=val.csv. "
        "The weights are a run or checkpoint of ours, a .safetensors or .pth file (VideoMAE, EVEREST), or a Hugging Face folder. "
        "The run folder gets evaluation.jsonl, result.json (the accuracy of the last weights) and best.safetensors (the weights "
        "with the best top-1, chosen on evaluation.manifest).",
    )
    add_run_options(parser, default_recipe=None)
    add_deep_dive_options(parser)
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status, as `run_command` has them."""
    options = parse_arguments(arguments)
    return run_command(lambda: finetune(load_recipe(options.recipe, options.overrides, schema=FinetuneRecipe), options))


def finetune(recipe: FinetuneRecipe, options: argparse.Namespace) -> None:
    """One run on this rank, from the weights to the last test."""
    start = start_run(recipe, options, task="finetune")
    place, plan, folder = start.place, start.plan, start.folder
    manifest = check_consistent(lambda: open_videos(recipe.data), recipe=recipe, ds_config=start.ds_config)
    classes = resolve_classes(manifest, recipe.data.manifest, asked=recipe.finetune.num_classes)
    test_set = check_consistent(lambda: open_test_set(recipe, classes))
    num_trained_on = ask_first(lambda: check_unseen(test_set, manifest, recipe))
    sampler = ClipSampler(
        manifest,
        recipe_clip=recipe.clip,
        num_frames=recipe.candidate_grid().num_frames,
        global_batch=plan.global_batch,
        seed=recipe.run.seed,
        repeats=recipe.data.repeats,
        crop_areas=recipe.augment.random_resized_crop,
        rand_augment=recipe.augment.rand_augment_plan,
    )
    augment = Augmenter(recipe.augment, num_classes=classes.count, micro_batch=plan.micro_batch, repeats=recipe.data.repeats)
    schedule = make_schedule(recipe.optim, steps_per_epoch=sampler.steps_per_epoch, learning_rate_scale=plan.learning_rate_scale)

    torch.manual_seed(recipe.run.seed)
    model = build_classifier(recipe, num_classes=classes.count, class_names=classes.names)
    spec = describe_model(model)
    decay = recipe.finetune.ema_decay
    average = WeightAverage(model, decay=decay, device=place.device) if decay else None
    scale_of = partial(layer_scale, depth=len(model.encoder.blocks), layer_decay=recipe.finetune.layer_decay)
    groups = parameter_groups(model, recipe.optim, lr_scale_of=scale_of)
    engine = make_engine(
        model,
        groups,
        start.ds_config,
        plan,
        compile_model=recipe.model.compile,
        load_universal=start.load_universal,
    )
    resumed = resume(engine, start.point)
    saver = make_saver(engine, recipe, start)
    if average:
        average.engine = engine
        if resumed.step:
            average.load(resumed.state)

    flops = recipe_flops(recipe, classes)
    kept = count_tokens(recipe.selection.keep_ratio, recipe.clip.grid().num_tokens)
    run = describe_run(
        recipe,
        start,
        engine=engine,
        schedule=schedule,
        steps_per_epoch=sampler.steps_per_epoch,
        first_step=resumed.step,
        counts=TokenCounts(visible=kept, targets=0),
        flops=flops,
        data_name=manifest.name,
    )

    def extra_state() -> dict:
        return {"model_spec": json.dumps(dump_spec(spec)), **(average.state() if average else {})}

    def keep_best(found: Evaluation) -> None:
        """Write the weights that were tested; rank 0 alone, but under ZeRO-3 every rank has a part of them."""
        with full_parameters(engine):
            if place.rank == 0:
                if lost := recorder.what_is_lost():  # what is there now is not to get our weights
                    raise FileNotFoundError(lost)
                tested = average.model if average else engine.module
                note = f"chosen by its top-1 of {100 * found.top1:.2f}% on {found.measured_on}: no result on the same videos"
                origin = origin_of(recipe.model_dump(mode="json"), step=found.step, averaged=found.averaged, is_best=True)
                save_weights(folder / BEST_FILE, spec, tested.state_dict(), note=note, origin=origin)

    with ExitStack() as loaders:
        loader = loaders.enter_context(
            open_loader(
                sampler,
                recipe,
                rank=place.rank,
                world_size=place.world_size,
                micro_batch=plan.micro_batch,
                accumulation=plan.accumulation,
                device=place.device,
            )
        )
        if place.rank == 0:
            (folder / RESULT_FILE).unlink(missing_ok=True)  # of a run that now goes on
            write_inputs(folder, recipe=dump_recipe(recipe), ds_config=start.ds_config)
            reading = f"{len(manifest)} videos of {manifest.name}, {classes.count} classes; {loader.describe()}"
            announce(run, compute=describe_compute(recipe, classes), data=reading, batch=plan.note)
        recorder = Recorder(folder, place.device)
        feed = LoaderMemory(prefetch=recipe.data.prefetch, num_pipelines=loader.num_graphs)
        planned = Workload.from_finetuning(recipe, num_classes=classes.count)
        watch = PlanRecorder(planned, start.ds_config, engine.module, feed, measures=not recipe.model.compile)
        observers = [
            recorder,
            watch,
            *make_deep_dives(options, folder, place.device),
            Console(log_steps=recipe.run.log_steps, memory_bytes=recorder.memory),
            Monitor(engine, every_steps=recipe.run.log_steps, memory_bytes=recorder.memory),
        ]
        if average:
            observers.append(average)
        if test_set is not None:
            clips, crops = recipe.evaluation.training_views
            test_loader = loaders.enter_context(open_test_loader(test_set, recipe, start))
            observers.append(
                Evaluator(
                    engine,
                    average.model if average else engine.module,
                    batches=partial(read_pass, test_loader),
                    num_batches=test_loader.sampler.steps_per_epoch,
                    label_S=test_set.label_S,
                    ranks=place,
                    every_steps=max(1, round(recipe.evaluation.every_epochs * sampler.steps_per_epoch)),
                    run_dir=folder,
                    keep_best=keep_best,
                    measured_on=test_set.name,
                    clips=clips,
                    crops=crops,
                    averaged=average is not None,
                )
            )
        observers.append(
            Checkpointer(saver, every_steps=recipe.run.checkpoint_steps, extra=extra_state, what_is_lost=recorder.what_is_lost)
        )
        fit(
            engine,
            loader.micro_batches(resumed.step),
            run=run,
            learning_rate=schedule.learning_rate,
            loss_of=make_loss(augment, label_smoothing=recipe.finetune.label_smoothing),
            observers=observers,
            num_videos=len(manifest),
            max_bad_fraction=recipe.data.max_bad_fraction,
            hang_seconds=recipe.run.hang_seconds,
            what_is_lost=recorder.what_is_lost,
        )
    if place.rank == 0:
        tell_result(folder, recipe, num_trained_on=num_trained_on)
    logger.info("run folder: %s  (report: python profiling/report.py %s)", folder, quote_word(folder))


def open_test_set(recipe: FinetuneRecipe, classes: Classes) -> Manifest | None:
    """The videos that the run is tested on; None, with a word, where the recipe names none. Raises ValueError for labels that are
    none of the classes, or others.
    """
    section = recipe.evaluation
    if section.manifest is None:
        logger.info("test: no evaluation.manifest given, so nothing is tested, there is no result and no best weights are kept")
        return None
    manifest = read_manifest(section.manifest, root=section.root or recipe.data.root)
    check_test_set(manifest, section.manifest, classes)
    return manifest


def check_unseen(test_set: Manifest | None, manifest: Manifest, recipe: FinetuneRecipe) -> int:
    """How many videos of the test are trained on as well. Raises ValueError for them unless the recipe allows it."""
    if test_set is None:
        return 0
    section, (clips, crops) = recipe.evaluation, recipe.evaluation.training_views
    what = "the average of the weights" if recipe.finetune.ema_decay else "the weights"
    videos = f"{len(test_set)} videos of {test_set.name}, {clips} x {crops} views each"
    logger.info("test: %s on %s, every %g epochs; the best is kept, the last is the result", what, videos, section.every_epochs)
    return refuse_shared(test_set, manifest, allowed=section.allow_overlap, fix="set evaluation.allow_overlap=true")


def tell_result(folder: Path, recipe: FinetuneRecipe, *, num_trained_on: int) -> None:
    """The accuracy of the last weights on the console and in result.json, and how to test as the recipe says."""
    tests = [asdict(test) for test in read_evaluations(folder)]
    if not (result := conclude(tests, num_trained_on=num_trained_on, best_file=BEST_FILE)):
        return
    write_json(folder / RESULT_FILE, result.as_json(), durable=True, indent=2)
    for line in result.describe():
        logger.info("%s", line)
    test = recipe.evaluation
    views = test.clips or 1, test.crops or 1
    if (test.clips or test.crops) and test.training_views != views:
        command = f"mats_ds/evaluate.py --model {quote_word(folder)} --manifest {quote_word(test.manifest)}"
        logger.info("on %d x %d views, as the recipe tests: python %s", *views, command)


def open_test_loader(manifest: Manifest, recipe: FinetuneRecipe, start: RunStart):
    """The views of the test, in micro-batches of the training's size or a little less, so that few passes decode a video."""
    (clips, crops), place = recipe.evaluation.training_views, start.place
    micro_batch = fit_micro_batch(clips * crops, at_most=start.plan.micro_batch)
    sampler = ViewSampler(
        manifest,
        recipe_clip=recipe.clip,
        num_clips=clips,
        num_crops=crops,
        micro_batch=micro_batch,
        world_size=place.world_size,
        num_frames=recipe.candidate_grid().num_frames,
        seed=recipe.run.seed,
    )
    split = dict(rank=place.rank, world_size=place.world_size, micro_batch=micro_batch, accumulation=1)
    return open_loader(sampler, recipe, **split, device=place.device)


def recipe_flops(recipe: FinetuneRecipe, classes: Classes, *, keep_ratio: float | None = None) -> StepFlops:
    """One training clip, with the recipe's share of the tokens or another."""
    selection, model = recipe.selection, recipe.model
    return step_flops(
        model.name,
        recipe.clip.grid(),
        selection.keep_ratio if keep_ratio is None else keep_ratio,
        task="finetune",
        strategy=selection.strategy,
        feature=selection.feature,
        recompute=model.recompute,
        checkpoint_blocks=model.checkpoint_blocks,
        candidate_grid=recipe.candidate_grid(),
        num_classes=classes.count,
        merge_dropped=selection.merge_dropped,
    )


def describe_compute(recipe: FinetuneRecipe, classes: Classes) -> str:
    """One line: GMACs of a clip beside those of all tokens."""
    part, whole = (recipe_flops(recipe, classes, keep_ratio=ratio).forward_macs / 1e9 for ratio in (None, 1.0))
    keep = recipe.selection.keep_ratio
    return f"forward GMACs per clip: {part:.3g} with {keep:g} of the tokens by {recipe.selection.strategy}, {whole:.3g} with all"


if __name__ == "__main__":
    leave(run_program(main))
