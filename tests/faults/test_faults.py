"""The short form of tests/faults/run.sh: real processes that are killed, signalled, torn and moved
to another number of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_to_the_bit_whatever_was_done_to_it(tmp_path):
    pytest.importorskip("deepspeed")
    job = subprocess.run(
        [sys.executable, RUN, "--short", "--out", tmp_path], capture_output=True, text=True, timeout=800, check=False
    )
    assert job.returncode == 0, job.stdout + job.stderr
    rows = json.loads((tmp_path / "faults.json").read_text())
    assert len(rows) == 4 and "4 kinds of faults" in (tmp_path / "faults.md").read_text()
    kills, ranks, signalled, torn = rows
    assert kills["fault"].startswith("SIGKILL of a rank, 3 random moments") and kills["difference"] == 0
    assert 0 < ranks["difference"] <= 1e-4 and "2, 1" in ranks["fault"]
    assert (signalled["status"], signalled["lost_steps"], signalled["difference"]) == ("75", 0, 0)
    assert "is skipped" in torn["words"] and torn["difference"] == 0
