"""`prepare.py transcode` from the command line: what it prints, what it writes, how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.data.video.indexing import index_video
from mats_ds.prepare import main

ROOT = Path(__file__).resolve().parents[1]


def write_video(path, *, num_frames=40, height=48, width=80):
    """Twenty frames a second of moving noise, a keyframe every 12."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 12
        for number in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, number, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    for name in ("jump/a.mp4", "jump/b.mp4", "run/c.mp4"):
        write_video(tmp_path / "videos" / name)
    return tmp_path / "videos"


def transcode(*arguments):
    return main(["transcode", *map(str, arguments)])


def test_copies_a_folder_and_says_what_it_came_to(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert transcode(folder, "--out", out, "--short_side", 32, "--gop", 6, "--workers", 2) == 0
    text = capsys.readouterr().out
    assert (
        "3 of 3 files copied" in text and "bytes: " in text and "expected speed-up" in text and str(out / "manifest.csv") in text
    )
    copies = read_manifest(out / "manifest.csv")
    assert [os.path.relpath(path, out) for path in copies.paths] == ["jump/a.mp4", "jump/b.mp4", "run/c.mp4"]
    assert copies.label_S.tolist() == [0, 0, 1]  # the class folders' numbers
    assert index_video(copies.paths[0]).height == 32
    assert transcode(folder, "--out", out, "--short_side", 32, "--gop", 6) == 0
    assert "(3 from an earlier run)" in capsys.readouterr().out


def test_paths_start_at_the_root_if_one_is_given(folder, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("jump/b.mp4 5\n")
    assert transcode(tmp_path / "lists" / "train.txt", "--root", folder, "--out", tmp_path / "out", "--workers", 1) == 0
    assert (tmp_path / "out" / "manifest.csv").read_text() == "path,label,start,end\njump/b.mp4,5,,\n"


def test_a_dry_run_shows_and_writes_nothing(folder, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert transcode(folder, "--out", tmp_path / "out", "--dry_run") == 0
    text = capsys.readouterr().out
    sides = ("sides are multiples of 16", "5% of a picture is cut off", "nothing is stretched", "BT.601")
    for words in ("3 files", "a.mp4", "short side at most 256", "every 16 frames", "crf=23", "estimated bytes: ", *sides):
        assert words in text
    assert transcode(folder, "--out", tmp_path / "out", "--dry_run", "--short_side", 250) == 0
    assert "250 is no multiple of 16: PyAV decodes such copies" in capsys.readouterr().out
    assert transcode(folder, "--out", tmp_path / "out", "--keep", "--segment", 0.7) == 0
    assert "can be cut" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_file_is_listed_and_ends_with_1(folder, tmp_path, capsys):
    (folder / "run" / "broken.mp4").write_text("no video")
    assert transcode(folder, "--out", tmp_path / "out", "--workers", 1) == 1
    text = capsys.readouterr().out
    assert "3 of 4 files copied" in text and "failed: " in text and "broken.mp4" in text
    assert "broken.mp4" in (tmp_path / "out" / "failed.csv").read_text()


def test_cuts_without_reencoding(folder, tmp_path, capsys):
    assert transcode(folder, "--out", tmp_path / "out", "--segment", 1, "--workers", 1) == 0
    assert "3 of 3 files copied as 6 segments" in capsys.readouterr().out
    copies = read_manifest(tmp_path / "out" / "manifest.csv")
    assert [index_video(path).num_frames for path in copies.paths] == 3 * [24, 16]


def test_ctrl_c_ends_in_words(folder, monkeypatch, tmp_path, capsys):
    def stop(*how, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("mats_ds.data.prepare.copying.copies.run_tasks", stop)
    assert transcode(folder, "--out", tmp_path / "out") == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--short_side", "255"], "even"),
        (["--gop", "0"], "gop"),
        (["--crf", "99"], "crf"),
        (["--workers", "0"], "worker"),
        (["--timeout", "0"], "--timeout is at least 1 s"),
        (["--segment", "0"], "0.1 seconds"),
        (["--reencode"], "--segment"),
        (["--segment", "1", "--keep-partial"], "--keep_partial"),
        (["--root", "/nowhere"], "/nowhere"),
        (["--out", "{videos}"], "lies inside"),
        (["--out", "{videos}/jump/copies"], "lies inside"),
        (["--out", "{videos}/jump/a.mp4"], "lies inside"),
    ],
)
def test_a_mistake_ends_with_2_and_writes_nothing(wrong, words, folder, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.format(videos=folder) for argument in wrong]
    assert transcode(folder, "--out", tmp_path / "out", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and words in told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_goes_on_after_it_was_ended(tmp_path, sent, status):
    folder, out = tmp_path / "videos", tmp_path / "out"
    for number in range(8):
        write_video(folder / f"{number}.mp4", num_frames=60, height=192, width=256)
    command = [sys.executable, "mats_ds/prepare.py", "transcode", str(folder), "--out", str(out), "--workers", "1"]
    # An ignored SIGINT, as background jobs of a shell have it, would be inherited.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not (out / "1.mp4").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    told = process.communicate()[1]
    assert process.returncode == status
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    assert 1 <= len(done) < 8
    if status == 130:
        assert "the same command goes on" in told and "Traceback" not in told
        assert not list(out.glob(".*.part")) and not (out / ".lock").exists()
    else:
        time.sleep(2.5)  # its worker ends by itself
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    kept = sum((out / name).stat().st_mtime_ns == changed for name, changed in done.items())
    assert "8 of 8 files copied (" in again.stdout and kept >= len(done) - 1
    assert len(list(out.glob("*.mp4"))) == 8 and not list(out.glob(".*.part"))
