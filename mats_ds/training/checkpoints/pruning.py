"""Delete old checkpoints. A complete one goes only where a newer complete one is on disk, and the
one resumed from never does.

Those that this process has published are known to be complete; of the others, every file is hashed
once, and only if what may go depends on it. Damaged ones count for nothing: they go when a newer
complete one is there, and stay otherwise.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from mats_ds.core.checkpoint_files import COMPLETE, LATEST, Verdict, examine, list_checkpoints, step_of_name
from mats_ds.core.format import format_count
from mats_ds.core.storage.files import read_bytes
from mats_ds.training.checkpoints.checkpoint import publish
from mats_ds.training.checkpoints.removal import removable_bytes, remove_checkpoint, remove_unfinished

logger = logging.getLogger(__name__)

GIBIBYTE = 2**30
FREE_SECONDS = 10.0  # how long a filesystem may take to give back what was deleted (ZFS, Lustre)
POLL_SECONDS = 0.1


@dataclass
class CheckpointFolder:
    """The folder `checkpoints/` of a run, as its one writer knows it.

    The newest `keep` complete checkpoints stay, those at multiples of `keep_every_steps` (0: none),
    and those named in `protected`.
    """

    path: Path
    keep: int
    keep_every_steps: int = 0
    protected: frozenset[str] = frozenset()
    # by the state of complete.json
    _hashed: dict[tuple[str, int, int], Verdict] = field(default_factory=dict, init=False)

    def publish(self, part: Path, tag: str) -> None:
        """A sealed folder becomes the checkpoint `tag`, and older ones that need not stay go.
        Raises OSError where it could not be renamed; a fault after that is a warning, as the
        checkpoint is saved.
        """
        publish(part, self.path, tag)
        try:
            self._hashed[_state_of(self.path / tag)] = Verdict(None)
            self.prune(newest=tag)
        except OSError as error:
            logger.warning("%s is saved, and older checkpoints stay: %s", self.path / tag, error)

    def prune(self, *, newest: str | None = None) -> None:
        """Remove the complete checkpoints beyond the newest `keep`, damaged ones older than a
        complete one, and the rest of unfinished saves.

        newest: one that was just published, which stays whatever number it has.
        """
        for checkpoint in self._find_unneeded(newest):
            remove_checkpoint(checkpoint)
        remove_unfinished(self.path)

    def make_room(self, num_bytes: int, *, replaced: str | None = None) -> None:
        """Make sure that `num_bytes` are free: delete the oldest complete checkpoints, but never
        the last one, if need be.

        replaced: the name of the checkpoint that is to be written; a damaged one of that name may
        go first.
        Raises OSError with the numbers, before anything is removed, where that does not make enough
        room.
        """
        remove_unfinished(self.path)
        free = free_bytes(self.path)
        if free >= num_bytes:
            return
        chosen, gained = [], 0
        for checkpoint in self._find_expendable(replaced):
            if free + gained >= num_bytes:
                break
            size = removable_bytes(checkpoint)
            if size:
                chosen.append(checkpoint)
                gained += size
        if free + gained < num_bytes:
            older = f", and older checkpoints hold {gained / GIBIBYTE:.2f} GiB" if gained else ""
            raise OSError(f"it needs {num_bytes / GIBIBYTE:.2f} GiB and {free / GIBIBYTE:.2f} GiB are free{older}")
        for checkpoint in chosen:
            before = free_bytes(self.path)
            logger.warning("little room in %s: %s goes for the next checkpoint", self.path, checkpoint.name)
            if not remove_checkpoint(checkpoint) or not _rises(self.path, before):
                break  # a snapshot holds it, say: the next one would go for nothing, too
        free = free_bytes(self.path)
        if free < num_bytes:
            raise OSError(f"it needs {num_bytes / GIBIBYTE:.2f} GiB and {free / GIBIBYTE:.2f} GiB are free")

    def count(self) -> int:
        """The number of checkpoints, by their names."""
        return len(list_checkpoints(self.path))

    def _find_unneeded(self, newest: str | None) -> list[Path]:
        """The checkpoints that `prune` removes, oldest first."""
        needed = self._needed() | {newest}
        num_complete, unneeded = 0, []
        for checkpoint in list_checkpoints(self.path):
            if num_complete >= self.keep:  # so whether this one is complete does not matter
                verdict = examine(checkpoint, with_sums=False)
                is_over = verdict.problem is None or verdict.is_certain
            else:
                verdict = self._examine(checkpoint)
                num_complete += verdict.problem is None
                is_over = verdict.problem is not None and verdict.is_certain and num_complete > 0
            if is_over and checkpoint.name not in needed and not self._is_for_good(checkpoint, verdict):
                unneeded.append(checkpoint)
        return unneeded[::-1]

    def _find_expendable(self, replaced: str | None) -> list[Path]:
        """The checkpoints that `make_room` may remove, in this order: nothing that is needed, and
        not the newest complete one."""
        needed, older, first = self._needed(), [], []
        has_newer = False
        for checkpoint in list_checkpoints(self.path):
            if has_newer:
                verdict = examine(checkpoint, with_sums=False)
                is_over = verdict.problem is None or verdict.is_certain
                if is_over and checkpoint.name not in needed and not self._is_for_good(checkpoint, verdict):
                    older.append(checkpoint)
            else:
                verdict = self._examine(checkpoint)
                has_newer = verdict.problem is None
            if checkpoint.name == replaced and verdict.problem is not None and verdict.is_certain and checkpoint not in older:
                first.append(checkpoint)
        return first + older[::-1]

    def _needed(self) -> frozenset[str]:
        """Names that stay in any case: where the run came from, and what `latest` names."""
        try:
            latest = read_bytes(self.path / LATEST, max_bytes=100).decode(errors="replace").strip()
        except (OSError, ValueError):
            return self.protected
        return self.protected | {latest}

    def _is_for_good(self, checkpoint: Path, verdict: Verdict) -> bool:
        is_multiple = bool(self.keep_every_steps) and step_of_name(checkpoint.name) % self.keep_every_steps == 0
        return is_multiple and verdict.problem is None

    def _examine(self, checkpoint: Path) -> Verdict:
        """Its files are looked at every time, and hashed the first time."""
        verdict = examine(checkpoint, with_sums=False)
        if verdict.problem is not None:
            return verdict
        state = _state_of(checkpoint)
        if state not in self._hashed:
            self._hashed[state] = examine(checkpoint)
        return self._hashed[state]


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _rises(folder: Path, before: int) -> bool:
    """Whether more bytes are free than `before`, within FREE_SECONDS."""
    until = time.monotonic() + FREE_SECONDS
    while free_bytes(folder) <= before:
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def check_names(folder: Path, num_files: int) -> None:
    """Raises OSError where the disk has no room for the names of `num_files` more files (inodes),
    as `df -i` shows it."""
    state = os.statvfs(folder)
    # some filesystems have as many as one likes, and say 0
    if state.f_files and state.f_favail < num_files:
        raise OSError(f"it needs {format_count(num_files, 'file')} and the disk has room for {state.f_favail} more (df -i)")


def _state_of(checkpoint: Path) -> tuple[str, int, int]:
    state = (checkpoint / COMPLETE).stat()
    return checkpoint.name, state.st_ino, state.st_mtime_ns
