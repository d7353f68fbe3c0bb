"""What a rank looks at to know that it is not alone in the dark."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from mats_ds.training.guard import find_launchers

SCRIPT = "import sys; sys.path[:0] = {path!r}; from mats_ds.training.guard import find_launchers; print(len(find_launchers()))"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("torchrun", 1), ("deepspeed", 1), ("mydeepspeed.py", 0)])
def test_a_launcher_is_known_by_its_name(tmp_path, name, expected):
    launcher = tmp_path / "deepspeed-experiments" / name
    launcher.parent.mkdir()
    child = [sys.executable, "-c", SCRIPT.format(path=sys.path)]
    launcher.write_text(f"import subprocess, sys; sys.exit(subprocess.call({child!r}))")
    found = subprocess.run([sys.executable, "-u", str(launcher)], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip().splitlines()[-1] == str(expected)


def test_a_test_has_no_launcher():
    assert all(process.pid != psutil.Process().pid for process in find_launchers())
    assert find_launchers() == []
