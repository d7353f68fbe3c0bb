"""Go on from a checkpoint, on the same number of ranks or another one.

ZeRO divides master weights and moments by the number of ranks. On another number, DeepSpeed's converter first writes them
whole, a file a parameter, beside the checkpoint (as much disk again, for the time of the start), and every rank reads its part.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mats_ds.core.text import Lines
from mats_ds.training.checkpoints.checkpoint import Found, find_checkpoint
from mats_ds.training.checkpoints.converted import make_converted, remove_converted, remove_left_converted
from mats_ds.training.checkpoints.removal import remove_unfinished
from mats_ds.training.checkpoints.state_files import (
    MALFORMED,
    SHOWN,
    check_state_files,
    describe_strangers,
    name_user,
    without_code,
)

logger = logging.getLogger(__name__)

NAMED_MISMATCHES = 2
REASON_CHARACTERS = 300
MISMATCH_WORDS = ("state_dict", "full param numel")
T = TypeVar("T")
GROUP_SETTINGS = ("lr_scale", "weight_decay", "betas", "eps")


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on: `step` steps are finished, `state` is what was stored beside the engine."""

    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResumePoint:
    """A whole checkpoint to go on from. `converted`: the folder that holds it divided anew; the engine must then be made with
    `load_universal`."""

    found: Found
    converted: Path | None = None

    @property
    def is_converted(self) -> bool:
        return self.converted is not None


def find_resume_point(folder: Path, *, world_size: int, global_batch: int, zero_stage: int) -> ResumePoint | None:
    """The newest whole checkpoint below `folder`, converted where another number of ranks saved it; None if there is none yet.

    Called by all ranks: rank 0 looks and converts. Raises ValueError on all of them for another ZeRO stage or another global
    batch, and when all checkpoints are broken.
    """

    def find() -> ResumePoint | None:
        remove_unfinished(folder)
        remove_left_converted(folder)
        found = find_checkpoint(folder)
        if found is None:
            logger.warning("no checkpoint in %s yet: starting from the first step", folder)
            return None
        check_fit(found, world_size=world_size, global_batch=global_batch, zero_stage=zero_stage)
        warn_of_strangers(found)
        check_state_files(found.path)
        if found.world_size == world_size or zero_stage == 0:
            return ResumePoint(found)
        logger.info("step %d was saved by %d ranks, this run has %d: dividing it anew", found.step, found.world_size, world_size)
        return ResumePoint(found, convert(found))

    return ask_first(find)


def check_fit(found: Found, *, world_size: int, global_batch: int, zero_stage: int) -> None:
    """Raises ValueError where a run of these settings would not go on as the one that saved."""
    if found.zero_stage is not None and found.zero_stage != zero_stage:
        raise ValueError(
            f"{found.path} was saved under ZeRO stage {found.zero_stage} and the DeepSpeed JSON says {zero_stage}: "
            "resume with the stage that it was saved under"
        )
    if found.global_batch is not None and found.global_batch != global_batch:
        raise ValueError(
            f"{found.path} was trained with {found.global_batch} clips a step and {world_size} ranks make {global_batch}: "
            f"resume on a number of GPUs that divides {found.global_batch} into whole micro-batches, or lower "
            f'"train_micro_batch_size_per_gpu" in the DeepSpeed JSON'
        )


def warn_of_strangers(found: Found) -> None:
    """Say whose the run is, where not all of it is this user's."""
    strangers = describe_strangers([found.folder.parent, found.folder, found.path, *found.path.iterdir()])
    if strangers is not None:
        logger.warning(
            "%s was made by %s, and this is %s: go on only with runs of people you trust, with no run of others as root",
            found.path, strangers, name_user(os.getuid()),
        )  # fmt: skip


