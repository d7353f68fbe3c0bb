"""Faults of a run folder and of the disk below it: torn, deleted, read-only, full, or taken by two
runs at once."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.faults.harness import CHECKPOINT_STEPS, NUM_STEPS, ROOT, Job, is_alive, newest_step, send, start_ranks, wait_until
from tests.faults.scene import (
    END_SECONDS,
    NOT_TIMED,
    OTHER_RANKS_TOLERANCE,
    Row,
    Scene,
    mount_memory,
    name_statuses,
    name_words,
    steps_done,
    umount,
)


def delete_folder(scene: Scene) -> Row:
    """Nothing of the run is left to go on with: it must not end as if it had finished."""
    job = start_ranks(scene.new_folder(), scene.videos)
    wait_until(lambda: newest_step(job.folder) > 0, job)
    # at one moment, then for good
    gone = job.folder.rename(job.folder.with_name(f"{job.folder.name}-gone"))
    shutil.rmtree(gone)
    seconds = job.wait(END_SECONDS)
    words = name_words(job)
    return Row(
        "run folder deleted in mid-run", name_statuses(job), seconds, None, None, words, expected="stopped: ", wanted_status="1"
    )


def close_folder(scene: Scene) -> Row:
    """Its permissions are taken away, as where a quota or an administrator has made it read-only;
    then given back."""
    job = start_ranks(scene.new_folder(), scene.videos, fault={"kind": "no privileges"})
    wait_until(lambda: newest_step(job.folder) > 0, job)
    folders = [job.folder, *(path for path in job.folder.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    seconds = job.wait(END_SECONDS)
    for folder in folders:
        if folder.exists():
            folder.chmod(0o755)
    row = scene.after("run folder made read-only in mid-run", job, begun=0, expected="stopped: ")
    row.end_seconds, row.wanted_status = seconds, "1"
    return row


def resume_twice(scene: Scene) -> Row:
    """Two starts at the same moment: one goes on, the other is refused with who holds the
    folder."""
    folder = scene.new_folder()
    first = start_ranks(folder, scene.videos)
    wait_until(lambda: steps_done(folder) >= 6, first)
    send(first.processes[0], signal.SIGTERM)
    assert first.wait(END_SECONDS) is not None, first.said()
    both = [start_ranks(folder, scene.videos) for _ in range(2)]
    refused = wait_for_one(both)
    seconds = refused.wait(END_SECONDS)
    [other] = [job for job in both if job is not refused]
    assert other.wait(300) is not None and set(other.statuses()) == {0}, f"the other one did not finish:\n{other.said()}"
    row = Row("two resumes at once", name_statuses(refused), seconds, 0, scene.difference(folder), name_words(refused))
    row.expected, row.wanted_status = socket.gethostname(), "2"
    return row


def wait_for_one(jobs: list[Job]) -> Job:
    """The first of them whose processes have all ended."""
    ended: list[Job] = []

    def has_ended() -> bool:
        ended.extend(job for job in jobs if not any(map(is_alive, job.processes)))
        return bool(ended)

    everyone = [process for job in jobs for process in job.processes]
    wait_until(has_ended, Job(jobs[0].folder, everyone, [], jobs[0].log))
    return ended[0]


def tear_then_keep_one(scene: Scene) -> Row:
    """The newest checkpoint is torn, one is kept, the run goes on and is asked to stop: what it
    says it has saved is there."""
    folder = scene.new_folder()
    stop_after_two_saves(scene, folder)
    tear(newest_checkpoint(folder))
    job = start_ranks(folder, scene.videos, more=["run.keep_checkpoints=1"])
    before = count_records(folder)
    wait_until(lambda: count_records(folder) > before + 1, job)
    for process in job.processes:
        send(process, signal.SIGTERM)
    seconds = job.wait(END_SECONDS)
    words, statuses = name_words(job), name_statuses(job)
    saved = re.search(rf"step (\d+) of {NUM_STEPS} is saved", words)
    assert saved, job.said()
    again = start_ranks(folder, scene.videos)
    assert again.wait(300) is not None and set(again.statuses()) == {0}, f"it could not go on:\n{again.said()}"
    began = re.search(rf"steps: (\d+) to {NUM_STEPS}", again.said())
    assert began, again.said()
    lost = int(saved[1]) + 1 - int(began[1])
    row = Row("newest checkpoint torn, keep 1, SIGTERM", statuses, seconds, lost, scene.difference(folder), words)
    row.expected, row.wanted_status = f"step {int(began[1]) - 1} of {NUM_STEPS} is saved", "75"
    return row


def tear_with_little_room(scene: Scene) -> Row:
    """Beside the torn newest checkpoint there is a whole one, and no room for a third. Whatever
    goes, a whole one stays."""
    folder = scene.new_folder()
    stop_after_two_saves(scene, folder)
    tear(newest_checkpoint(folder), in_place=True)
    checkpoints, aside = folder / "checkpoints", folder / "aside"
    whole = min(path.name for path in checkpoints.glob("step-*"))
    size = sum(file.stat().st_size for file in (checkpoints / whole).rglob("*"))
    checkpoints.rename(aside)
    mount_memory(checkpoints, f"size={int(2.5 * size)}")
    try:
        shutil.copytree(aside, checkpoints, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(aside)
        done = steps_done(folder)
        job = start_ranks(folder, scene.videos)
        seconds = job.wait(END_SECONDS)
        words, statuses = name_words(job), name_statuses(job)
        left = [path.name for path in checkpoints.glob("step-*")]
        shutil.copytree(checkpoints, aside, symlinks=True)
    finally:
        umount(checkpoints)
    checkpoints.rmdir()
    aside.rename(checkpoints)
    lost = done - int(whole.removeprefix("step-"))
    row = Row("newest checkpoint torn, no room for a third", statuses, seconds, lost, scene.resume(folder), words)
    if statuses == "1":
        row.expected = "stopped: "
        assert whole in left, f"the one whole checkpoint {whole} is gone, left are {left}"
    return row


def kill_at_latest(scene: Scene) -> Row:
    """SIGKILL of rank 0 just before and just after `latest` moves to its second checkpoint."""
    rows = []
    for is_before in (True, False):
        job = start_ranks(scene.new_folder(), scene.videos, fault={"kind": "kill at latest", "is_before": is_before})
        rows.append(scene.after("SIGKILL while `latest` moves", job, begun=2 * CHECKPOINT_STEPS))
    row = max(rows, key=lambda row: row.lost_steps)
    row.difference = max(row.difference for row in rows)
    return row


def kill_between_saves(scene: Scene) -> Row:
    """A checkpoint every step: each save waits for the one before. SIGKILL of a rank while one is
    being written, twice."""
    folder, rows = scene.new_folder(), []
    every_step = ["run.checkpoint_steps=1"]
    for number in range(2):
        job = start_ranks(folder, scene.videos, more=every_step)
        wanted = 5 * (number + 1)
        wait_until(lambda wanted=wanted: newest_step(folder) >= wanted and list(folder.glob("checkpoints/.step-*")), job)
        send(job.processes[number], signal.SIGKILL)
        seconds = job.wait(END_SECONDS)
        rows.append((seconds, steps_done(folder) - newest_step(folder), name_statuses(job), name_words(job)))
    seconds = None if any(row[0] is None for row in rows) else max(row[0] for row in rows)
    lost = max(row[1] for row in rows)
    what = "SIGKILL of a rank, a checkpoint every step"
    return Row(what, rows[-1][2], seconds, lost, scene.resume(folder), rows[-1][3])


def use_up_inodes(scene: Scene) -> Row:
    """The disk has room for bytes and none for another file. Needs the right to mount."""
    folder = scene.new_folder()
    checkpoints, aside = folder / "checkpoints", folder / "aside"
    stop_after_two_saves(scene, folder)
    checkpoints.rename(aside)
    num_files = sum(1 for _ in aside.rglob("*")) + 1
    mount_memory(checkpoints, f"nr_inodes={num_files + 3}")  # fewer than a checkpoint has
    try:
        shutil.copytree(aside, checkpoints, dirs_exist_ok=True, symlinks=True)
        job = start_ranks(folder, scene.videos)
        seconds = job.wait(END_SECONDS)
        words, statuses = name_words(job), name_statuses(job)
        lost = steps_done(folder) - newest_step(folder)
        are_kept = sorted(path.name for path in checkpoints.glob("step-*")) == sorted(path.name for path in aside.glob("step-*"))
    finally:
        umount(checkpoints)
    assert are_kept, f"a checkpoint went for nothing:\n{job.said()}"
    checkpoints.rmdir()
    aside.rename(checkpoints)
    row = Row("no inodes for the next checkpoint", statuses, seconds, lost, scene.resume(folder), words, expected="df -i")
    row.wanted_status = "1"
    return row


def export_without_inodes(scene: Scene) -> Row:
    """`extract` onto a disk that takes few files: one line, and nothing that looks whole; with
    room, the same command goes on."""
    place = scene.root / "few-files"
    mount_memory(place, "nr_inodes=4")
    features = place / "features"
    command = [sys.executable, str(ROOT / "mats_ds/extract.py"), "--model", str(scene.root / "undisturbed"), "--device", "cpu"]
    command += ["--manifest", str(scene.videos), "--out", str(features), "--shard_videos", "4"]
    try:
        full = subprocess.run(command, capture_output=True, text=True, timeout=300)
        lines = [line for line in full.stderr.splitlines() if re.match(r"error: |(\S+: )?stopped: ", line)]
        is_whole = (features / "index.csv").exists()
        subprocess.run(["mount", "-o", "remount,nr_inodes=0", str(place)], check=True)
        again = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0 and (features / "index.csv").exists(), again.stderr
    finally:
        umount(place)
    assert full.returncode != 0 and not is_whole and "Traceback" not in full.stderr, full.stderr
    return Row(
        "out of inodes while exporting features", str(full.returncode), NOT_TIMED, None, None, " | ".join(lines),
        expected="No space left on device",
    )  # fmt: skip


def kill_while_converting(scene: Scene) -> Row:
    """A run folder from elsewhere, on another number of ranks: SIGKILL while the checkpoint is
    divided anew, then again."""
    folder = scene.new_folder()
    job = start_ranks(folder, scene.videos)
    wait_until(lambda: steps_done(folder) >= 6, job)
    send(job.processes[0], signal.SIGTERM)
    assert job.wait(END_SECONDS) is not None, job.said()
    moved = scene.new_folder()
    shutil.copytree(folder, moved, symlinks=True)
    shutil.rmtree(folder)
    begun = steps_done(moved)
    job = start_ranks(moved, scene.videos, world_size=1)
    wait_until(lambda: list((moved / "checkpoints").glob(".universal-*/*/*")), job)
    send(job.processes[0], signal.SIGKILL)
    seconds = job.wait(END_SECONDS)
    lost = begun - newest_step(moved)
    what = "SIGKILL while a copied run is divided anew (2 to 1 ranks)"
    difference = scene.resume(moved, world_size=1)
    return Row(what, name_statuses(job), seconds, lost, difference, "", tolerance=OTHER_RANKS_TOLERANCE)


def stop_after_two_saves(scene: Scene, folder: Path) -> None:
    """Kill a run that has two checkpoints or more."""
    job = start_ranks(folder, scene.videos)
    wait_until(lambda: newest_step(folder) >= 2 * CHECKPOINT_STEPS, job)
    job.kill()


def newest_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{newest_step(folder):08d}"


def tear(checkpoint: Path, *, in_place: bool = False) -> None:
    """The end of a file is lost, or other bytes stand there."""
    with next(checkpoint.glob("*optim_states.pt")).open("r+b") as stream:
        if in_place:
            stream.seek(1000)
            stream.write(bytes(1000))
        else:
            stream.truncate(1000)


def count_records(folder: Path) -> int:
    return len((folder / "records" / "rank-00000.jsonl").read_text().splitlines())
