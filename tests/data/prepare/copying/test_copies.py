"""A folder of copies: the same tree, the same labels and times, failures named, nothing done twice,
originals untouched."""

import csv
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare import worker_pool
from mats_ds.data.prepare.copying import copies, copy_plan
from mats_ds.data.prepare.copying.copies import make_copies
from mats_ds.data.prepare.copying.copy_plan import plan_copies
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video

SLOW = """
import time
from mats_ds.data.prepare.copying.copy_task import copy_one

def copy_slowly(task, *, on_heartbeat):
    def wait_and_report():
        time.sleep(0.06)
        on_heartbeat()

    return copy_one(task, on_heartbeat=wait_and_report)
"""


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fingerprints(folder):
    """Hash and time of change of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def videos(write_video, tmp_path):
    """Four sound files in two folders, with a manifest."""
    folder = tmp_path / "videos"
    for name, how in (("x/a.mp4", {"b_frames": 2}), ("x/b.avi", {}), ("y/c.mkv", {"gop": 250}), ("y/long.mp4", {})):
        write_video(folder / name, **how, num_frames=80 if name.startswith("y") else 40)
    (folder / "list.csv").write_text(
        "path,label,start,end\nx/a.mp4,3,,\nx/b.avi,0,0.5,1.25\ny/c.mkv,,,\ny/long.mp4,7,2.0,\nx/a.mp4,4,1,\n"
    )
    return folder


@pytest.fixture
def without_workers(monkeypatch):
    """Copies are made in this process: for what is the same however they are made."""
    monkeypatch.setattr(copies, "run_tasks", lambda function, tasks, **_: ((task, function(task)) for task in tasks))


def copy_list(videos, out, **how):
    return make_copies(read_manifest(videos / "list.csv"), out, base=videos, **how)


def test_keeps_tree_labels_and_times(videos, tmp_path):
    before = fingerprints(videos)
    summary = copy_list(videos, tmp_path / "out", num_workers=2)
    rows = read_table(summary.manifest)
    assert [tuple(row.values()) for row in rows] == [
        ("x/a.mp4", "3", "", ""),
        ("x/b.mp4", "0", "0.5", "1.25"),
        ("y/c.mp4", "", "", ""),
        ("y/long.mp4", "7", "2", ""),
        ("x/a.mp4", "4", "1", ""),
    ]
    written = read_manifest(summary.manifest)
    assert [index_video(path).num_frames for path in written.paths] == [40, 40, 80, 80, 40]
    assert (summary.num_files, summary.num_reused, summary.failed) == (4, 0, {})
    assert summary.source_bytes == sum(path.stat().st_size for path in videos.rglob("*.*") if path.suffix != ".csv")
    assert summary.speed.num_files == 4 and summary.speed.ratio > 0
    assert not (tmp_path / "out" / "failed.csv").exists()
    assert fingerprints(videos) == before


@pytest.mark.usefixtures("without_workers")
def test_does_nothing_twice(videos, write_video, tmp_path):
    out = tmp_path / "out"
    copy_list(videos, out)
    first = fingerprints(out)
    again = copy_list(videos, out)
    assert again.num_reused == 4 and fingerprints(out)[str(out / "x/a.mp4")] == first[str(out / "x/a.mp4")]

    write_video(videos / "x/b.avi", num_frames=30)
    (out / "y/c.mp4").unlink()
    with open(out / "copies.jsonl", "a") as journal:
        journal.write('\n{"source": "torn li')
    third = copy_list(videos, out)
    assert third.num_reused == 2 and index_video(str(out / "x/b.mp4")).num_frames == 30 and (out / "y/c.mp4").exists()
    assert {path for path, mark in fingerprints(out).items() if path.endswith(".mp4") and first[path] != mark} == {
        str(out / "x/b.mp4"),
        str(out / "y/c.mp4"),
    }
    assert copy_list(videos, out).num_reused == 4
    assert copy_list(videos, out, settings=CopySettings(gop=6)).num_reused == 0


def test_names_every_failure_and_goes_on(videos, tmp_path):
    (videos / "x/b.avi").write_bytes(b"no video")
    (videos / "y/c.mkv").unlink()
    summary = copy_list(videos, tmp_path / "out", num_workers=2)
    failed = read_table(tmp_path / "out" / "failed.csv")
    assert [Path(row["path"]).name for row in failed] == ["b.avi", "c.mkv"] and all(row["reason"] for row in failed)
    assert [row["path"] for row in read_table(summary.manifest)] == ["x/a.mp4", "y/long.mp4", "x/a.mp4"]
    text = "\n".join(summary.lines())
    assert "2 of 4 files copied" in text and "b.avi" in text and "c.mkv" in text


def test_a_killed_worker_costs_one_file_which_is_named_and_tried_again(videos, monkeypatch, tmp_path):
    send = worker_pool._Worker.send

    def send_and_kill(self, message):
        sent = send(self, message)
        if getattr(message, "source", "").endswith("b.avi"):
            os.kill(self.process.pid, signal.SIGKILL)
            Path(message.target).parent.mkdir(exist_ok=True)
            # as it may have begun to write
            message.publisher.open_part(Path(message.target).parent)
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(worker_pool._Worker, "send", send_and_kill)
        summary = copy_list(videos, tmp_path / "out")
    assert list(summary.failed) == [str(videos / "x/b.avi")]
    assert "SIGKILL" in summary.failed[str(videos / "x/b.avi")]
    assert not list((tmp_path / "out").rglob("*.part"))
    again = copy_list(videos, tmp_path / "out")
    assert (again.num_reused, again.failed) == (3, {})


def test_an_early_end_leaves_nothing_half_written(videos, monkeypatch, tmp_path):
    def write_and_stop(function, tasks, **_):
        yield tasks[0], function(tasks[0])
        tasks[1].publisher.open_part(Path(tasks[1].target).parent)
        raise KeyboardInterrupt

    monkeypatch.setattr(copies, "run_tasks", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        copy_list(videos, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".mp4", ".part")] == ["a.mp4"]


@pytest.mark.slow
def test_a_long_file_whose_frames_come_is_not_given_up(write_video, monkeypatch, tmp_path):
    """A frame needs at least 0.06 s, on a machine of any speed."""
    write_video(tmp_path / "videos" / "long.mp4", num_frames=60)
    (tmp_path / "slow_copy.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(copies, "copy_one", importlib.import_module("slow_copy").copy_slowly)
    began_seconds = time.monotonic()
    summary = make_copies(read_manifest(tmp_path / "videos"), tmp_path / "out", timeout_seconds=2.5)
    del sys.modules["slow_copy"]
    assert (summary.num_copied, summary.failed) == (1, {})
    assert time.monotonic() - began_seconds > 2 * 2.5  # 60 frames are written and read back


@pytest.mark.usefixtures("without_workers")
def test_keeps_the_readable_part_only_if_asked(videos, write_video, tmp_path):
    whole = write_video(videos / "y/c.mkv", num_frames=200).read_bytes()
    (videos / "y/c.mkv").write_bytes(whole[: len(whole) // 2])
    assert [Path(path).name for path in copy_list(videos, tmp_path / "out").failed] == ["c.mkv"]
    summary = copy_list(videos, tmp_path / "out", keep_partial=True)
    assert not summary.failed and [Path(path).name for path in summary.partial] == ["c.mkv"]
    assert summary.num_reused == 3
    assert [Path(path).name for path in copy_list(videos, tmp_path / "out").failed] == ["c.mkv"]


@pytest.mark.usefixtures("without_workers")
def test_keeps_the_readable_part_of_a_file_that_no_row_uses_to_its_end(videos, write_video, tmp_path):
    """As a check writes it: `end` lies behind the last frame that decodes."""
    whole = write_video(videos / "y/c.mkv", num_frames=200).read_bytes()
    (videos / "y/c.mkv").write_bytes(whole[: len(whole) // 2])
    end = float(index_video(str(videos / "y/c.mkv")).seconds()[-1]) + 0.025
    (videos / "list.csv").write_text(f"path,label,start,end\ny/c.mkv,3,,{end}\ny/c.mkv,4,1.0,2.5\nx/a.mp4,5,,\n")
    summary = copy_list(videos, tmp_path / "out")
    assert not summary.failed and list(summary.partial) == [str(videos / "y/c.mkv")]
    assert "kept in part: " in "\n".join(summary.lines())
    [row] = read_table(tmp_path / "out" / "partial.csv")
    assert row["path"] == str(videos / "y/c.mkv") and "ends after" in row["reason"]
    assert [row["end"] for row in read_table(summary.manifest)] == [repr(round(end, 6)), "2.5", ""]
    assert copy_list(videos, tmp_path / "out").num_reused == 2

    (videos / "list.csv").write_text(f"path,label,start,end\ny/c.mkv,3,,{end + 1}\nx/a.mp4,5,,\n")
    beyond = copy_list(videos, tmp_path / "out")
    assert list(beyond.failed) == [str(videos / "y/c.mkv")] and "--keep_partial" in beyond.failed[str(videos / "y/c.mkv")]
    assert not (tmp_path / "out" / "partial.csv").exists()


@pytest.mark.usefixtures("without_workers")
def test_cuts_files_and_maps_their_rows(videos, read_numbers, tmp_path):
    manifest = read_manifest(videos / "list.csv")
    summary = make_copies(manifest, tmp_path / "out", base=videos, segment_seconds=1.5)
    assert list(summary.failed) == [str(videos / "y/c.mkv")] and "--reencode" in summary.failed[str(videos / "y/c.mkv")]
    rows = [tuple(row.values()) for row in read_table(summary.manifest)]
    # Keyframes every 0.6 s: a (2 s) is cut at 1.8, long (4 s) at 1.8 and 3.0.
    assert rows == [
        ("x/a_0000.mp4", "3", "", ""),
        ("x/a_0001.mp4", "3", "", ""),
        ("x/b_0000.mp4", "0", "0.5", "1.25"),
        ("y/long_0001.mp4", "7", "0.2", ""),
        ("y/long_0002.mp4", "7", "", ""),
        ("x/a_0000.mp4", "4", "1", ""),
        ("x/a_0001.mp4", "4", "", ""),
    ]
    [piece] = [path for path in read_manifest(summary.manifest).paths if path.endswith("long_0001.mp4")]
    assert read_numbers(decode_frames(piece, np.arange(24))) == list(range(36, 60))
    assert summary.speed is None
    longer = make_copies(manifest, tmp_path / "out", base=videos, segment_seconds=3.0, reencode=True)
    assert not longer.failed and not (tmp_path / "out" / "y" / "long_0002.mp4").exists()


def test_two_files_of_one_name_do_not_overwrite_each_other(write_video, tmp_path):
    for name in ("a.mp4", "a.avi", "b.mp4"):
        write_video(tmp_path / "videos" / name)
    planned = plan_copies(read_manifest(tmp_path / "videos"), tmp_path / "out", base=tmp_path / "videos")
    assert [Path(copy.target).name for copy in planned] == ["a.avi.mp4", "a.mp4.mp4", "b.mp4"]


def test_files_outside_the_base_keep_their_tree_too(videos, write_video, tmp_path):
    write_video(tmp_path / "elsewhere" / "d.mp4")
    (tmp_path / "list.csv").write_text(f"path\nvideos/x/a.mp4\n{tmp_path}/elsewhere/d.mp4\n")
    planned = plan_copies(read_manifest(tmp_path / "list.csv"), tmp_path / "out", base=videos)
    assert [os.path.relpath(copy.target, tmp_path / "out") for copy in planned] == ["videos/x/a.mp4", "elsewhere/d.mp4"]


def test_refuses_folders_where_originals_could_be_lost(videos, tmp_path):
    with pytest.raises(ValueError, match="among the originals"):
        plan_copies(read_manifest(videos / "list.csv"), videos, base=videos)
    with pytest.raises(ValueError, match="lies inside"):
        make_copies(read_manifest(videos), videos / "copies", base=videos, scanned=videos)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files"):
        copy_list(videos, tmp_path / "other")
    (tmp_path / "link").symlink_to(videos)
    with pytest.raises(ValueError, match="among the originals|holds files"):
        copy_list(videos, tmp_path / "link")
    assert not (videos / "copies").exists() and not (videos / "copies.jsonl").exists()


def test_refuses_a_full_disk_before_it_starts(videos, monkeypatch, tmp_path):
    monkeypatch.setattr(copy_plan.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(ValueError, match=r"need about .*1000 B free"):
        copy_list(videos, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_refuses_a_second_run_into_the_same_folder(videos, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / "copies.jsonl", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run"):
            copy_list(videos, tmp_path / "out")


@pytest.mark.usefixtures("without_workers")
def test_journal_is_lines_of_json(videos, tmp_path):
    copy_list(videos, tmp_path / "out")
    lines = [line for line in (tmp_path / "out" / "copies.jsonl").read_text().split("\n") if line]
    assert sorted(Path(json.loads(line)["source"]).name for line in lines) == ["a.mp4", "b.avi", "c.mkv", "long.mp4"]


@pytest.mark.usefixtures("without_workers")
def test_an_original_that_went_away_after_its_copy_is_named(videos, tmp_path):
    copy_list(videos, tmp_path / "out")
    (videos / "x/b.avi").unlink()
    summary = copy_list(videos, tmp_path / "out")
    assert list(summary.failed) == [str(videos / "x/b.avi")] and "No such file" in summary.failed[str(videos / "x/b.avi")]
    assert "x/b.mp4" not in [row["path"] for row in read_table(summary.manifest)]


@pytest.mark.usefixtures("without_workers")
def test_a_row_without_a_frame_in_any_segment_is_named(videos, tmp_path):
    (videos / "list.csv").write_text("path,label,start,end\nx/a.mp4,1,,\nx/a.mp4,2,50,60\n")
    summary = copy_list(videos, tmp_path / "out", segment_seconds=2.0)
    assert summary.num_copied == 1
    assert "no frame between 50 s and 60 s" in summary.failed[str(videos / "x/a.mp4")]
    assert [row["label"] for row in read_table(summary.manifest)] == ["1"]


def test_copies_of_an_earlier_version_are_made_again_and_said(videos, tmp_path, monkeypatch, caplog):
    """Version 2 wrote other sides and colours: a folder does not hold both."""
    monkeypatch.setattr(copies, "FORMAT_VERSION", 2)
    make_copies(read_manifest(videos / "list.csv"), tmp_path / "out", base=videos)
    monkeypatch.undo()
    with caplog.at_level("INFO"):
        summary = make_copies(read_manifest(videos / "list.csv"), tmp_path / "out", base=videos)
    assert (summary.num_copied, summary.num_reused) == (4, 0)
    assert "made again: 4 copies" in caplog.text and "earlier version" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert make_copies(read_manifest(videos / "list.csv"), tmp_path / "out", base=videos).num_reused == 4
    assert "made again" not in caplog.text


def test_segments_of_an_earlier_version_are_still_right(videos, tmp_path, monkeypatch):
    """Their packets are the original's, whatever size copies have."""
    options = dict(base=videos, segment_seconds=1.0)
    first = make_copies(read_manifest(videos / "list.csv"), tmp_path / "out", **options)
    monkeypatch.setattr(copies, "FORMAT_VERSION", copies.FORMAT_VERSION + 1)
    assert make_copies(read_manifest(videos / "list.csv"), tmp_path / "out", **options).num_reused == first.num_copied > 0
