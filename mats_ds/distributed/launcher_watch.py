"""Watch the launchers of this rank: deepspeed's, torchrun and launch.sh, nobody else.

A shell or terminal above them may go as it likes: nohup, setsid, tmux and `&` detach a run, they do
not end it. The launchers are found among the parents of this process. launch.sh names its process
in a variable, because a rank can still be importing torch when it dies, and then no parent is left
to find.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mats_ds.core.cli import FINISHED, INTERRUPTED, RUN_ERROR, USAGE_ERROR
from mats_ds.core.interrupts import STOPPING
from mats_ds.core.processes import identify_process, read_start_ticks

OF_THIS_MACHINE = "deepspeed.launcher.launch"  # the launcher that starts the ranks of one machine
LAUNCHERS = {"deepspeed", OF_THIS_MACHINE, "torchrun", "torch.distributed.run", "torch.distributed.launch"}
LAUNCH_SH_VARIABLE = "LAUNCH_SH_PROCESS"  # "BOOT NAMESPACE PID START", set by launch.sh
POLL_SECONDS = 0.5
# a rank that ends with one of these has printed its line
SAID = {FINISHED, RUN_ERROR, USAGE_ERROR, INTERRUPTED, *(128 + number for number in STOPPING)}


@dataclass(frozen=True)
class LaunchScript:
    """The process of launch.sh: its number, and its start in clock ticks since boot, so that no
    later process is taken for it."""

    pid: int
    start_ticks: int


def find_launchers() -> list[psutil.Process | LaunchScript]:
    """The processes that have started this one: deepspeed's runner and per-node launcher, or
    torchrun; and launch.sh."""
    launchers: list[psutil.Process | LaunchScript] = []
    for process in psutil.Process().parents():
        try:
            # python [-u] [-m] launcher
            names = {Path(argument).name for argument in process.cmdline()[:4]}
        except psutil.Error:
            break
        if not names & LAUNCHERS:
            break
        launchers.append(process)
    script = read_launch_script(os.environ)
    return [*launchers, script] if script else launchers


def read_launch_script(environment: Mapping[str, str]) -> LaunchScript | None:
    """The launch.sh that the variable names, alive or not; None without one, or where it belongs to
    another host or container."""
    try:
        boot, namespace, pid, start_ticks = environment.get(LAUNCH_SH_VARIABLE, "").split()
        script = LaunchScript(int(pid), int(start_ticks))
    except ValueError:
        return None
    here = identify_process()
    return script if (boot, namespace) == (here.boot, here.namespace) else None


def describe_launcher() -> dict[str, str]:
    """That variable for ranks that this process starts; empty where the system has no /proc."""
    here = identify_process()
    if not here.boot or here.start_ticks is None:
        return {}
    return {LAUNCH_SH_VARIABLE: f"{here.boot} {here.namespace} {here.process} {here.start_ticks}"}


def is_alive(process: psutil.Process | LaunchScript) -> bool:
    """Whether that very process still runs; one that has ended and that nobody has waited for does
    not."""
    if isinstance(process, LaunchScript):
        return read_start_ticks(process.pid) == process.start_ticks
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def find_ranks(command: int) -> list[int]:
    """The ranks on this machine that DeepSpeed's launcher, started by that process, has started;
    empty before it has, and where it starts them on other machines only."""
    ranks: list[int] = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(command).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if OF_THIS_MACHINE in process.cmdline()[:4]:
                    ranks += [child.pid for child in process.children()]
    return ranks


def describe_end(status: int) -> str:
    """What has ended the ranks, where the status of their command is none that a rank of ours ends
    with after a line of its own; "" for those.

    A rank that signal N kills cannot say so. DeepSpeed's launcher ends with its -N, which is 256 -
    N; a command that is itself killed has 128 + N.
    """
    if status in SAID:
        return ""
    for base, who in ((256 - status, "a rank was killed"), (status - 128, "killed")):
        if base in set(signal.Signals):
            memory = ", often by the kernel, where memory ran out (dmesg says so)" if base == signal.SIGKILL else ""
            return f"{who} by {signal.Signals(base).name}{memory}"
    return "a rank has ended and has not said why"


def end_with_launchers() -> None:
    """End this process, which has nothing to save, soon after one of its launchers; a thread
    watches them."""
    if launchers := find_launchers():
        threading.Thread(target=_end_with, args=[launchers], name="launcher watch", daemon=True).start()


def _end_with(launchers: Sequence[psutil.Process | LaunchScript]) -> None:
    while all(is_alive(launcher) for launcher in launchers):
        time.sleep(POLL_SECONDS)
    rank = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError):  # its terminal may be gone too
        print(f"stopped: rank {rank}: the launcher has died; start the same command again", file=sys.stderr, flush=True)
    os._exit(RUN_ERROR)
