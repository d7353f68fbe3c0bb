"""Go on from a checkpoint, on the same number of ranks or another one.

ZeRO shards master weights and moments over the ranks. On another number of ranks, DeepSpeed's
converter first writes them unsharded, a file a parameter, beside the checkpoint (as much disk
again, for the time of the start), and every rank reads its part.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from mats_ds.config.recipe import Recipe
from mats_ds.core.checkpoint_files import CHECKPOINTS
from mats_ds.core.format import format_count
from mats_ds.distributed.collectives import Ranks, ask_first
from mats_ds.training.checkpoints.checkpoint import Checkpoint, find_checkpoint
from mats_ds.training.checkpoints.converted import make_converted, remove_converted, remove_left_converted
from mats_ds.training.checkpoints.match import Stored, advise_recipe, read_stored, refuse_other_recipe
from mats_ds.training.checkpoints.removal import remove_unfinished
from mats_ds.training.checkpoints.state_files import (
    MALFORMED,
    SHOWN,
    check_state_files,
    describe_other_owners,
    name_user,
    without_code,
)

logger = logging.getLogger(__name__)

REASON_CHARACTERS = 300
MISMATCH_TEXTS = ("state_dict", "full param numel")
GROUP_SETTINGS = ("lr_scale", "weight_decay", "betas", "eps")


@dataclass(frozen=True)
class Resumed:
    """The point from which a run goes on: `step` steps are finished, `state` is what was stored
    beside the engine."""

    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResumePoint:
    """A complete checkpoint to go on from. `converted`: the folder that holds it re-sharded; the
    engine must then be made with `load_universal`. `stored`: what its files say of the run that
    saved it."""

    checkpoint: Checkpoint
    converted: Path | None = None
    stored: Stored = field(default=Stored())

    @property
    def is_converted(self) -> bool:
        return self.converted is not None


def find_resume_point(
    folder: Path,
    ranks: Ranks,
    *,
    global_batch: int,
    zero_stage: int,
    recipe: Recipe | None = None,
    precision: str = "fp32",
) -> ResumePoint | None:
    """The newest complete checkpoint below `folder`, converted where another number of ranks saved
    it; None if there is none yet.

    recipe, precision: of this start, to be compared with those of the checkpoint (no recipe: they
    are not). Called by all ranks: rank 0 looks and converts. Raises ValueError on all of them for
    another model, ZeRO stage or global batch, and when all checkpoints are damaged.
    """

    def find() -> ResumePoint | None:
        remove_unfinished(folder)
        remove_left_converted(folder)
        checkpoint = find_checkpoint(folder)
        if checkpoint is None:
            logger.warning("no checkpoint in %s yet: starting from the first step", folder)
            return None
        stored = read_stored(check_state_files(checkpoint.path))
        if recipe is not None:
            refuse_other_recipe(checkpoint, stored, recipe, precision=precision)
        check_fit(checkpoint, world_size=ranks.world_size, global_batch=global_batch, zero_stage=zero_stage)
        warn_of_other_owners(checkpoint)
        average = "; the average of the weights goes on, too" if stored.has_average else ""
        logger.info("going on from step %s: weights and optimizer of %s%s", f"{checkpoint.step:,}", checkpoint.path, average)
        if checkpoint.world_size == ranks.world_size or zero_stage == 0:
            return ResumePoint(checkpoint, stored=stored)
        text = "step %s was saved by %s, this run has %d: re-sharding the optimizer state"
        logger.info(text, f"{checkpoint.step:,}", format_count(checkpoint.world_size, "rank"), ranks.world_size)
        return ResumePoint(checkpoint, convert(checkpoint), stored)

    return ask_first(find, ranks)


def check_fit(checkpoint: Checkpoint, *, world_size: int, global_batch: int, zero_stage: int) -> None:
    """Raises ValueError where a run of these settings would not go on as the one that saved."""
    if checkpoint.zero_stage is not None and checkpoint.zero_stage != zero_stage:
        raise ValueError(
            f"{checkpoint.path} was saved under ZeRO stage {checkpoint.zero_stage} and the DeepSpeed JSON says {zero_stage}: "
            f'go on with "stage": {checkpoint.zero_stage} in its "zero_optimization"'
        )
    if checkpoint.global_batch is not None and checkpoint.global_batch != global_batch:
        raise ValueError(
            f"{checkpoint.path} was trained with {format_count(checkpoint.global_batch, 'clip')} a step and "
            f"{format_count(world_size, 'rank')} would make {global_batch:,}: "
            f"go on with optim.global_batch={checkpoint.global_batch}, on a number of GPUs that divides it into micro-batches "
            f'("train_micro_batch_size_per_gpu" in the DeepSpeed JSON may have to be lower)'
        )


def warn_of_other_owners(checkpoint: Checkpoint) -> None:
    """Log who owns the run, where not all of it is this user's."""
    owners = describe_other_owners([checkpoint.folder.parent, checkpoint.folder, checkpoint.path, *checkpoint.path.iterdir()])
    if owners is not None:
        logger.warning(
            "%s was made by %s, and this is %s: go on only with runs of people you trust, with no run of others as root",
            checkpoint.path, owners, name_user(os.getuid()),
        )  # fmt: skip


