"""A command in a group of its own: its status comes back, and nothing of the group outlives it or
the process that waits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mats_ds.distributed.process_group import run_in_group

# starts a child that starts a grandchild, which ignores nothing; both write their numbers
FAMILY = "sleep 600 & echo $$ $! > pids.part; mv pids.part pids; wait"
WAITER = """
import os, sys
sys.path[:0] = {path!r}
from mats_ds.distributed.process_group import Stopped, run_in_group
try:
    sys.exit(run_in_group(["bash", "-c", {command!r}], os.environ))
except Stopped as stopped:
    print(stopped, flush=True)
    sys.exit(128 + stopped.number)
"""


def start(folder: Path, command: str, *above: str) -> subprocess.Popen:
    words = [*above, sys.executable, "-c", WAITER.format(path=sys.path, command=command)]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)


def wait_for(is_so, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_family(folder: Path) -> list[int]:
    wait_for((folder / "pids").exists)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


@pytest.mark.parametrize(("command", "status"), [("exit 0", 0), ("exit 75", 75), ("kill -KILL $$", 137), ("kill -INT $$", 130)])
def test_the_status_comes_back_as_a_shell_has_it(command, status):
    assert run_in_group(["bash", "-c", command], os.environ) == status


def test_a_command_that_ends_leaves_nobody_of_its_group(tmp_path):
    job = start(tmp_path, "sleep 600 & echo $! > pids; exit 3")
    assert job.wait(timeout=60) == 3
    assert not any(map(is_running, read_family(tmp_path)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_group_and_is_the_status(tmp_path, number):
    job = start(tmp_path, FAMILY)
    family = read_family(tmp_path)
    job.send_signal(number)
    assert job.communicate(timeout=60)[0] == f"stopped by {number.name}\n"
    assert job.returncode == 128 + number
    assert not any(map(is_running, family))


def test_a_second_signal_changes_nothing(tmp_path):
    job = start(tmp_path, f"trap 'sleep 1; exit 75' TERM; {FAMILY}")
    family = read_family(tmp_path)
    for _ in range(3):
        job.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert job.wait(timeout=60) == 130
    assert not any(map(is_running, family))


def test_a_signal_that_was_ignored_before_stays_ignored(tmp_path):
    job = start(tmp_path, FAMILY, "nohup")
    family = read_family(tmp_path)
    job.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert job.poll() is None and all(map(is_running, family))
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143


# its worker ends with 70 + the number of its signals, once there are as many as its argument has it
WORKER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
open("pids.part", "w").write(str(os.getpid()))
os.rename("pids.part", "pids")
for number in range(1, int(sys.argv[1]) + 1):
    signal.sigwait([signal.SIGINT])
    open(f"signal-{number}", "w").close()
sys.exit(70 + number)
"""
WITH_WORKERS = """
import os, sys
sys.path[:0] = {path!r}
from mats_ds.distributed.process_group import Stopped, run_in_group
try:
    run_in_group(["bash", "-c", {command!r}], os.environ, find_workers=lambda child: [int(open("pids").read())])
except Stopped as stopped:
    print(stopped, stopped.status, stopped.is_answered, flush=True)
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_workers_get_every_ctrl_c_before_the_command_does_which_ends_with_their_status(tmp_path, signals):
    (tmp_path / "worker.py").write_text(WORKER)
    command = f"{sys.executable} worker.py {signals} & wait $!"
    words = [sys.executable, "-c", WITH_WORKERS.format(path=sys.path, command=command)]
    job = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    read_family(tmp_path)
    for number in range(1, signals + 1):
        job.send_signal(signal.SIGINT)
        wait_for((tmp_path / f"signal-{number}").exists)
    assert job.communicate(timeout=60)[0] == f"stopped by SIGINT {70 + signals} True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_command_ends_with_a_process_that_is_killed(tmp_path):
    job = start(tmp_path, "echo $$ > pids.part; mv pids.part pids; exec sleep 600")
    (child,) = read_family(tmp_path)
    job.kill()
    job.wait()
    wait_for(lambda: not is_running(child))


def test_ranks_that_answer_have_time_for_the_longest_answer():
    from mats_ds.core.cli import EXIT_SECONDS
    from mats_ds.distributed.process_group import ANSWER_SECONDS
    from mats_ds.distributed.watchdog import SIGTERM_SECONDS

    assert ANSWER_SECONDS > SIGTERM_SECONDS + EXIT_SECONDS, "else they save, and the command ends by the signal"
