"""A journal keeps every line, whatever a kill has done to its end, and has one writer at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds.data.prepare.journal import open_journal, read_entries, resumable
from mats_ds.data.prepare.worker_pool import WorkersFailed

ROOT = Path(__file__).resolve().parents[3]


def add(path, *lines):
    with open_journal(path, command="check") as journal:
        before = journal.lines
        for line in lines:
            journal.add(line)
    return before


def test_lines_are_added_and_read_back(tmp_path):
    path = tmp_path / "a.journal"
    assert add(path, '{"a": 1}', '{"a": 2}') == [""]
    assert list(read_entries(add(path, '{"a": 3}'))) == [{"a": 1}, {"a": 2}]
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'


@pytest.mark.parametrize("torn", ['{"a": 1}\n{"a": 2, "b', '{"a": 1}\n[2]\nnull\n{"a"', '\n{"a": 1}\n{"b": \xff'])
def test_a_torn_line_and_those_of_others_are_passed_over(tmp_path, torn):
    path = tmp_path / "a.journal"
    path.write_bytes(torn.encode("latin-1"))
    assert list(read_entries(add(path))) == [{"a": 1}]
    assert path.read_bytes() == torn.encode("latin-1")  # who adds nothing changes nothing
    add(path, '{"a": 3}', '{"a": 4}')
    assert list(read_entries(add(path))) == [{"a": 1}, {"a": 3}, {"a": 4}]


def test_a_line_without_its_end_is_kept(tmp_path):
    """As version 0.1 leaves those of a transcoding."""
    path = tmp_path / "a.journal"
    path.write_text('\n{"a": 1}\n{"a": 2}')
    add(path, '{"a": 3}')
    assert list(read_entries(add(path))) == [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize("names_itself", [True, False])
def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path, names_itself):
    path, holder = tmp_path / "a.journal", tmp_path / ".a.lock"
    code = "import sys; from pathlib import Path; from mats_ds.data.prepare.journal import open_journal\n"
    code += "with open_journal(Path('a.journal'), command='check', holder=Path('.a.lock')): pass"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open_journal(path, command="check", holder=holder if names_itself else None):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "another check is writing a.journal" in told
    assert (f"process {os.getpid()}" in told) == names_itself
    assert not holder.exists()
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment).returncode == 0


@pytest.mark.parametrize("left", ["", "mine"])
def test_a_file_of_somebody_else_with_the_holders_name_stays(tmp_path, left):
    (tmp_path / ".a.lock").write_text(left)
    with open_journal(tmp_path / "a.journal", command="check", holder=tmp_path / ".a.lock"):
        pass
    assert (tmp_path / ".a.lock").read_text() == left


def test_no_link_is_written_through(tmp_path):
    (tmp_path / "thesis").write_text("mine")
    (tmp_path / "a.journal").symlink_to("thesis")
    with pytest.raises(ValueError, match="a.journal is a symbolic link"):
        add(tmp_path / "a.journal", json.dumps({"a": 1}))
    assert (tmp_path / "thesis").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WorkersFailed("worker processes do not start"), ["do not start", "what was copied so far is kept"]),
        (OSError(28, "No space left on device", "/x/y"), ["/x/y: No space left on device", "the same command goes on"]),
    ],
)
def test_an_early_end_says_what_is_kept(error, words):
    with pytest.raises(ValueError) as raised, resumable("copied", journal="out/copies.jsonl"):
        raise error
    assert all(word in str(raised.value) for word in words)


def test_sigterm_ends_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt, match="the same command goes on.*m.csv.journal"),
        resumable("checked", journal="m.csv.journal"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
