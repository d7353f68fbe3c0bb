"""Hurt real training runs in every way that `docs/explanation/reliability.md` promises to survive,
and print what each lost.

    bash tests/faults/run.sh [--short] [--out FOLDER] [--seed N]

Every run is compared with one that nobody disturbed: after the fault it is started again with
`--resume auto` until it has finished, and the losses of all its steps must be those of the
undisturbed run, to the bit on the same number of ranks. Exit status 0 if every row is as it should
be.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults import beside, folders
from tests.faults.harness import (
    CHECKPOINT_STEPS,
    FAULT_FILE,
    HANG_SECONDS,
    NUM_STEPS,
    Job,
    find_ranks,
    newest_step,
    read_losses,
    send,
    start_launcher,
    start_ranks,
    wait_until,
)
from tests.faults.scene import END_SECONDS, NOT_TIMED, OTHER_RANKS_TOLERANCE, Row, Scene, can_mount, steps_done

SMALL_DISK = "54m"


def kill_at_random(scene: Scene, *, num_kills: int, chance: random.Random) -> Row:
    """SIGKILL of a random rank, again and again in one run: at any moment, and every third time in
    the middle of a save."""
    folder, rows, saves = scene.new_folder(), [], 0
    while sum(isinstance(row, tuple) for row in rows) < num_kills:
        # this one is nearly done: begin another
        if newest_step(folder) >= NUM_STEPS - CHECKPOINT_STEPS:
            rows.append(scene.resume(folder))
            folder = scene.new_folder()
        before = newest_step(folder)
        job = start_ranks(folder, scene.videos)
        is_saving = len(rows) % 3 == 0
        if is_saving:
            wait_until(lambda folder=folder: list(folder.glob("checkpoints/.step-*")), job)
        else:
            time.sleep(chance.uniform(0.5, 9.0))
        victim = chance.choice(job.processes)
        is_late = steps_done(folder) >= NUM_STEPS
        send(victim, signal.SIGKILL)
        seconds, done = job.wait(END_SECONDS), steps_done(folder)
        if is_late:
            continue
        saves += is_saving
        rows.append(
            (seconds, done - max(before, newest_step(folder)), " | ".join(dict.fromkeys(job.last_words())), job.statuses())
        )
    difference = max([scene.resume(folder), *(row for row in rows if isinstance(row, float))])
    kills = [row for row in rows if not isinstance(row, float)]
    seconds = None if any(row[0] is None for row in kills) else max(row[0] for row in kills)
    fault = f"SIGKILL of a rank, {len(kills)} random moments, {saves} of them while saving"
    statuses = sorted({status for row in kills for status in row[3]})
    return Row(fault, ", ".join(map(str, statuses)), seconds, max(row[1] for row in kills), difference, kills[-1][2])


def signal_to_ranks(scene: Scene, number: signal.Signals) -> Row:
    job = start_ranks(scene.new_folder(), scene.videos)
    wait_until(lambda: steps_done(job.folder) >= 6, job)
    for process in job.processes:
        send(process, number)
    return scene.after(f"{number.name} to every rank", job, begun=6, expected="is saved, go on with --resume auto")


def signal_to_launcher(scene: Scene, number: signal.Signals, what: str) -> Row:
    job = start_launcher(scene.new_folder(), scene.videos)
    find_ranks(job, 2)
    begun = steps_done(job.folder)
    send(job.processes[0], number)
    return scene.after(what, job, begun=begun, expected="is saved, go on with --resume auto")


def press_ctrl_c(scene: Scene) -> Row:
    """A terminal sends SIGINT to everything that it runs: runner, launcher and ranks."""
    job = start_launcher(scene.new_folder(), scene.videos)
    find_ranks(job, 2)
    begun = steps_done(job.folder)
    os.killpg(job.processes[0].pid, signal.SIGINT)
    return scene.after("Ctrl-C", job, begun=begun, expected="is saved, go on with --resume auto")


def kill_node_launcher(scene: Scene) -> Row:
    """The process between deepspeed's runner and the ranks."""
    job = start_launcher(scene.new_folder(), scene.videos)
    find_ranks(job, 2)
    begun = steps_done(job.folder)
    [launcher] = [process for process in job.processes if "deepspeed.launcher.launch" in " ".join(process.cmdline())]
    send(launcher, signal.SIGKILL)
    return scene.after("SIGKILL of the launcher of the node", job, begun=begun, expected="the launcher has died")


def kill_under_launcher(scene: Scene) -> Row:
    job = start_launcher(scene.new_folder(), scene.videos)
    ranks = find_ranks(job, 2)
    wait_until(lambda: newest_step(job.folder) > 0, job)
    begun = steps_done(job.folder)
    send(ranks[1], signal.SIGKILL)
    return scene.after("SIGKILL of a rank under the launcher", job, begun=begun, expected="has died")


