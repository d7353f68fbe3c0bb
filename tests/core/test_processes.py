"""A process is known by what no clock changes."""

import os
import subprocess
import sys
from dataclasses import replace

from mats_ds.core import processes
from mats_ds.core.processes import has_ended, identify_process, read_start_ticks


def test_this_process_runs_and_another_of_its_number_does_not():
    me = identify_process()
    assert (me.process, me.start_ticks) == (os.getpid(), read_start_ticks(os.getpid())) and me.start_ticks > 0
    assert has_ended(me) is False
    assert has_ended(replace(me, start_ticks=me.start_ticks + 1)) is True, "its number was given to another one"
    assert has_ended(replace(me, boot="before")) is True
    assert has_ended(replace(me, host="another")) is None and has_ended(replace(me, namespace="pid:[1]")) is None


def test_a_process_that_nobody_has_waited_for_has_ended():
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    identity = identify_process(child.pid)
    assert has_ended(identity) is False
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert has_ended(identity) is True
    child.wait()


def test_a_name_of_a_process_may_hold_anything(tmp_path, monkeypatch):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) S 1 2) R " + " ".join(str(number) for number in range(1, 40)))
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert read_start_ticks(7) == 19
    assert read_start_ticks(8) is None
