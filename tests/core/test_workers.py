"""A worker's Python finds the packages that its parent has, and nothing of the folder where
somebody stands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mats_ds
from mats_ds.core import workers
from mats_ds.core.workers import describe_death, describe_status, python_command

CODE = "import sys; sys.path[:] = sys.argv[2:]; import mats_ds, json, numpy; print(sys.argv[1], mats_ds.__file__, json.__file__)"


def run(command: list[str], *, folder: Path, **environment: str) -> list[str]:
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("environment", [{}, {"PYTHONSAFEPATH": "1"}, {"PYTHONPATH": ""}])
def test_packages_are_found_where_this_process_has_them(tmp_path, environment):
    for name in ("json.py", "mats_ds.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the user')")
    word, package, module = run(python_command(CODE, "word"), folder=tmp_path, **environment)
    assert (word, package) == ("word", mats_ds.__file__) and not module.startswith(str(tmp_path))


@pytest.mark.parametrize("entry", ["", None])
def test_a_package_that_was_found_in_the_current_folder_is_found_from_any(tmp_path, monkeypatch, entry):
    root = str(Path(mats_ds.__file__).parents[1])
    others = [path for path in sys.path if path not in ("", root)]
    monkeypatch.setattr(sys, "path", others if entry is None else [entry, *others])
    assert run(python_command(CODE, "word"), folder=tmp_path)[1] == mats_ds.__file__


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        (None, ["not known"]),
        (3, ["exit status 3"]),
        (-signal.SIGKILL, ["was killed", "out of memory"]),
        (-signal.SIGSEGV, ["crashed", "11", "SIGSEGV"]),
        (-63, ["crashed", "signal 63"]),
    ],
)
def test_the_end_of_a_worker_is_told_in_words(status, facts):
    text = describe_death(status, describe_status(status))
    assert all(fact in text for fact in facts)


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(24), raising=False)
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert workers.default_workers() == workers.MAX_WORKERS
    monkeypatch.setenv("LOCAL_SIZE", "8")  # DeepSpeed's launcher
    assert workers.default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")  # torchrun
    assert workers.default_workers() == 1