def freeze_rank(scene: Scene) -> Row:
    """A rank that stands still without dying, as one on a host that swaps or whose driver hangs."""
    job = start_ranks(scene.new_folder(), scene.videos)
    wait_until(lambda: steps_done(job.folder) >= 6, job)
    send(job.processes[1], signal.SIGSTOP)
    first = Job(job.folder, job.processes[:1], job.handles[:1], job.log)
    seconds = first.wait(END_SECONDS)
    send(job.processes[1], signal.SIGKILL)  # what the launcher does 30 s after the first rank's end
    row = scene.after(
        f"a rank stands still (run.hang_seconds={HANG_SECONDS:g})", job, begun=6, expected="go on with --resume auto"
    )
    row.end_seconds = seconds
    return row


def inject(scene: Scene, what: str, kind: str, *, expected: str) -> Row:
    """A fault of rank 1 before step 7."""
    job = start_ranks(scene.new_folder(), scene.videos, fault={"kind": kind, "step": 7, "rank": 1})
    wait_until((job.folder / FAULT_FILE).exists, job)
    return scene.after(what, job, begun=6, expected=expected)


def skip_one_step(scene: Scene) -> Row:
    """A single loss that is not finite: the run goes on; only the steps before it can be equal to
    the undisturbed run."""
    job = start_ranks(scene.new_folder(), scene.videos, fault={"kind": "nan", "steps": [6]})
    seconds = job.wait(300)
    assert seconds is not None and job.statuses() == [0, 0], job.said()
    losses = read_losses(job.folder)
    assert [step for step in sorted(losses) if not math.isfinite(losses[step])] == [6] and len(losses) == NUM_STEPS
    words = next(line for line in job.said().splitlines() if "the step is left out" in line)
    difference = max(abs(losses[step] - scene.losses[step]) for step in range(1, 6))
    return Row("one loss is NaN", "0", NOT_TIMED, 1, difference, words, expected="the step is left out")


def stop_at_second(scene: Scene) -> Row:
    """Two losses that are not finite: step 6 is left out, step 9 stops the run, which can be gone
    on with."""
    job = start_ranks(scene.new_folder(), scene.videos, fault={"kind": "nan", "steps": [6, 9]})
    seconds = job.wait(300)
    words, statuses = " | ".join(job.last_words()), job.statuses()
    assert seconds is not None and statuses == [1, 1], job.said()
    lost = steps_done(job.folder) - newest_step(job.folder)
    scene.resume(job.folder)
    losses = read_losses(job.folder)
    # 9 went well the second time
    assert [step for step in sorted(losses) if not math.isfinite(losses[step])] == [6]
    difference = max(abs(losses[step] - scene.losses[step]) for step in range(1, 6))
    return Row("two losses are NaN", "1", NOT_TIMED, lost, difference, words, expected="the loss of step 9 is not finite")


def fill_disk(scene: Scene) -> Row:
    """In the middle of a write: from some moment on, no file can grow beyond 1 MB, as under a
    quota."""
    job = start_ranks(scene.new_folder(), scene.videos)
    wait_until(lambda: newest_step(job.folder) > 0, job)
    for process in job.processes:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    return scene.after("disk full while saving", job, begun=0, expected="File too large")


def shrink_disk(scene: Scene) -> Row:
    """Checkpoints go to a disk with room for one of them and a half. Needs the right to mount."""
    folder = scene.new_folder()
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(checkpoints)], check=True)
    try:
        job = start_ranks(folder, scene.videos)
        seconds = job.wait(END_SECONDS)
        words = " | ".join(dict.fromkeys(job.last_words()))
        statuses = ", ".join(str(status) for status in dict.fromkeys(job.statuses()))
        lost = steps_done(folder) - newest_step(folder)
        # make room: the same files on a disk that has it
        shutil.copytree(checkpoints, folder / "kept")
    finally:
        subprocess.run(["umount", str(checkpoints)], check=True)
    checkpoints.rmdir()
    (folder / "kept").rename(checkpoints)
    what = "no room for the next checkpoint"
    return Row(what, statuses, seconds, lost, scene.resume(folder), words, expected="go on with --resume auto")


def write_nowhere(scene: Scene) -> Row:
    """--out below something that is no folder."""
    file = scene.root / "a-file"
    file.write_text("no folder")
    job = start_ranks(scene.new_folder(), scene.videos, more=["--out", str(file / "run")])
    seconds = job.wait(END_SECONDS)
    words = " | ".join(dict.fromkeys(job.last_words()))
    return Row("output folder cannot be written", str(job.statuses()[0]), seconds, 0, None, words, expected="cannot be written")


def tear_newest(scene: Scene) -> Row:
    """The newest checkpoint loses the end of a file, as after a power cut on a disk that lies about
    fsync."""
    folder = scene.new_folder()
    job = start_ranks(folder, scene.videos)
    wait_until(lambda: newest_step(folder) >= 2 * CHECKPOINT_STEPS, job)
    job.kill()
    done, newest = steps_done(folder), folder / "checkpoints" / f"step-{newest_step(folder):08d}"
    with next(newest.glob("*optim_states.pt")).open("r+b") as stream:
        stream.truncate(1000)
    lost = done - max(int(path.name[5:]) for path in newest.parent.glob("step-*") if path != newest)
    difference = scene.resume(folder)
    said = "".join(path.read_text() for path in sorted((folder.parent / f"{folder.name}-logs").iterdir())).splitlines()
    words = next((line for line in said if "is skipped" in line), "")
    return Row("newest checkpoint torn", "-9", NOT_TIMED, lost, difference, words, expected="is skipped")


