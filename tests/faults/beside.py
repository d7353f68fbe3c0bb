"""Faults from beside a run: its launch.sh is killed, the clock jumps, another command reads its
videos."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

from tests.faults.harness import ROOT, find_ranks, list_ranks, send, start_launch_sh, start_launcher, start_ranks, wait_until
from tests.faults.scene import END_SECONDS, NOT_TIMED, Row, Scene, name_statuses, steps_done

DAY_SECONDS = 86_400
JUMPS_DAYS = (10, -10)
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The seconds by which the clock is wrong stand in a file that somebody else writes. */
static int64_t shift(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        const char *name = getenv("FAULTY_CLOCK");
        int file = name ? open(name, O_RDONLY) : -1;
        void *page = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        if (page == MAP_FAILED) return 0;
        seconds = page;
    }
    return *seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, now);
    if (!status && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return status;
}
time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *result, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    result->tv_sec = now.tv_sec;
    result->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


class FaultyClock:
    """A wall clock that can be set in mid-run, for processes started with `variables`. Needs
    gcc."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        source, library, file = folder / "clock.c", folder / "clock.so", folder / "seconds"
        source.write_text(CLOCK)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
        file.write_bytes(bytes(8))
        self.variables = {"LD_PRELOAD": str(library), "FAULTY_CLOCK": str(file)}
        with file.open("r+b") as stream:
            self._page = mmap.mmap(stream.fileno(), 8)

    def jump(self, seconds: int) -> None:
        """From now on it is wrong by that much."""
        self._page[:8] = struct.pack("=q", seconds)

    def now(self) -> float:
        """What a process of its own reads."""
        code = "import time; print(time.time())"
        return float(subprocess.run([sys.executable, "-c", code], env=os.environ | self.variables, capture_output=True).stdout)


def jump_clock(scene: Scene) -> Row:
    """The wall clock goes ten days forward in mid-run, then back and ten days more; the run goes on
    until it is stopped."""
    clock = FaultyClock(scene.root / "clock")
    folder = scene.new_folder()
    job = start_launcher(folder, scene.videos, variables=clock.variables)
    find_ranks(job, 2)
    begun = 0
    for days in JUMPS_DAYS:
        clock.jump(days * DAY_SECONDS)
        begun = max(begun, steps_done(folder)) + 4
        wait_until(lambda begun=begun: steps_done(folder) >= begun, job)
    ranks = list_ranks(job)
    send(ranks[0], signal.SIGTERM)
    seconds = job.wait(END_SECONDS)
    row = scene.after(
        f"clock jumps {JUMPS_DAYS[0]} days forward, then back", job, begun=begun, expected="is saved, go on with --resume auto"
    )
    row.end_seconds = seconds
    return row


def check_videos_beside(scene: Scene) -> Row:
    """`prepare check` reads the same videos while the run does, and writes a manifest beside it."""
    folder = scene.new_folder()
    job = start_ranks(folder, scene.videos)
    wait_until(lambda: steps_done(folder) >= 2, job)
    command = [
        sys.executable,
        str(ROOT / "mats_ds/prepare.py"),
        "check",
        str(scene.videos),
        "--out",
        str(scene.root / "checked.csv"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert job.wait(300) is not None, job.said()
    words = f"{len((scene.root / 'checked.csv').read_text().splitlines())} lines in the manifest"
    return Row(
        "`prepare check` beside the run", name_statuses(job), NOT_TIMED, 0, scene.difference(folder), words, wanted_status="0"
    )


def kill_launch_sh(scene: Scene) -> Row:
    job = start_launch_sh(scene.new_folder(), scene.videos)
    find_ranks(job, 2)
    begun = steps_done(job.folder)
    send(job.processes[0], signal.SIGKILL)
    return scene.after("SIGKILL of `launch.sh`", job, begun=begun, expected="the launcher has died")


def kill_launch_sh_early(scene: Scene) -> Row:
    """While its ranks still import torch, before they watch anybody."""
    job = start_launch_sh(scene.new_folder(), scene.videos)
    wait_until(lambda: len(list_ranks(job)) == 2, job)
    job.processes += job.processes[0].children(recursive=True)
    send(job.processes[0], signal.SIGKILL)
    seconds = job.wait(300)  # as long as importing takes on a busy machine
    row = scene.after("SIGKILL of `launch.sh` at the start", job, begun=0, expected="the launcher has died")
    row.end_seconds = seconds
    return row
