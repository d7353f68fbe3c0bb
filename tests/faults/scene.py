"""A place where real runs are hurt, and the row of the table that each fault gives: for `run.py`
and the files of faults."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.faults.harness import NUM_STEPS, Job, newest_step, read_losses, start_ranks, write_videos

END_SECONDS = 60.0  # no fault may keep a process alive for longer
OTHER_RANKS_TOLERANCE = 1e-4
NOT_TIMED = -1.0  # for faults whose end was not timed


@dataclass
class Row:
    """What one fault did. `lost_steps`: done before it and to be done again; `difference`: the
    largest of any loss, None where the run never began or cannot be gone on with. `expected`: a
    part of `words`; `wanted_status`: None where any will do.
    """

    fault: str
    status: str
    end_seconds: float | None
    lost_steps: int | None
    difference: float | None
    words: str
    tolerance: float = 0.0
    expected: str = ""
    wanted_status: str | None = None

    def problem(self) -> str | None:
        """What is not as it should be."""
        if self.end_seconds is None:
            return f"a process was alive {END_SECONDS:.0f} s after it"
        if self.difference is not None and not self.difference <= self.tolerance:
            return f"after it, losses differ by {self.difference:.3g}"
        if self.expected and self.expected not in self.words:
            return f"nobody said {self.expected!r}"
        if self.wanted_status is not None and self.status != self.wanted_status:
            return f"exit status {self.status}, expected {self.wanted_status}"
        return None


class Scene:
    """A place for runs, and the losses of the undisturbed one."""

    def __init__(self, root: Path) -> None:
        self.root, self.videos, self.number = root, write_videos(root), 0
        job = start_ranks(root / "undisturbed", self.videos)
        assert job.wait(300) is not None and job.statuses() == [0, 0], job.said()
        self.losses = read_losses(root / "undisturbed")
        assert len(self.losses) == NUM_STEPS

    def new_folder(self) -> Path:
        self.number += 1
        return self.root / f"run-{self.number:02d}"

    def resume(self, folder: Path, *, world_size: int = 2) -> float:
        """Go on until the end; the largest difference of any step's loss to the undisturbed run."""
        job = start_ranks(folder, self.videos, world_size=world_size)
        seconds = job.wait(300)
        assert seconds is not None and set(job.statuses()) == {0}, f"it could not go on:\n{job.said()}"
        return self.difference(folder)

    def difference(self, folder: Path) -> float:
        losses = read_losses(folder)
        assert list(losses) and len(losses) == NUM_STEPS, f"{len(losses)} of {NUM_STEPS} steps are recorded"
        return max(abs(losses[step] - self.losses[step]) for step in self.losses)

    def after(self, fault: str, job: Job, *, begun: int, expected: str = "") -> Row:
        """The row of a fault that has just happened to a job that had done `begun` steps."""
        seconds = job.wait(END_SECONDS)
        lost = max([begun, *read_losses(job.folder)]) - newest_step(job.folder)
        return Row(fault, name_statuses(job), seconds, lost, self.resume(job.folder), name_words(job), expected=expected)


def steps_done(folder: Path) -> int:
    return max(read_losses(folder), default=0)


def name_statuses(job: Job) -> str:
    """The different exit statuses of its processes, in order."""
    return ", ".join(str(status) for status in dict.fromkeys(job.statuses()))


def name_words(job: Job) -> str:
    """The different lines with which its ranks ended."""
    return " | ".join(dict.fromkeys(job.last_words()))


def mount_memory(place: Path, options: str) -> None:
    """A disk in memory on an empty folder; `umount` takes it away. Needs root."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def umount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


def can_mount(root: Path) -> bool:
    """Whether this machine lets us mount a disk in memory."""
    place = root / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False).returncode:
        return False
    umount(place)
    return True
