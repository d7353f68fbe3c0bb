"""A signal ends a program with one line and 128 + its number, while it imports, works or is busy in
C; never with a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.core.cli import run_script
from mats_ds.core.interrupts import Signalled, begin_script, raise_signals

ROOT = Path(__file__).resolve().parents[2]
IMPORTING = (
    "import sys, time; from mats_ds.core.interrupts import begin_script; begin_script(); print('now', flush=True); time.sleep(60)"
)
WORKING = """
import sys, time
from mats_ds.core.cli import leave, run_script
def work():
    try:
        print('now', flush=True)
        time.sleep(60)
    finally:
        print('put away', flush=True)
        {at_the_end}
leave(run_script(work, advice='mend it', standing=lambda: 'step 4 is saved'))
"""
# system(3) goes on waiting for its child, which says `now`: no Python runs in the main thread
# meanwhile
BUSY = """
import ctypes
from mats_ds.core import interrupts
from mats_ds.core.cli import run_script
interrupts.GRACE_SECONDS = 0.2
def work():
    ctypes.CDLL(None).system(b'echo now; exec sleep 20 > /dev/null 2>&1')
run_script(work)
"""


def end(code, *numbers):
    """Its status and what it said, after it said `now` and got these signals."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "now\n"
    for place, number in enumerate(numbers):
        process.send_signal(number)
        if len(numbers) > 1 and place == 0:
            assert process.stdout.readline() == "put away\n"
    out, error = process.communicate(timeout=120)
    assert "Traceback" not in error and error.count("\n") == 1, error
    return process.returncode, out, error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_imports_nothing_is_begun(number):
    status, _, error = end(IMPORTING, number)
    assert status == 128 + number and number.name in error and "nothing was written" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_works_it_puts_its_things_away_and_says_what_stands(number):
    status, out, error = end(WORKING.format(at_the_end=""), number)
    assert (status, out) == (128 + number, "put away\n") and error.endswith(": step 4 is saved\n")


def test_a_second_ctrl_c_ends_it_at_once():
    status, _, error = end(WORKING.format(at_the_end="time.sleep(60)"), signal.SIGINT, signal.SIGINT)
    assert status == 130 and "at once" in error


def test_the_signal_that_a_launcher_passes_on_does_not_disturb_the_end():
    status, _, error = end(WORKING.format(at_the_end="time.sleep(0.5)"), signal.SIGINT, signal.SIGTERM)
    assert status == 130 and "step 4 is saved" in error


def test_code_that_is_not_pythons_is_not_waited_for():
    status, _, error = end(BUSY, signal.SIGTERM)
    assert status == 143 and "at once" in error


def test_only_one_rank_of_a_machine_speaks(monkeypatch, capsys):
    def interrupted():
        raise Signalled(signal.SIGTERM)

    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert run_script(interrupted) == 143
        assert capsys.readouterr().err.count("\n") == lines


def test_handlers_are_as_before_afterwards_and_an_ignored_signal_stays_ignored():
    before = signal.getsignal(signal.SIGINT)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raise_signals():
            assert signal.getsignal(signal.SIGINT) is not before and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(Signalled):
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
        assert signal.getsignal(signal.SIGINT) is before and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        begin_script()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
