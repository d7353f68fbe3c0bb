"""One training run on this rank: `start_run` reads, joins and chooses; a TrainingRun makes the
pieces and trains.

run = start_run(recipe, options, task="pretrain")
... videos, sampler, model ...
engine = run.engine_for(model, parameter_groups(model, recipe.optim))
info = run.describe(workload, sampler, data_name=manifest.name)
with run.loader_for(sampler) as loader:
    run.announce(info, compute=..., data=...)
    batches = loader.micro_batches(run.first_step)
    run.fit(info, loss_of, batches, num_videos=..., observers=run.observers(...))

(Over 300 lines: the pieces of a run are made in one order, which is seen in one file.)
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mats_ds.config.batch_plan import MICRO_BATCH_KEY, BatchPlan
from mats_ds.config.ds_config import notes_on, precision_of, read_ds_config, state_clipping, zero_stage_of
from mats_ds.config.load import dump_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.core.checkpoint_files import CHECKPOINTS
from mats_ds.core.clips import ClipBatch
from mats_ds.core.events import Observer, RunInfo
from mats_ds.core.format import format_all
from mats_ds.core.run_dir import collect_versions, read_run
from mats_ds.data.clip_sampler import ClipSampler
from mats_ds.data.loading.build import how_to_mend, name_data, open_loader
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.distributed.collectives import ask_first
from mats_ds.distributed.consistency import check_consistent, check_shared_folder
from mats_ds.distributed.exits import AlreadyFinished
from mats_ds.distributed.ranks import RankInfo, start_distributed
from mats_ds.metering.profiler import make_deep_dives
from mats_ds.metering.recorder import Recorder
from mats_ds.models.compiling import capture_passes
from mats_ds.planning.cpu_steps import CpuSteps
from mats_ds.planning.forecast import LoaderMemory
from mats_ds.planning.plan_observer import PlanRecorder
from mats_ds.planning.room import plan_batch_of_run
from mats_ds.planning.workload import Workload
from mats_ds.training.checkpoints.match import refuse_other_model
from mats_ds.training.checkpoints.resume import Resumed, ResumePoint, find_resume_point, resume
from mats_ds.training.checkpoints.saver import CheckpointSaver
from mats_ds.training.ds_outputs import check_outputs, name_outputs
from mats_ds.training.engine import choose_compiled, in_force, make_engine, optimizer_name, static_bytes
from mats_ds.training.loop import fit
from mats_ds.training.observers import Checkpointer, Console, Monitor
from mats_ds.training.optim import Schedule, make_schedule
from mats_ds.training.options import RunOptions
from mats_ds.training.run_folder import choose_run_folder, keep_run_folder, write_inputs

logger = logging.getLogger("mats_ds")

V = TypeVar("V")


def start_run(recipe: Recipe, options: RunOptions, *, task: str) -> TrainingRun:
    """Read the JSON, join the other ranks, choose batch and folder. Raises ValueError for what does
    not fit together.

    task: "pretrain" or "finetune", the name of the program.
    """
    ds_config = read_ds_config(options.ds_config)
    check_outputs(ds_config)
    for note in (*notes_on(ds_config), *name_outputs(ds_config)):
        logger.info("%s", note)
    ds_config = state_clipping(ds_config)
    ranks = start_distributed(timeout_seconds=recipe.run.hang_seconds)
    folder = choose_run_folder(options.out, ranks, recipe_name=recipe.name, task=task, resume=options.resume)
    check_shared_folder(folder, ranks)
    plan = plan_batch_of_run(recipe, ds_config, ranks, went_on=folder if options.resume else None)
    ds_config = {**ds_config, MICRO_BATCH_KEY: plan.micro_batch}  # written down, where the JSON left it out
    point = None
    if options.resume:
        settings = dict(global_batch=plan.global_batch, zero_stage=zero_stage_of(ds_config), precision=precision_of(ds_config))
        point = find_resume_point(folder / CHECKPOINTS, ranks, recipe=recipe, **settings)
    run = TrainingRun(task, recipe, options, ranks, plan, folder, ds_config, point)
    if point is not None and recipe.data.manifest is None:  # before the synthetic set is written
        # of a run of epochs, its last part knows how long they are; 0: nobody does
        length = 1 if recipe.optim.steps is not None else ask_first(partial(_recorded_epoch, folder), ranks)
        if length:
            run.count_steps(point.checkpoint.step, steps_per_epoch=length)
    return run


def _recorded_epoch(folder: Path) -> int:
    """Steps of an epoch as the run has recorded them; 0 where it has not."""
    try:
        return read_run(folder).info.steps_per_epoch
    except (ValueError, OSError):
        return 0


@dataclass
class TrainingRun:
    """A run that has its ranks, its batch and its folder; `engine_for` and `observers` add engine
    and recorder.

    point: the checkpoint to go on from, None from the first step.
    """

    task: str
    recipe: Recipe
    options: RunOptions
    ranks: RankInfo
    plan: BatchPlan
    folder: Path
    ds_config: Mapping[str, Any]
    point: ResumePoint | None
    engine: Any = field(default=None, init=False)
    compiled: str = field(default="", init=False)
    resumed: Resumed = field(default_factory=Resumed, init=False)
    recorder: Recorder | None = field(default=None, init=False)
    saver: CheckpointSaver = field(init=False)

    @property
    def first_step(self) -> int:
        """Steps that were done before."""
        return self.resumed.step

    def check_inputs(self, open_videos: Callable[[], V]) -> V:
        """The videos that `open_videos` returns, where all ranks have the same, and the same
        recipe, JSON and code."""
        return check_consistent(open_videos, self.ranks, recipe=self.recipe, ds_config=self.ds_config)

    def engine_for(self, model: nn.Module, groups: list[dict[str, Any]]) -> Any:
        """The DeepSpeed engine of a model and its parameter groups, loaded from the checkpoint to
        go on from."""
        is_converted = self.point is not None and self.point.is_converted
        if self.point is not None:
            refuse_other_model(self.point.checkpoint, self.point.stored, model, groups)
        self.compiled = choose_compiled(self.recipe.model.compile, self.ranks, zero_stage=zero_stage_of(self.ds_config))
        how = dict(compiled=bool(self.compiled), load_universal=is_converted)
        self.engine = make_engine(model, groups, self.ds_config, self.plan, **how)
        self.resumed = resume(self.engine, self.point, self.ranks)
        if self.compiled == "graphs":
            capture_passes(model, micro_batch=self.plan.micro_batch)
        return self.engine

    def loader_for(self, sampler: ClipSampler) -> ClipLoader:
        """The loader of this rank's micro-batches."""
        return open_loader(
            sampler,
            self.recipe,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            micro_batch=self.plan.micro_batch,
            accumulation=self.plan.accumulation,
            device=self.ranks.device,
        )

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """The recipe's learning rates for this run's batch."""
        scale = self.plan.learning_rate_scale
        return make_schedule(self.recipe.optim, steps_per_epoch=steps_per_epoch, learning_rate_scale=scale)

    def describe(self, workload: Workload, *, steps_per_epoch: int, data_name: str) -> RunInfo:
        """The facts of the run before its first step. Raises AlreadyFinished when all steps
        have been done before."""
        recipe, ranks, schedule = self.recipe, self.ranks, self.schedule(steps_per_epoch)
        total_steps = self.count_steps(self.first_step, steps_per_epoch=steps_per_epoch)
        forced, flops, is_cuda = in_force(self.engine), workload.flops(), ranks.device.type == "cuda"
        parameters = self.engine.module.parameters()
        arguments = (argument for argument in sys.argv[1:] if "--local_rank" not in argument)
        return RunInfo(
            run_dir=str(self.folder),
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=str(ranks.device),
            device_name=torch.cuda.get_device_name(ranks.device) if is_cuda else "CPU",
            recipe_name=recipe.name,
            model_name=recipe.model.name,
            num_parameters=sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters),
            precision=forced.precision,
            zero_stage=forced.zero_stage,
            micro_batch=forced.micro_batch,
            accumulation=forced.accumulation,
            global_batch=self.plan.global_batch,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            first_step=self.first_step,
            learning_rate=schedule.peak,
            num_tokens=workload.grid.num_tokens,
            kept=workload.visible + workload.targets,
            visible=workload.visible,
            targets=workload.targets,
            forward_macs_per_clip=flops.forward_macs,
            model_flops_per_clip=flops.training_flops,
            hardware_flops_per_clip=flops.hardware_flops,
            static_bytes=static_bytes(self.engine),
            versions=collect_versions(),
            data_name=data_name,
            command=shlex.join([f"mats_ds/{self.task}.py", *arguments]),
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            task=self.task,
            gradient_clipping=forced.gradient_clipping,
            optimizer=optimizer_name(self.engine),
            compiled=self.compiled,
        )

    def count_steps(self, done: int, *, steps_per_epoch: int) -> int:
        """The steps of the run in all. Raises AlreadyFinished when that many are `done`."""
        scheduled = self.schedule(steps_per_epoch).total_steps
        total = min(scheduled, self.recipe.run.max_steps or scheduled)
        if done >= total:
            length = self._name_length(done, scheduled, steps_per_epoch)
            raise AlreadyFinished(f"{self.folder} has finished {format_all(total, 'step')}: {length}, or use another --out")
        return total

    def _name_length(self, done: int, scheduled_steps: int, steps_per_epoch: int) -> str:
        """The recipe's keys to raise, and above what, for this run to go further than it is."""
        optim, max_steps = self.recipe.optim, self.recipe.run.max_steps
        raised = []
        if scheduled_steps <= done:
            by_epochs = optim.steps is None
            raised.append(f"optim.epochs above {done / steps_per_epoch:g}" if by_epochs else f"optim.steps above {done}")
        if max_steps is not None and max_steps <= done:
            raised.append(f"run.max_steps above {done}")
        return f"to go on, raise {' and '.join(raised)}"

    def announce(self, info: RunInfo, *, compute: str, data: str) -> None:
        """On rank 0, write recipe and JSON into the run folder and log what is about to happen, in
        six lines."""
        if info.rank != 0:
            return
        write_inputs(self.folder, recipe=dump_recipe(self.recipe), ds_config=self.ds_config)
        logger.info(
            "model: %s, %.1f M parameters, %s, ZeRO-%d on %d x %s",
            info.model_name, info.num_parameters / 1e6, info.precision, info.zero_stage, info.world_size, info.device_name,
        )  # fmt: skip
        clipped = f"clipped at a norm of {info.gradient_clipping:g}" if info.gradient_clipping else "not clipped"
        logger.info("optimizer: %s, gradients are %s", info.optimizer, clipped)
        logger.info("%s", compute)
        logger.info("data: %s", data)
        logger.info("batch: %s", self.plan.note)
        end = f" (of {info.total_steps:,})" if info.first_step else ""
        logger.info(
            "steps: %s to %s%s, %s an epoch; peak learning rate %.3g; run folder %s",
            f"{info.first_step + 1:,}", f"{info.total_steps:,}", end, f"{info.steps_per_epoch:,}", info.learning_rate,
            info.run_dir,
        )  # fmt: skip

    def observers(
        self, workload: Workload, *others: Observer, num_pipelines: int, extra_state: Callable[[], Mapping[str, Any]]
    ) -> list[Observer]:
        """All that watch the run, in their order: what measures it first, then `others`, and the
        checkpoints last.

        others: those of the task, whose state `extra_state` puts into the checkpoints.
        num_pipelines: the loader's.
        """
        recipe, options, device = self.recipe, self.options, self.ranks.device
        self.recorder, self.saver = Recorder(self.folder, device), self.make_saver()
        memory = LoaderMemory(prefetch=recipe.data.prefetch, num_pipelines=num_pipelines)
        deep_dives = dict(trace=options.trace, memory_snapshot=options.memory_snapshot, num_steps=options.trace_steps)
        shown = dict(memory_bytes=self.recorder.memory)
        saved = dict(extra=extra_state, what_is_lost=self.what_is_lost)
        return [
            self.recorder,
            PlanRecorder(workload, self.ds_config, self.engine.module, memory, measures=not self.compiled),
            *make_deep_dives(self.folder, device, **deep_dives),
            CpuSteps(workload, data=name_data(recipe.data)),
            Console(log_steps=recipe.run.log_steps, **shown),
            Monitor(self.engine, every_steps=recipe.run.log_steps, **shown),
            *others,
            Checkpointer(self.saver, every_steps=recipe.run.checkpoint_steps, **saved),
        ]

    def make_saver(self) -> CheckpointSaver:
        """The saver of the engine; it keeps as many checkpoints as the recipe says."""
        return CheckpointSaver(
            self.engine,
            self.folder / CHECKPOINTS,
            self.ranks,
            recipe=dump_recipe(self.recipe),
            global_batch=self.plan.global_batch,
            keep=self.recipe.run.keep_checkpoints,
            keep_every_steps=self.recipe.run.keep_every_steps,
            resumed_from=None if self.point is None else self.point.checkpoint.tag,
        )

    def what_is_lost(self) -> str | None:
        """The reason that nothing written into the run folder is kept any more; None while it
        is."""
        return None if self.recorder is None else self.recorder.what_is_lost()

    def fit(
        self,
        info: RunInfo,
        loss_of: Callable[[Any, ClipBatch], torch.Tensor],
        batches: Iterator[ClipBatch],
        *,
        observers: Sequence[Observer],
        num_videos: int,
    ) -> None:
        """Train to the last step. loss_of(engine, batch): the loss of a micro-batch. batches:
        endless, from the first step on."""

        def begun() -> Iterator[ClipBatch]:
            keep_run_folder(self.folder)
            yield from batches

        fit(
            self.engine,
            begun(),
            run=info,
            learning_rate=self.schedule(info.steps_per_epoch).learning_rate,
            loss_of=loss_of,
            observers=observers,
            num_videos=num_videos,
            max_bad_fraction=self.recipe.data.max_bad_fraction,
            hang_seconds=self.recipe.run.hang_seconds,
            what_is_lost=self.what_is_lost,
            finish_saves=self.saver.finish,
            mending=how_to_mend(self.recipe.data),
        )
