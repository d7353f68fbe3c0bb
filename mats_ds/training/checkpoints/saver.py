"""Save an engine while it trains on: copied to the host at once, written by a thread, published
when all ranks are done.

DeepSpeed decides what is saved; its writer is replaced by one that copies, queues and never raises
in between collectives: a disk that fills up on one rank would otherwise leave the others waiting.
Every method that all ranks call ends in the same way on all of them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mats_ds.core.checkpoint_files import FileSum, name_of_step
from mats_ds.core.format import format_bytes, format_count
from mats_ds.core.run_dir import describe_standing
from mats_ds.distributed.collectives import ask_first, gather_on_all
from mats_ds.distributed.exits import TrainingStopped
from mats_ds.distributed.ranks import RankInfo
from mats_ds.training.checkpoints.checkpoint import seal
from mats_ds.training.checkpoints.pruning import CheckpointFolder, check_names, free_bytes
from mats_ds.training.checkpoints.removal import new_part_name, remove_part

logger = logging.getLogger(__name__)

SMALL_FILES_BYTES = 1 << 20  # what a checkpoint holds beside tensors, at most
BYTES_OF_STATE = 12  # float32 master weight and two moments
FILES_OF_RANK = 2  # weights and optimizer
FILES_BESIDE = 5  # complete.json and `latest`, each written aside first, and the folder
# What DeepSpeed's converter to world-size-independent checkpoints asks for.
UNIVERSAL_INFO = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")
T = TypeVar("T")


@dataclass
class CheckpointSaver:
    """Saves one engine into `folder` (checkpoints/); one save at a time is on its way.

    recipe: the resolved recipe as YAML, stored inside. The last `keep` checkpoints stay, those at
    multiples of `keep_every_steps`, and the one named `resumed_from`.
    """

    engine: Any
    folder: Path
    ranks: RankInfo
    recipe: str
    global_batch: int
    keep: int
    keep_every_steps: int = 0
    resumed_from: str | None = None
    _pending: _Pending | None = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"), init=False)

    def __post_init__(self) -> None:
        protected = frozenset() if self.resumed_from is None else frozenset([self.resumed_from])
        self._on_disk = CheckpointFolder(self.folder, self.keep, self.keep_every_steps, protected)

    def check_room(self, extra: Mapping[str, Any]) -> None:
        """Before the first step; called by all ranks. Raises TrainingStopped where the folder
        cannot be written to or has no room for one checkpoint; rank 0 warns where it has none for
        all that are to stay.
        """
        num_bytes = checkpoint_bytes(self.engine, extra)
        self._make_room(num_bytes)
        if self.ranks.rank == 0:
            missing = self.keep + 1 - self._on_disk.count()
            free = free_bytes(self.folder)
            if free < missing * num_bytes:
                logger.warning(
                    "%s has %s free, and run.keep_checkpoints=%d wants up to %s of %s more: older go",
                    self.folder, format_bytes(free), self.keep, format_count(missing, "checkpoint"), format_bytes(num_bytes),
                )  # fmt: skip

    def begin(self, step: int, extra: Mapping[str, Any]) -> None:
        """Copy the state after `step` finished steps and start to write it; called by all ranks.

        `extra` is stored beside the engine. Raises TrainingStopped when there is no room for it,
        and what `finish` raises for the save before.
        """
        self.finish()
        tag = name_of_step(step)
        self._make_room(checkpoint_bytes(self.engine, extra), tag)
        part = self._on_first(lambda: _make_part(self.folder, tag), f"no folder for the checkpoint of step {step:,}")
        state = {"step": step, "world_size": self.ranks.world_size, "recipe": self.recipe, **UNIVERSAL_INFO, **extra}
        writer = _BackgroundWriter(self.engine.checkpoint_engine, part, self._thread)
        self.engine.checkpoint_engine = writer
        copy_scripts = self.engine._copy_recovery_script
        self.engine._copy_recovery_script = lambda folder: _copy_scripts(copy_scripts, Path(folder))
        try:
            self.engine.save_checkpoint(str(self.folder), tag=part.name, client_state=state, save_latest=False)
        finally:
            self.engine.checkpoint_engine = writer.plain
            del self.engine._copy_recovery_script
        self._pending = _Pending(step, tag, part, writer.files)

    def poll(self) -> None:
        """Publish the checkpoint that is on its way if every rank has written its part; called by
        all ranks, after any step."""
        if self._pending is None:
            return
        is_done = torch.tensor([float(all(file.done() for file in self._pending.files))], device=self.engine.device)
        dist.all_reduce(is_done, op=dist.ReduceOp.MIN)
        if is_done.item():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is on its way, if there is one, and publish it; called by
        all ranks.

        Raises TrainingStopped when a rank could not write its part; the checkpoints before it stay
        as they were.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        sums, problem = _collect(pending.files)
        parts = gather_on_all((sums, problem), self.ranks)
        problems = [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(parts) if problem]
        what = f"the checkpoint of step {pending.step:,} could not be written to {self.folder}"
        if problems:
            self._on_first(lambda: remove_part(pending.part), what)
            raise TrainingStopped(self._explain(what, "; ".join(problems)))
        known = [file_sum for sums, _ in parts for file_sum in sums]
        self._on_first(lambda: self._publish(pending, known), what)

    def _publish(self, pending: _Pending, known: list[FileSum]) -> None:
        facts = {"zero_stage": self.engine.zero_optimization_stage(), "global_batch": self.global_batch}
        seal(pending.part, step=pending.step, world_size=self.ranks.world_size, facts=facts, known=known)
        self._on_disk.publish(pending.part, pending.tag)

    def _make_room(self, num_bytes: int, tag: str | None = None) -> None:
        """Raises TrainingStopped on all ranks where the disk has no room, even if older checkpoints
        went."""

        def make() -> None:
            self.folder.mkdir(exist_ok=True)  # not a run folder that was taken away
            check_names(self.folder, FILES_OF_RANK * self.ranks.world_size + FILES_BESIDE)
            self._on_disk.make_room(num_bytes, replaced=tag)

        self._on_first(make, f"no room for a checkpoint in {self.folder}")

    def _on_first(self, work: Callable[[], T], what: str) -> T:
        """Rank 0 does it, and every rank gets what it returns, or raises TrainingStopped where it
        failed."""

        def attempt() -> T:
            try:
                return work()
            except (OSError, ValueError) as error:
                raise TrainingStopped(self._explain(what, str(error))) from error

        return ask_first(attempt, self.ranks)

    def _explain(self, what: str, why: str) -> str:
        return f"{what}: {why}; make room or mend the folder; {describe_standing(self.folder.parent)}"


@dataclass(frozen=True)
class _Pending:
    step: int
    tag: str
    part: Path
    files: list[Future[FileSum]]


class _BackgroundWriter:
    """Stands in for DeepSpeed's checkpoint engine during one save: copies what it is given and lets
    a thread write it."""

    def __init__(self, plain: Any, part: Path, thread: ThreadPoolExecutor) -> None:
        self.plain = plain
        self.files: list[Future[FileSum]] = []
        self._part = part
        self._thread = thread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def preserves_storage_sharing(self) -> bool:
        """No: every tensor gets memory of its own, so DeepSpeed need not copy before."""
        return False

    def save(self, state_dict: Any, path: str) -> None:
        file = Path(path)
        self.files.append(self._thread.submit(_write, _copy_to_host(state_dict), file, str(file.relative_to(self._part))))


class _HashingFile:
    """A file for torch.save that hashes what passes through."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.digest, self.num_bytes = stream, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.num_bytes += memoryview(data).nbytes
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()