def convert(checkpoint: Checkpoint) -> Path:
    """Write the checkpoint's optimizer state unsharded into a new folder beside it; returns that
    folder.

    Raises ValueError where the disk has no room, and for a checkpoint that DeepSpeed cannot
    convert.
    """
    from deepspeed.checkpoint import ds_to_universal

    converted = make_converted(checkpoint.folder)
    target = converted / checkpoint.tag
    try:
        target.mkdir()
        with contextlib.ExitStack() as around:
            literal = around.enter_context(name_without_patterns(checkpoint.folder))
            settings = SimpleNamespace(
                input_folder=str(literal / checkpoint.tag),
                output_folder=str(literal / target.relative_to(checkpoint.folder)),
                # in this process: a fork of one that has joined a process group may hang
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=False,
            )
            nowhere = around.enter_context(open(os.devnull, "w"))
            for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                around.enter_context(redirect(nowhere))
            around.enter_context(without_code())
            ds_to_universal.main(settings)
    except MALFORMED as error:
        remove_converted(converted)
        raise ValueError(_describe_malformed(checkpoint, error)) from None
    except Exception as error:  # what another program has saved makes DeepSpeed's converter fail in any way
        remove_converted(converted)
        reason = (str(error).splitlines() or [""])[0][:REASON_CHARACTERS]
        raise ValueError(
            f"{checkpoint.path} could not be re-sharded: {type(error).__name__}: {reason}; it needs about its own size on that "
            f"disk for a moment; or resume with --num_gpus {checkpoint.world_size}"
        ) from None
    return converted


def resume(engine: Any, point: ResumePoint | None, ranks: Ranks) -> Resumed:
    """Load it into the engine; called by all ranks. None: a fresh start. The settings of the
    parameter groups (weight decay, betas) stay the recipe's, and clipping the JSON's. Raises
    ValueError for a checkpoint of another model or step.
    """
    if point is None:
        return Resumed()
    folder = point.converted or point.checkpoint.folder
    settings = [{key: group[key] for key in GROUP_SETTINGS if key in group} for group in engine.optimizer.param_groups]
    try:
        with name_without_patterns(folder) as literal, without_code(), _keep_clipping(engine.optimizer):
            path, state = engine.load_checkpoint(str(literal), tag=point.checkpoint.tag)
    except (RuntimeError, *MALFORMED) as error:  # torch's loader, DeepSpeed's universal one
        if not any(text in str(error) for text in MISMATCH_TEXTS):
            if not isinstance(error, MALFORMED):
                raise
            raise ValueError(_describe_malformed(point.checkpoint, error)) from error
        # what refuse_other_model could not see
        first = " ".join(str(error).split())[:SHOWN]
        raise ValueError(
            f"{point.checkpoint.path} is of another model than the recipe's: {first} ...: {advise_recipe(point.checkpoint)}"
        ) from None
    if path is None:
        raise ValueError(f"DeepSpeed could not load {point.checkpoint.path}: start with another --out, or remove it")
    if (held := state.get("step")) != point.checkpoint.step:
        raise ValueError(
            f"{point.checkpoint.path} holds another step than it says, {held!r:.40}: start with another --out, or remove it"
        )
    # Where it converts ZeRO-3, DeepSpeed 0.19 gives every group the settings of the first one, and
    # all of them one step counter.
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    if point.is_converted:
        _separate_counters(engine.optimizer.state)
    dist.barrier()
    if point.converted and ranks.rank == 0:
        remove_converted(point.converted)
    return Resumed(point.checkpoint.step, state)


@contextlib.contextmanager
def name_without_patterns(folder: Path) -> Iterator[Path]:
    """A name of the folder that means the same as a pattern: DeepSpeed 0.19 looks for its files
    with `glob.glob(FOLDER/...)`, and finds none below a folder such as `try [1]`."""
    if glob.escape(os.fspath(folder)) == os.fspath(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as folder_of_link:
        link = Path(folder_of_link, CHECKPOINTS)
        link.symlink_to(os.path.abspath(folder))
        yield link


@contextlib.contextmanager
def _keep_clipping(optimizer: Any) -> Iterator[None]:
    """ZeRO's clipping as it is: DeepSpeed 0.19 would go on with the checkpoint's, or refuse it
    where it computes no norm."""
    own = {name: getattr(optimizer, name) for name in ("clip_grad", "compute_grad_norm") if hasattr(optimizer, name)}
    if "compute_grad_norm" in own:
        optimizer.compute_grad_norm = True
    try:
        yield
    finally:
        vars(optimizer).update(own)


def _describe_malformed(checkpoint: Checkpoint, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:SHOWN]
    return f"{checkpoint.path} is not as DeepSpeed writes checkpoints: {type(error).__name__}: {reason}"


def _separate_counters(states: Mapping[Any, dict[str, Any]]) -> None:
    for state in states.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
