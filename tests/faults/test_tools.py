"""The tools of the faults do what their rows say: a clock that is wrong, permissions that count, a
death at the right moment."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.beside import DAY_SECONDS, FaultyClock
from tests.faults.scene import Row

ROOT = Path(__file__).resolve().parents[2]


def run_here(code: str, folder: Path) -> subprocess.CompletedProcess:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_clock_jumps_both_ways_for_those_who_run_under_it(tmp_path):
    clock = FaultyClock(tmp_path / "clock")
    for days in (0, 10, -10):
        clock.jump(days * DAY_SECONDS)
        assert abs(clock.now() - time.time() - days * DAY_SECONDS) < DAY_SECONDS / 2


def test_without_privileges_a_closed_folder_takes_nothing(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    code = "from tests.faults.harness import drop_privileges; drop_privileges(); open('closed/x', 'w')"
    done = run_here(code, tmp_path)
    assert "PermissionError" in done.stderr and not list(closed.iterdir())


@pytest.mark.parametrize("is_before", [True, False])
def test_the_kill_comes_before_or_after_latest_has_moved_the_second_time(tmp_path, is_before):
    code = (
        f"from tests.faults.harness import kill_at_latest; kill_at_latest(is_before={is_before})\n"
        "import os, pathlib\n"
        "for number in range(3):\n"
        "    for name in ('other', 'latest'):\n"
        "        pathlib.Path('aside').write_text(str(number))\n"
        "        os.replace('aside', name)\n"
    )
    assert run_here(code, tmp_path).returncode == -signal.SIGKILL
    assert (tmp_path / "latest").read_text() == ("0" if is_before else "1")


def test_a_row_is_judged_by_its_end_its_losses_its_words_and_its_status():
    good = dict(fault="x", status="75", end_seconds=1.0, lost_steps=0, difference=0.0, words="all is saved")
    assert Row(**good, expected="saved", wanted_status="75").problem() is None
    assert "alive" in Row(**good | {"end_seconds": None}).problem()
    assert "differ by 0.1" in Row(**good | {"difference": 0.1}).problem()
    assert "differ by nan" in Row(**good | {"difference": float("nan")}).problem()
    assert "'torn'" in Row(**good, expected="torn").problem()
    assert "exit status 75, expected 2" in Row(**good, wanted_status="2").problem()
