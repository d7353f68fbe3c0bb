"""`prepare.py pack` from the command line: what it writes, that it goes on after a kill, and that
all readers take its members."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from mats_ds.core.shards.members import open_file
from mats_ds.core.storage.files import hash_file
from mats_ds.data.manifest import read_manifest
from mats_ds.data.shared_videos import find_shared
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.prepare import main
from tests.test_prepare_transcode import write_video

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["jump/a.mp4", "jump/b#1.avi", "run/a.mp4", "run/two words.mkv"]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        write_video(tmp_path / "videos" / name, num_frames=14)
    return tmp_path / "videos"


def pack(*arguments):
    return main(["pack", *map(str, arguments)])


def tar_sums(out):
    return [hash_file(path) for path in sorted(out.glob("*.tar"))]


def test_packs_a_folder_into_shards_that_hold_its_very_bytes(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert pack(folder, "--out", out, "--shard_size", "100KB") == 0
    text = capsys.readouterr().out
    assert "4 of 4 files packed into" in text and str(out / "manifest.csv") in text
    manifest = read_manifest(out / "manifest.csv")
    assert [path.partition(".tar#")[2] for path in manifest.paths] == NAMES
    assert manifest.label_S.tolist() == [0, 0, 1, 1]
    assert (out / "manifest.csv.classes.txt").read_text() == "jump\nrun\n"
    for name, member in zip(NAMES, manifest.paths, strict=True):
        assert open_file(member).read() == (folder / name).read_bytes()
        loose = index_video(str(folder / name))
        numbers = np.arange(0, loose.num_frames, 3)
        assert np.array_equal(decode_frames(member, numbers), decode_frames(str(folder / name), numbers))
    for shard in sorted(out.glob("*.tar")):
        subprocess.run(["tar", "xf", str(shard)], cwd=tmp_path / "out", check=True)
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in NAMES)


def test_equal_files_give_equal_bytes_on_any_number_of_workers(folder, tmp_path):
    assert pack(folder, tmp_path / "one", "--shard_size", "100KB", "--workers", 1) == 0
    for path in folder.rglob("*.*"):
        os.utime(path, (1, 1))
        os.chmod(path, 0o600)
    assert pack(folder, tmp_path / "two", "--shard_size", "100KB", "--workers", 3) == 0
    assert tar_sums(tmp_path / "one") == tar_sums(tmp_path / "two") and len(tar_sums(tmp_path / "one")) > 1
    with tarfile.open(next((tmp_path / "one").glob("*.tar"))) as archive:
        info = archive.getmembers()[0]
        assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "") and info.offset_data % 512 == 0


def test_a_second_run_writes_only_what_changed(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (folder, "--out", out, "--shard_size", "64KiB", "--workers", 1)
    assert pack(*arguments) == 0
    shards = sorted(out.glob("*.tar"))
    times = [path.stat().st_mtime_ns for path in shards]
    write_video(folder / NAMES[-1], num_frames=9)
    shards[0].unlink()
    capsys.readouterr()
    assert pack(*arguments) == 0
    assert f"({len(shards) - 2} from an earlier run)" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in shards][1:-1] == times[1:-1]
    assert pack(folder, "--out", out, "--shard_size", "1GB") == 0  # another layout: no shard of the old one stays
    assert len(list(out.glob("*.tar"))) == len(list(out.glob("*.index"))) == 1
    assert open_file(read_manifest(out / "manifest.csv").paths[-1]).read() == (folder / NAMES[-1]).read_bytes()


def test_missing_files_are_left_out_and_named(folder, tmp_path, capsys):
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,start,end\n" + "".join(f"videos/{name},3,0.1,0.4\n" for name in (*NAMES, "gone.mp4")))
    assert pack(listed, "--out", tmp_path / "out") == 1
    assert "gone.mp4" in capsys.readouterr().out and "gone.mp4" in (tmp_path / "out" / "failed.csv").read_text()
    manifest = read_manifest(tmp_path / "out" / "manifest.csv")
    assert manifest.label_S.tolist() == [3] * 4 and manifest.last_seconds_S.tolist() == [0.4] * 4


def test_files_of_one_name_from_two_folders_do_not_collide(tmp_path):
    for side in ("x", "y"):
        write_video(tmp_path / side / "deep" / "a.mp4", num_frames=4 + len(side) * (side == "y"))
    listed = tmp_path / "lists" / "list.txt"
    listed.parent.mkdir()
    listed.write_text("../x/deep/a.mp4 0\n../y/deep/a.mp4 1\n")
    assert pack(listed, "--out", tmp_path / "out") == 0
    paths = read_manifest(tmp_path / "out" / "manifest.csv").paths
    assert [index_video(path).num_frames for path in paths] == [4, 5]


def test_what_is_not_ours_is_never_overwritten(folder, tmp_path, capsys):
    assert pack(folder, "--out", folder / "inside") == 2 and "inside" in capsys.readouterr().err
    full = tmp_path / "full"
    full.mkdir()
    (full / "shard-000000.tar").write_text("somebody's")
    assert pack(folder, "--out", full) == 2
    out = tmp_path / "out"
    assert pack(folder, "--out", out) == 0
    (out / "shard-000000.tar").write_text("changed since")
    assert pack(folder, "--out", out) == 2 and "shard-000000.tar" in capsys.readouterr().err
    assert (out / "shard-000000.tar").read_text() == "changed since"


@pytest.mark.parametrize("size", ["1XB", "-1GB", "", "12", "1iB", "9" * 400])
def test_sizes_that_are_none_are_refused(folder, tmp_path, capsys, size):
    assert pack(folder, "--out", tmp_path / "out", f"--shard_size={size}") == 2
    assert "--shard_size" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_full_disk_is_noticed_before_anything_is_written(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mats_ds.data.prepare.copying.copy_plan.shutil.disk_usage", lambda path: type("U", (), {"free": 1000})())
    assert pack(folder, "--out", tmp_path / "out") == 2
    assert "free" in capsys.readouterr().err and not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_shard_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:03d}.mp4").write_bytes(os.urandom(2_000_000))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mats_ds", "prepare", "pack", str(folder), "--out", str(out), "--shard_size", "4MB"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(out.glob("*.tar")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert not list(out.glob(".*.part"))
    manifest = read_manifest(out / "manifest.csv")
    assert len(manifest) == 60
    assert all(open_file(path).read() == (folder / path.partition("#")[2]).read_bytes() for path in manifest.paths)


def test_check_transcode_and_import_take_members(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert pack(folder, "--out", out, "--shard_size", "100KB") == 0
    listed = out / "manifest.csv"
    assert main(["check", str(listed), "--out", str(out / "checked.csv"), "--workers", "1"]) == 0
    assert read_manifest(out / "checked.csv").paths == read_manifest(listed).paths
    assert main(["check", str(listed), "--out", str(out / "checked.csv"), "--workers", "1"]) == 0
    assert "4 of 4 files need no work" in capsys.readouterr().err
    copies = tmp_path / "copies"
    assert main(["transcode", str(listed), "--out", str(copies), "--short_side", "32", "--workers", "1"]) == 0
    assert [index_video(path).num_frames for path in read_manifest(copies / "manifest.csv").paths] == [14] * 4
    (tmp_path / "list.txt").write_text("".join(f"{name} {number % 2}\n" for number, name in enumerate(NAMES[::2])))
    assert main(["import", str(tmp_path / "list.txt"), "--root", str(out), "--out", str(tmp_path / "in.csv")]) == 0
    assert read_manifest(tmp_path / "in.csv", root=out).paths == read_manifest(listed).paths[::2]
    again = tmp_path / "again"
    assert pack(listed, "--out", again) == 0  # members are packed like files
    assert [open_file(path).read() for path in read_manifest(again / "manifest.csv").paths] == [
        (folder / name).read_bytes() for name in NAMES
    ]


def test_a_packed_video_is_known_as_the_loose_one(folder, tmp_path):
    assert pack(folder, "--out", tmp_path / "out") == 0
    shared = find_shared(read_manifest(folder), read_manifest(tmp_path / "out" / "manifest.csv"))
    assert len(shared.same) == 4
