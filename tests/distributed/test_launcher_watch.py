"""Whether what has started a rank is still there: launch.sh by the variable that it hands over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.distributed.launcher_watch import LaunchScript, describe_end, is_alive, read_launch_script

BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
WAIT_SECONDS = 120

pytestmark = pytest.mark.skipif(not BOOT_FILE.exists(), reason="needs Linux's /proc")

# Plays mats_ds/launch.py: hands its name over as that does, starts a child, and says which process
# it is.
SCRIPT = """
import os, subprocess, sys
sys.path[:0] = {path!r}
from mats_ds.distributed.launcher_watch import describe_launcher
variable = describe_launcher()
print(os.getpid(), *variable.values(), flush=True)
subprocess.run([sys.executable, "-c", sys.argv[1]], env={{**os.environ, **variable}})
"""
CHILD = """
import os, sys
sys.path[:0] = {path!r}
from mats_ds.distributed.launcher_watch import end_with_launchers, find_launchers
print(os.getpid(), *[launcher.pid for launcher in find_launchers()], flush=True)
end_with_launchers()
import time
time.sleep(600)
"""


def start_script(*above: str) -> subprocess.Popen:
    """That script, below the command `above`, in a session of its own."""
    command = [*above, sys.executable, "-c", SCRIPT.format(path=sys.path), CHILD.format(path=sys.path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def end(*groups: int) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_a_process_ends_after_the_launch_sh_that_was_killed():
    job = start_script()
    try:
        assert job.stdout.readline().split()[0] == str(job.pid)
        assert job.stdout.readline().split()[1:] == [str(job.pid)], "launch.sh is the one launcher"
        os.kill(job.pid, signal.SIGKILL)
        _, said = job.communicate(timeout=WAIT_SECONDS)  # until the child has closed its ends too
        assert "stopped: rank 0: the launcher has died; start the same command again" in said
    finally:
        end(job.pid)


@pytest.mark.parametrize("above", [["nohup"], ["setsid", "--wait"], ["sh", "-c", '"$@"; exit', "sh"]], ids=lambda above: above[0])
def test_what_stands_above_launch_sh_is_not_watched(above):
    """So that the end of a terminal, a tmux or a shell is not the end of a run."""
    job = start_script(*above)
    try:
        script = job.stdout.readline().split()[0]
        assert job.stdout.readline().split()[1:] == [script]
        if script != str(job.pid):
            os.kill(job.pid, signal.SIGKILL)
            job.wait()
        assert is_alive(LaunchScript(int(script), start_ticks_of(int(script))))
    finally:
        end(job.pid, int(script))  # setsid has made it a group of its own


def start_ticks_of(pid: int) -> int:
    """Source: proc(5), the 22nd field."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def variable(**changes: object) -> dict[str, str]:
    pid = os.getpid()
    words = dict(
        boot=BOOT_FILE.read_text().strip(), namespace=os.readlink("/proc/self/ns/pid"), pid=pid, start=start_ticks_of(pid)
    )
    return {"LAUNCH_SH_PROCESS": " ".join(str(word) for word in {**words, **changes}.values())}


def test_a_later_process_with_its_number_is_not_taken_for_it():
    mine = read_launch_script(variable())
    assert mine == LaunchScript(os.getpid(), start_ticks_of(os.getpid())) and is_alive(mine)
    assert not is_alive(read_launch_script(variable(start=mine.start_ticks - 1)))


def test_one_that_has_ended_is_gone_even_while_nobody_has_waited_for_it():
    child = subprocess.Popen(["sleep", "600"])
    script = LaunchScript(child.pid, start_ticks_of(child.pid))
    assert is_alive(script)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(script), "a zombie"
    child.wait()
    assert not is_alive(script)


@pytest.mark.parametrize(
    "changes", [{"boot": "another"}, {"namespace": "pid:[1]"}, {"pid": "x"}, {"start": ""}, {"start": "1 2"}]
)
def test_another_host_or_container_is_not_ours_to_watch(changes):
    assert read_launch_script(variable(**changes)) is None
    assert read_launch_script({}) is None


@pytest.mark.parametrize("status", [0, 1, 2, 75, 129, 130, 143])
def test_an_end_that_a_rank_has_explained_needs_no_other_line(status):
    assert describe_end(status) == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (256 - signal.SIGKILL, "a rank was killed by SIGKILL, often by the kernel, where memory ran out (dmesg says so)"),
        (256 - signal.SIGSEGV, "a rank was killed by SIGSEGV"),
        (128 + signal.SIGKILL, "killed by SIGKILL, often by the kernel, where memory ran out (dmesg says so)"),
        (3, "a rank has ended and has not said why"),
    ],
)
def test_what_nobody_could_say_is_said(status, words):
    assert describe_end(status) == words
