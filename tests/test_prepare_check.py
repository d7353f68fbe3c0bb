"""`prepare.py check` as a person runs it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.prepare import main

ROOT = Path(__file__).resolve().parents[1]
NUM_MANY = 250  # files to check: more than a fast machine checks before it is interrupted


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of 12 small videos."""
    return write_synthetic_set(
        tmp_path_factory.mktemp("videos") / "set", num_videos=12, num_frames=24, height=48, width=80
    ).parent


def check(*arguments):
    return main(["check", *map(str, arguments)])


def test_all_files_are_good(videos, tmp_path, capsys):
    assert check(videos, "--out", tmp_path / "m.csv", "--workers", 2) == 0
    printed = capsys.readouterr().out
    assert "12 readable files" in printed and "NVDEC (GPU)   PyAV (CPU)" in printed
    assert "Quarantine: none of 12 rows." in printed and f"train with data.manifest={tmp_path}/m.csv" in printed
    assert len(read_manifest(tmp_path / "m.csv")) == 12
    assert (tmp_path / "quarantine.csv").read_text() == "path,label,reason\n"


def test_some_files_are_bad(videos, tmp_path, capsys):
    (tmp_path / "page.mp4").write_text("<html>not found</html>")
    (tmp_path / "list.txt").write_text(
        f"{videos}/{next(videos.glob('**/*.mp4')).relative_to(videos)} 0\npage.mp4 1\ngone.mp4 2\n"
    )
    asked = tmp_path / "list.txt", "--out", tmp_path / "m.csv", "--quarantine", tmp_path / "bad.csv"
    assert check(*asked) == 0, "it has done its work"
    printed = capsys.readouterr().out
    assert "2 of 3 rows." in printed
    assert "1  an HTML page, not a video: the download was answered with a page\n" in printed
    assert len((tmp_path / "bad.csv").read_text().splitlines()) == 3
    assert check(*asked, "--strict") == 1
    assert check(videos, "--out", tmp_path / "good.csv", "--strict") == 0


def test_a_second_run_decodes_nothing_unless_told_to(videos, tmp_path, capsys):
    for arguments, num_decoded in (((), 12), ((), 0), (("--restart",), 12)):
        assert check(videos, "--out", tmp_path / "m.csv", *arguments) == 0
        assert f"{num_decoded} files decoded in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "m.csv"], "no manifest at nowhere"),
        ([".", "--out", "m.csv"], "no video below"),
        (["m.csv", "--out", "m.csv"], "is the source itself"),
        (["{videos}", "--out", "m.csv", "--workers", "0"], "--workers is at least 1, got 0"),
        (["{videos}", "--out", "m.csv", "--timeout", "-1"], "above 0, got -1"),
        (["{videos}", "--out", ".", "--root", "."], "is a folder"),
    ],
)
def test_unusable_arguments(videos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert check(*(argument.format(videos=videos) for argument in arguments)) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("m.csv*"))


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_run_leaves_no_process_and_can_go_on(videos, tmp_path, sent, status):
    many = tmp_path / "many"
    many.mkdir()
    originals = sorted(videos.glob("**/*.mp4"))
    for number in range(NUM_MANY):
        os.link(originals[number % len(originals)], many / f"{number}.mp4")
    command = [sys.executable, str(ROOT / "mats_ds" / "prepare.py"), "check", str(many), "--out", str(tmp_path / "m.csv")]
    # An ignored SIGINT, as background jobs of a shell have it, would be inherited.
    running = subprocess.Popen(
        [*command, "--workers", "2"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    journal = tmp_path / "m.csv.journal"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 5)
    running.send_signal(sent)
    assert running.wait(60) == status
    if status == 130:
        assert b"the same command goes on" in running.stderr.read()
    running.stderr.close()
    wait_until(lambda: not processes_of_session(running.pid))
    *lines, _torn = journal.read_bytes().split(b"\n")
    known = {json.loads(line)["path"] for line in lines}
    unknown = [path for path in many.iterdir() if str(path) not in known]
    assert len(known) == len(lines) == NUM_MANY - len(unknown)
    for path in unknown[7:]:
        path.unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(unknown[:7])} files decoded" in done.stdout and f"{len(known) + len(unknown[:7])} readable files" in done.stdout


def wait_until(is_true):
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_of_session(session):
    """Process ids of a session, those aside that have ended and wait to be collected."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, _, member_of = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(member_of) == session and state != "Z":
            found.append(entry)
    return found
