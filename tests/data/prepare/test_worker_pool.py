"""Workers: nothing that a task does to its worker costs more than that task, and no worker outlives
the run."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from mats_ds.data.prepare import worker_pool
from mats_ds.data.prepare.worker_pool import Failure, WorkersFailed, run_tasks

ROOT = Path(__file__).resolve().parents[3]
TASKS = """
import os, sys, time

def work(task, *, on_heartbeat):
    if "crash" in task:
        os.abort()
    if "killed" in task:
        os.kill(os.getpid(), 9)
    if "exit" in task:
        sys.exit("no more")
    if "fault" in task:
        raise TypeError("wrong " + task)
    if "hang" in task:
        time.sleep(1000)
    if "stop" in task:
        os.kill(os.getpid(), 19)
    if "slow" in task:
        for _ in range(25):
            time.sleep(0.1)
            on_heartbeat()
    if "large" in task:
        return "x" * 5_000_000
    if "loaded" in task:
        return sorted({"torch", "deepspeed", "nvidia.dali", "pydantic"} & set(sys.modules))
    print("whatever a library prints")
    return task.upper(), os.getpid()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """`work` of TASKS, importable here and in workers."""
    (tmp_path / "pool_tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("pool_tasks").work
    del sys.modules["pool_tasks"]


def run(work, tasks, *, num_workers=1, timeout_seconds=60.0):
    return dict(run_tasks(work, tasks, num_workers=num_workers, timeout_seconds=timeout_seconds))


def children_of(parent):
    """Processes whose parent this is, those aside that have ended."""
    children = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent_of = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent_of) == parent and state != "Z":
            children.append(int(entry))
    return children


def is_running(process):
    """Whether a process lives; one that ends is given a moment."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


def test_every_task_has_its_result_and_a_worker_does_many(work):
    results = run(work, [f"a{number}" for number in range(9)], num_workers=2)
    assert {task: result[0] for task, result in results.items()} == {f"a{number}": f"A{number}" for number in range(9)}
    assert 1 <= len({process for _, process in results.values()}) <= 2
    assert run(work, []) == {}


@pytest.mark.slow
def test_a_worker_that_dies_or_hangs_costs_one_task(work):
    tasks = ["a", "crash", "b", "fault", "hang", "killed", "c", "slow", "stop", "exit", "d"]
    results = run(work, tasks, num_workers=2, timeout_seconds=2.0)
    failures = {task: result.reason for task, result in results.items() if isinstance(result, Failure)}
    assert sorted(results) == sorted(tasks) and set(tasks) - set(failures) == {"a", "b", "c", "d", "slow"}
    assert "crashed" in failures["crash"] and "SIGABRT" in failures["crash"]
    assert "killed" in failures["killed"] and "SIGKILL, perhaps out of memory" in failures["killed"]
    assert "TypeError: wrong fault" in failures["fault"] and "no more" in failures["exit"]
    assert failures["hang"] == failures["stop"] == "given up: no frame came for 2 s"


def test_results_and_tasks_may_be_large(work):
    long = "b" * 3_000_000
    results = run(work, ["large", long])
    assert len(results["large"]) == 5_000_000 and results[long][0] == long.upper()


def test_workers_do_not_load_what_this_process_has(work):
    assert run(work, ["loaded"]) == {"loaded": []}


@pytest.mark.parametrize("module", ["checking.check_set", "copying.copy_task"])
def test_what_workers_do_needs_neither_torch_nor_dali(module):
    code = f"import sys, mats_ds.data.prepare.{module}\n"
    code += "print(*({'torch', 'deepspeed', 'nvidia.dali', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_workers_that_cannot_start_end_the_run_with_their_last_error(work, monkeypatch):
    monkeypatch.setattr(worker_pool, "SERVE", "raise SystemExit('no libav here')")
    with pytest.raises(WorkersFailed, match=r"exit status 1: no libav here"):
        run(work, ["a", "b"])


def test_workers_that_are_killed_while_they_start_are_replaced(work, monkeypatch):
    start, killed = worker_pool._Worker.__init__, []

    def start_and_kill(self, function):
        start(self, function)
        if len(killed) < 2:
            os.kill(self.process.pid, signal.SIGKILL)
            killed.append(self.process.pid)

    monkeypatch.setattr(worker_pool._Worker, "__init__", start_and_kill)
    results = run(work, ["a", "b"], num_workers=2)
    assert len(killed) == 2 and {result[0] for result in results.values()} == {"A", "B"}


def test_a_worker_that_is_killed_between_two_tasks_costs_none(work, monkeypatch):
    send, killed = worker_pool._Worker.send, []

    def kill_and_send(self, message):
        if message == "b" and not killed:
            killed.append(self.process.pid)
            self.process.kill()
            self.process.wait()
        return send(self, message)

    monkeypatch.setattr(worker_pool._Worker, "send", kill_and_send)
    results = run(work, ["a", "b", "c"])
    assert killed and {result[0] for result in results.values()} == {"A", "B", "C"}


def test_a_worker_that_is_killed_from_outside_costs_the_task_that_it_has(work, monkeypatch):
    send = worker_pool._Worker.send

    def send_and_kill(self, message):
        sent = send(self, message)
        if message == "slow b":
            os.kill(self.process.pid, signal.SIGKILL)
        return sent

    monkeypatch.setattr(worker_pool._Worker, "send", send_and_kill)
    results = run(work, ["a", "slow b", "c"])
    assert "SIGKILL" in results["slow b"].reason and results["a"][0] == "A" and results["c"][0] == "C"


def test_an_early_end_leaves_no_worker(work):
    with closing(run_tasks(work, ["a", "b", "hang", "hang 2"], num_workers=3, timeout_seconds=60.0)) as results:
        workers = {next(results)[1][1], next(results)[1][1]}
    assert not any(map(is_running, workers))
    assert not any("worker_pool" in Path(f"/proc/{child}/cmdline").read_text() for child in children_of(os.getpid()))


def test_workers_end_with_their_parent(work, tmp_path):
    """However it ends: nobody closes anything for it. One worker is at a task, the other waits for
    one."""
    code = (
        "import os, sys, pool_tasks; from mats_ds.data.prepare.worker_pool import run_tasks\n"
        "results = run_tasks(pool_tasks.work, ['a', 'hang', 'b', 'c'], num_workers=2, timeout_seconds=60.0)\n"
        "for _, (_, process) in results: print(process, flush=True)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        workers = {int(parent.stdout.readline()) for _ in range(3)}
        deadline = time.monotonic() + 60
        while len(children := children_of(parent.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    assert children and not any(map(is_running, {*workers, *children}))


def test_workers_ignore_ctrl_c(work, monkeypatch):
    """It reaches the whole group of processes; the parent decides."""
    send = worker_pool._Worker.send

    def send_and_interrupt(self, message):
        sent = send(self, message)
        if message == "slow":
            os.kill(self.process.pid, signal.SIGINT)
        return sent

    monkeypatch.setattr(worker_pool._Worker, "send", send_and_interrupt)
    assert run(work, ["slow"])["slow"][0] == "SLOW"