def change_ranks(scene: Scene, sizes: list[int]) -> Row:
    """Interrupt and go on with another number of ranks, again and again."""
    folder = scene.new_folder()
    for place, world_size in enumerate(sizes[:-1]):
        job = start_ranks(folder, scene.videos, world_size=world_size)
        wait_until(lambda place=place: steps_done(folder) >= 8 * (place + 1), job)
        send(job.processes[-1], signal.SIGTERM)
        assert job.wait(END_SECONDS) is not None and set(job.statuses()) == {75}, job.said()
    difference = scene.resume(folder, world_size=sizes[-1])
    what = "other numbers of ranks: " + ", ".join(map(str, sizes))
    return Row(what, "75", NOT_TIMED, 0, difference, " | ".join(job.last_words()), tolerance=OTHER_RANKS_TOLERANCE)


def all_faults(scene: Scene, *, short: bool, chance: random.Random) -> Iterator[Callable[[], Row]]:
    yield lambda: kill_at_random(scene, num_kills=3 if short else 20, chance=chance)
    yield lambda: change_ranks(scene, [2, 1] if short else [8, 4, 1, 8])
    yield lambda: signal_to_ranks(scene, signal.SIGUSR1)
    yield lambda: tear_newest(scene)
    if short:
        return
    mounts = can_mount(scene.root)
    yield lambda: signal_to_ranks(scene, signal.SIGTERM)
    yield lambda: signal_to_launcher(scene, signal.SIGTERM, "SIGTERM to the launcher")
    yield lambda: press_ctrl_c(scene)
    yield lambda: kill_node_launcher(scene)
    yield lambda: signal_to_launcher(scene, signal.SIGKILL, "SIGKILL of `deepspeed`")
    yield lambda: kill_under_launcher(scene)
    yield lambda: fill_disk(scene)
    if mounts:
        yield lambda: shrink_disk(scene)
    yield lambda: write_nowhere(scene)
    hangs = f"a loader hangs (run.hang_seconds={HANG_SECONDS:g})"
    yield lambda: inject(scene, hangs, "hang", expected="for its next clips: reading hangs")
    yield lambda: freeze_rank(scene)
    yield lambda: inject(scene, "out of memory", "memory", expected="rank 1 is out of memory")
    yield lambda: skip_one_step(scene)
    yield lambda: stop_at_second(scene)
    yield lambda: beside.kill_launch_sh(scene)
    yield lambda: beside.kill_launch_sh_early(scene)
    if shutil.which("gcc"):
        yield lambda: beside.jump_clock(scene)
    yield lambda: beside.check_videos_beside(scene)
    yield lambda: folders.delete_folder(scene)
    yield lambda: folders.close_folder(scene)
    yield lambda: folders.resume_twice(scene)
    yield lambda: folders.tear_then_keep_one(scene)
    yield lambda: folders.kill_at_latest(scene)
    yield lambda: folders.kill_between_saves(scene)
    yield lambda: folders.kill_while_converting(scene)
    if mounts:
        yield lambda: folders.tear_with_little_room(scene)
        yield lambda: folders.use_up_inodes(scene)
        yield lambda: folders.export_without_inodes(scene)


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| fault | exit status | seconds to end | steps to do again | loss difference after resuming |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        end = "never" if row.end_seconds is None else f"{row.end_seconds:.1f}"
        end = "-" if row.end_seconds == NOT_TIMED else end
        lost = "-" if row.lost_steps is None else row.lost_steps
        difference = "-" if row.difference is None else f"{row.difference:.2g}"
        lines.append(f"| {row.fault} | {row.status} | {end} | {lost} | {difference} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="four of the faults, for the test suite")
    parser.add_argument("--out", type=Path, help="folder for faults.md and faults.json (default: nothing is written)")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of rows")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    began, rows, failed = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as root:
        scene = Scene(Path(root))
        faults = all_faults(scene, short=options.short, chance=random.Random(options.seed))
        for hurt in [fault for number, fault in enumerate(faults, start=1) if not options.only or number in options.only]:
            try:
                row = hurt()
            except (AssertionError, TimeoutError) as error:  # the others are tried all the same
                failed += 1
                print(f"FAIL  {error}", flush=True)
                continue
            rows.append(row)
            problem = row.problem()
            print(f"{'FAIL' if problem else 'ok'}  {row.fault}: {problem or row.words[:200]}", flush=True)
    seconds = time.monotonic() - began
    text = (
        f"{table(rows)}\n\n{len(rows)} kinds of faults in {seconds / 60:.1f} minutes, "
        f"a checkpoint every {CHECKPOINT_STEPS} of {NUM_STEPS} steps.\n"
    )
    print("\n" + text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "faults.md").write_text(text)
        (options.out / "faults.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 1 if failed or any(row.problem() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
