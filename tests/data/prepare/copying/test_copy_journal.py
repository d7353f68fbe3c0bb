"""What transcoding may replace and remove in its folder: its own copies and tables, as it wrote
them, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import prepare
from mats_ds.core.storage.output_folder import MARKER
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare import publishing
from mats_ds.data.prepare.copying import copies, copy_plan
from mats_ds.data.prepare.copying.copy_journal import RECORD
from mats_ds.data.prepare.copying.copy_plan import plan_copies
from mats_ds.data.video import indexing
from mats_ds.data.video.index import IndexCache
from mats_ds.data.video.indexing import index_video

ROOT = Path(__file__).resolve().parents[4]


def run_here(function, tasks, **_):
    """`run_tasks` in this process."""
    return ((task, function(task)) for task in tasks)


@pytest.fixture
def home(write_video, tmp_path, monkeypatch):
    """Three videos in two folders, a list of them; copies are made in this process."""
    for name, num_frames in (("x/a.mp4", 48), ("x/b.mp4", 17), ("y/c.avi", 18)):
        write_video(tmp_path / "videos" / name, num_frames=num_frames)
    (tmp_path / "list.csv").write_text("path,label\nvideos/x/a.mp4,1\nvideos/x/b.mp4,2\nvideos/y/c.avi,3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(copies, "run_tasks", run_here)
    return tmp_path


def transcode(*arguments, source="list.csv"):
    return prepare.main(["transcode", source, "--root", ".", "--out", "out", "--workers", "1", *map(str, arguments)])


@pytest.fixture
def out(home):
    assert transcode("--root", "videos", source="videos") == 0
    return home / "out"


def again(*arguments):
    return transcode("--root", "videos", *arguments, source="videos")


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make_old(out):
    """The folder as version 0.1 leaves it."""
    for name in (RECORD, MARKER):
        (out / name).unlink()
    entries = [json.loads(line) for line in (out / "copies.jsonl").read_text().splitlines() if line]
    lines = [json.dumps({key: entry[key] for key in entry if key not in ("ctime_ns", "sample")}) for entry in entries]
    (out / "copies.jsonl").write_text("\n".join(["", *lines]))


def refused(status, capsys, *, named, before, folder):
    told = capsys.readouterr().err
    assert status == 2 and told.startswith("error: ") and named in told and told.count("\n") == 1
    assert {path: data for path, data in contents(folder).items() if not path.endswith((MARKER, RECORD))} == {
        path: data for path, data in before.items() if not path.endswith((MARKER, RECORD))
    }


@pytest.mark.parametrize("name", ["x/b.mp4", "manifest.csv", "failed.csv", "partial.csv"])
@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_the_users_in_the_folder_stays(home, out, capsys, name, old):
    if old:
        make_old(out)
    (out / name).write_text("mine, and longer than it was")
    before = contents(home)
    refused(again(), capsys, named=name, before=before, folder=home)
    (out / name).rename(home / "kept")
    assert again() == 0 and (home / "kept").read_text() == "mine, and longer than it was"


def test_a_link_in_the_place_of_a_copy_stays(home, out, capsys):
    (home / "thesis").write_text("mine")
    (out / "x" / "b.mp4").unlink()
    (out / "x" / "b.mp4").symlink_to("a.mp4")
    refused(again(), capsys, named="b.mp4", before=contents(home), folder=home)
    assert (out / "x" / "b.mp4").is_symlink()


def test_a_hard_link_of_an_original_in_the_place_of_a_copy_stays(home, out, capsys):
    (out / "x" / "b.mp4").unlink()
    os.link("videos/x/b.mp4", out / "x" / "b.mp4")
    refused(again(), capsys, named="b.mp4", before=contents(home), folder=home)


def test_segments_are_replaced_and_removed_only_as_they_were_written(home, out, capsys):
    """From whole copies to segments, to longer segments."""
    assert again("--segment", 1.0) == 0
    pieces = {path.name for path in (out / "x").iterdir()}
    assert pieces == {"a_0000.mp4", "a_0001.mp4", "b_0000.mp4"}  # the whole copies are gone
    (out / "x" / "a_0001.mp4").write_bytes(b"mine")
    assert again("--segment", 2.0) == 0
    # no segment any more, and not removed
    assert (out / "x" / "a_0001.mp4").read_bytes() == b"mine"
    assert "x/a_0001.mp4" not in (out / "manifest.csv").read_text()
    assert again("--segment", 1.0) == 1  # it is met when the number of the segments is known
    assert (out / "x" / "a_0001.mp4").read_bytes() == b"mine"
    assert "a_0001.mp4" in (out / "failed.csv").read_text()
    (out / "x" / "b_0000.mp4").write_bytes(b"mine too")
    refused(again("--segment", 1.0), capsys, named="b_0000.mp4", before=contents(home), folder=home)


def test_its_own_are_replaced_and_removed(home, out):
    (home / "videos" / "y" / "bad.mp4").write_text("no video")
    assert again("--gop", 5) == 1 and (out / "failed.csv").exists()
    (home / "videos" / "y" / "bad.mp4").unlink()
    assert again("--gop", 7) == 0 and not (out / "failed.csv").exists()
    assert not list(home.rglob("*.old")) and not list(home.rglob("*.part"))


def test_a_folder_of_version_0_1_goes_on(home, out, write_video):
    make_old(out)
    (out / "failed.csv").write_text("path,reason\n/videos/y/d.mp4,torn\n")
    write_video(home / "videos" / "y" / "d.mp4", num_frames=19)
    stamp = (out / "x" / "a.mp4").stat().st_mtime_ns
    assert again() == 0
    assert (out / "x" / "a.mp4").stat().st_mtime_ns == stamp and (out / "y" / "d.mp4").exists()
    assert {path.name for path in out.glob("*.old")} == {"failed.csv.old", "manifest.csv.old"}
    assert again("--gop", 5) == 0  # copies of version 0.1 are replaced, known by their sizes
    assert (out / "x" / "a.mp4").stat().st_mtime_ns != stamp


@pytest.mark.parametrize(
    ("name", "text"),
    [("copies.jsonl", '{"url": "http://a"}\n'), ("copies.jsonl", "mine"), ("thesis.txt", "x"), ("manifest.csv", "path\na.mp4\n")],
)
def test_a_folder_of_something_else_is_refused(home, capsys, name, text):
    (home / "out").mkdir()
    (home / "out" / name).write_text(text)
    (home / "out" / "other").touch()
    refused(again(), capsys, named="out", before=contents(home), folder=home)
    refused(again("--dry_run"), capsys, named="out", before=contents(home), folder=home)


@pytest.mark.parametrize("source", ["out/failed.csv", "out/manifest.csv", "way/partial.csv"])
def test_a_table_of_the_folder_is_no_source_for_it(home, out, capsys, source):
    (home / "way").symlink_to("out")
    assert transcode() == 0
    with open(source, "w") as file:
        file.write("path,reason\nvideos/y/c.avi,torn\n")
    refused(transcode(source=source), capsys, named=Path(source).name, before=contents(home), folder=home)


def test_every_original_has_its_own_copy(home, write_video, monkeypatch, tmp_path):
    for name in ("a.avi", "a.mp4", "a.avi.mkv"):
        write_video(tmp_path / "twins" / name)
    with pytest.raises(ValueError, match=r"a\.avi.*a\.avi\.mkv|a\.avi\.mkv.*a\.avi"):
        plan_copies(read_manifest("twins"), tmp_path / "new")
    (tmp_path / "twins" / "a.avi.mkv").rename(tmp_path / "twins" / "A.mkv")
    assert len({copy.target for copy in plan_copies(read_manifest("twins"), tmp_path / "new")}) == 3
    (tmp_path / "twins" / "a.avi").unlink()
    assert len(plan_copies(read_manifest("twins"), tmp_path / "new")) == 2
    monkeypatch.setattr(copy_plan, "ignores_case", lambda folder: True)
    with pytest.raises(ValueError, match="A.mkv"):
        plan_copies(read_manifest("twins"), tmp_path / "new")


def test_whether_the_disk_tells_upper_from_lower_case(tmp_path):
    (tmp_path / "abc").mkdir()
    assert not copy_plan.ignores_case(tmp_path / "abc" / "new" / "deep")
    (tmp_path / "ABC").symlink_to("abc")  # as such a disk answers
    assert copy_plan.ignores_case(tmp_path / "abc") and copy_plan.ignores_case(tmp_path / "abc" / "new")


def test_a_copy_belongs_to_the_original_that_had_it_last(home, write_video):
    """Originals that take turns at one name, and two bases that put different originals there."""
    write_video(home / "videos" / "x" / "b.avi", num_frames=25)

    def frames_of(*names):
        (home / "turns.csv").write_text("path\n" + "".join(f"videos/{name}\n" for name in names))
        assert transcode(source="turns.csv") == 0
        return [index_video(path).num_frames for path in read_manifest("out/manifest.csv").paths]

    assert frames_of("x/b.mp4", "y/c.avi") == [17, 18]
    # out/videos/x/b.mp4 is now the copy of b.avi
    assert frames_of("x/b.avi", "y/c.avi") == [25, 18]
    assert frames_of("x/b.mp4", "y/c.avi") == [17, 18]
    assert frames_of("x/b.mp4", "x/b.avi") == [17, 25]
    assert frames_of("x/b.avi", "x/b.mp4") == [25, 17]
    assert frames_of("x/b.avi") == [25]

    write_video(home / "x" / "a.mp4", num_frames=21)
    (home / "near.csv").write_text("path\nx/a.mp4\n")
    assert prepare.main(["transcode", "near.csv", "--out", "both", "--workers", "1"]) == 0
    (home / "far.csv").write_text(f"path\n{home}/videos/x/a.mp4\n")
    assert prepare.main(["transcode", "far.csv", "--root", "videos", "--out", "both", "--workers", "1"]) == 0
    assert prepare.main(["transcode", "near.csv", "--out", "both", "--workers", "1"]) == 0
    assert [index_video(path).num_frames for path in read_manifest("both/manifest.csv").paths] == [21]


def test_unfinished_files_of_others_stay_and_ours_go(home, out):
    [token] = [json.loads(line)["token"] for line in (out / RECORD).read_text().split("\n") if "token" in line]
    ours = out / "x" / f".{'0' * 16}.{token}.0.part"
    theirs = [out / "x" / name for name in ("a.mp4.part", f".{'0' * 16}.{'1' * 16}.0.part", f".b.{token}.0.part", ".a.whole.mp4")]
    for path in (ours, *theirs):
        path.write_text("half")
    assert again("--gop", 5) == 0
    assert not ours.exists() and all(path.read_text() == "half" for path in theirs)


def test_a_kill_between_name_and_journal_leaves_nothing_unknown(home, monkeypatch):
    """The copy has its name, the journal not yet its line."""
    from mats_ds.data.prepare.copying import transcode as transcoding

    class Killed(BaseException):
        pass

    def publish_and_die(part, target):
        publishing.publish(part, target)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(transcoding, "publish", publish_and_die)
        again()
    assert (home / "out" / "x" / "a.mp4").exists() and "a.mp4" not in (home / "out" / "copies.jsonl").read_text()
    assert again() == 0


def test_a_source_that_changes_while_it_is_copied_is_copied_again(home, write_video, monkeypatch):
    def change(function, tasks, **_):
        for task, outcome in run_here(function, tasks):
            if task.source.endswith("b.mp4"):
                write_video(home / "videos" / "x" / "b.mp4", num_frames=23)
            yield task, outcome

    monkeypatch.setattr(copies, "run_tasks", change)
    assert again() == 0 and index_video("out/x/b.mp4").num_frames == 17
    monkeypatch.setattr(copies, "run_tasks", run_here)
    assert again() == 0
    assert index_video("out/x/b.mp4").num_frames == 23


def test_content_is_looked_at_where_times_cannot_be_trusted(home, out, monkeypatch, capsys):
    path = home / "videos" / "x" / "b.mp4"
    stamp, data = path.stat().st_mtime_ns, path.read_bytes()
    os.chmod(path, 0o600)
    assert again() == 0 and "(3 from an earlier run)" in capsys.readouterr().out
    path.write_bytes(b"x" * len(data))
    os.utime(path, ns=(stamp, stamp))
    monkeypatch.setattr(indexing, "_CACHE", IndexCache(64 << 20))  # a new process
    assert again() == 1 and "b.mp4" in (out / "failed.csv").read_text()


def test_a_second_transcode_is_told_who_the_first_is(home, out):
    from mats_ds.data.prepare.copying.copy_journal import open_copy_journal

    command = [sys.executable, str(ROOT / "mats_ds" / "prepare.py"), "transcode", "videos", "--out", "out", "--workers", "1"]
    before = contents(home)
    with open_copy_journal(out, {}):
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr and "host" in done.stderr
    assert "Traceback" not in done.stderr and contents(home) == before


@pytest.mark.parametrize("number", [28, 30, 122])
def test_a_disk_that_fails_ends_in_one_line_and_keeps_the_copies(home, out, monkeypatch, capsys, number):
    """ENOSPC, EROFS, EDQUOT while the manifest is written; the same command goes on."""
    from mats_ds.data.prepare import written_files

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    manifest = (out / "manifest.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(written_files, "write_text", fail)
        assert again("--gop", 5) == 2
    told = capsys.readouterr().err
    assert os.strerror(number) in told and "goes on" in told and "Traceback" not in told
    assert (out / "manifest.csv").read_bytes() == manifest
    assert again("--gop", 5) == 0 and "(3 from an earlier run)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"num_frames": "9"}, {"num_bytes": -1}, {"last_seconds": float("inf")}, {"path": 3}, {"more": 1}]
)
def test_pieces_of_a_journal_that_no_run_wrote_are_not_believed(home, out, capsys, wrong):
    entries = [json.loads(line) for line in (out / "copies.jsonl").read_text().split("\n") if line]
    for entry in entries:
        entry["pieces"][0] |= wrong
    (out / "copies.jsonl").write_text("\n".join(["[]", "null", '{"source": []}', *map(json.dumps, entries)]))
    capsys.readouterr()
    assert again() == 0
    assert "from an earlier run" not in capsys.readouterr().out