def convert(found: Found) -> Path:
    """Write the checkpoint's optimizer state whole, into a new folder beside it; returns that folder. Raises ValueError where the
    disk has no room, and for a checkpoint that DeepSpeed cannot convert.
    """
    from deepspeed.checkpoint import ds_to_universal

    converted = make_converted(found.folder)
    target = converted / found.tag
    try:
        target.mkdir()
        with contextlib.ExitStack() as around:
            literal = around.enter_context(name_without_patterns(found.folder))
            settings = argparse.Namespace(
                input_folder=str(literal / found.tag),
                output_folder=str(literal / target.relative_to(found.folder)),
                num_extract_workers=1,  # in this process: a fork of one that has joined a process group may hang
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
        raise ValueError(_describe_malformed(found, error)) from None
    except Exception as error:  # what another program has saved makes DeepSpeed's converter fail in any way
        remove_converted(converted)
        reason = (str(error).splitlines() or [""])[0][:REASON_CHARACTERS]
        raise ValueError(
            f"{found.path} could not be divided anew: {type(error).__name__}: {reason}; it needs about its own size on that disk "
            f"for a moment; or resume with --num_gpus {found.world_size}"
        ) from None
    return converted


def resume(engine: Any, point: ResumePoint | None) -> Resumed:
    """Load it into the engine; called by all ranks. None: a fresh start. The settings of the parameter groups (weight decay,
    betas) stay the recipe's. Raises ValueError for a checkpoint of another model or step.
    """
    if point is None:
        return Resumed()
    folder = point.converted or point.found.folder
    settings = [{key: group[key] for key in GROUP_SETTINGS if key in group} for group in engine.optimizer.param_groups]
    try:
        with name_without_patterns(folder) as literal, without_code():
            path, state = engine.load_checkpoint(str(literal), tag=point.found.tag)
    except (RuntimeError, *MALFORMED) as error:  # torch's loader, DeepSpeed's universal one
        if not any(words in str(error) for words in MISMATCH_WORDS):
            if not isinstance(error, MALFORMED):
                raise
            raise ValueError(_describe_malformed(point.found, error)) from error
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" and {len(lines) - NAMED_MISMATCHES} more" if len(lines) > NAMED_MISMATCHES else ""
        raise ValueError(
            Lines(
                f"{point.found.path} is of another model than the recipe's: {' '.join(lines[:NAMED_MISMATCHES])}{more}",
                "go on with the recipe that it was saved with (recipe.yaml in the run folder), or use another --out",
            )
        ) from None
    if path is None:
        raise ValueError(f"DeepSpeed could not load {point.found.path}")
    if (held := state.get("step")) != point.found.step:
        raise ValueError(
            f"{point.found.path} holds another step than it says, {held!r:.40}: start with another --out, or remove it"
        )
    # Where it converts ZeRO-3, DeepSpeed 0.19 gives every group the settings of the first one, and all of them one step counter.
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    if point.is_converted:
        _separate_counters(engine.optimizer.state)
    dist.barrier()
    if point.converted and dist.get_rank() == 0:
        remove_converted(point.converted)
    return Resumed(point.found.step, state)


@contextlib.contextmanager
def name_without_patterns(folder: Path) -> Iterator[Path]:
    """A name of the folder that means the same as a pattern: DeepSpeed 0.19 looks for its files with `glob.glob(FOLDER/...)`, and
    finds none below a folder such as `try [1]`."""
    if glob.escape(os.fspath(folder)) == os.fspath(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place, "checkpoints")
        link.symlink_to(os.path.abspath(folder))
        yield link


def _describe_malformed(found: Found, error: Exception) -> str:
    words = (str(error).splitlines() or [""])[0][:SHOWN]
    return f"{found.path} is not as DeepSpeed writes checkpoints: {type(error).__name__}: {words}"


def _separate_counters(states: Mapping[Any, dict[str, Any]]) -> None:
    for state in states.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def ask_first(find: Callable[[], T]) -> T:
    """Rank 0's answer on every rank, or its ValueError or OSError; called by all ranks."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [find()]
        except (ValueError, OSError) as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], (ValueError, OSError)):
        raise answer[0]
    return answer[0]