def _write(state: Any, path: Path, name: str) -> FileSum:
    with path.open("wb") as stream:
        hashing = _HashingFile(stream)
        try:
            torch.save(state, hashing)
        except RuntimeError:  # torch's writer reports a position, and not that the disk is full
            if hashing.error is not None:
                raise hashing.error from None
            raise
        stream.flush()
        os.fsync(stream.fileno())
    return FileSum(name, hashing.num_bytes, hashing.digest.hexdigest())


def _copy_to_host(value: Any) -> Any:
    """Every tensor in host memory of its own, in the same containers."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return type(value)((key, _copy_to_host(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_copy_to_host(item) for item in value)
    return value


def _collect(files: list[Future[FileSum]]) -> tuple[list[FileSum], str | None]:
    """The sums of this rank's files once all are written, or why one could not be."""
    sums, problem = [], None
    for file in files:
        try:
            sums.append(file.result())
        except (OSError, RuntimeError) as error:
            problem = problem or str(error).splitlines()[0]
    return sums, problem


def _make_part(folder: Path, tag: str) -> Path:
    """A new folder for what is to become the checkpoint `tag`."""
    part = folder / new_part_name(tag)
    part.mkdir()
    return part


def _copy_scripts(copy: Callable[[str], None], folder: Path) -> None:
    """DeepSpeed's programs that merge a checkpoint, where none are yet: it would write through
    links of their names."""
    files = [folder / name for name in SCRIPTS]
    if any(os.path.lexists(file) for file in files):
        return
    try:
        copy(str(folder))
    except OSError:  # a full disk: writing the files that matter will fail, on all ranks alike
        for file in files:
            file.unlink(missing_ok=True)


def checkpoint_bytes(engine: Any, extra: Mapping[str, Any] | None = None) -> int:
    """Bytes that a checkpoint of this engine takes, over all ranks: weights, float32 master weights
    and moments."""
    parameters = list(engine.module.parameters())
    numbers = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)
    buffers = sum(buffer.nbytes for buffer in engine.module.buffers())
    beside = sum(_tensor_bytes(value) for value in (extra or {}).values())
    return numbers * (parameters[0].element_size() + BYTES_OF_STATE) + buffers + beside + SMALL_FILES_BYTES


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(_tensor_bytes(item) for item in value.values()) if isinstance(value, Mapping) else 0
