"""A check of many files: every row ends in one of the two tables, and nothing that is known is
decoded again."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
import time

import numpy as np
import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.checking import check_set
from mats_ds.data.prepare.checking.check_file import check_one
from mats_ds.data.prepare.checking.check_set import COLUMNS, check_manifest, journal_path

# A check of one file that does, for some names, what a broken decoder does.
EVIL = """
import os
from mats_ds.data.prepare.checking.check_file import check_one

def check_evil(path, *, on_heartbeat):
    if "crash" in path:
        os.abort()
    return check_one(path, on_heartbeat=on_heartbeat)
"""


@pytest.fixture
def evil_workers(tmp_path, monkeypatch):
    (tmp_path / "evil_check.py").write_text(EVIL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(check_set, "check_one", importlib.import_module("evil_check").check_evil)
    yield
    del sys.modules["evil_check"]


@pytest.fixture
def check(tmp_path):
    """`check(source)`: with small files, one worker (it takes half a second to start), everything
    written into out/."""

    def run(source, **options):
        options = {"num_workers": 1, "timeout_seconds": 60.0} | options
        places = {"out": tmp_path / "out" / "m.csv", "quarantine": tmp_path / "out" / "quarantine.csv"}
        return check_manifest(read_manifest(source, root=options.get("root")), **places, **options)

    return run


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_videos(write_video, folder, names):
    for number, name in enumerate(names):
        write_video(folder / name, num_frames=20 + number)
    return folder


def test_writes_the_good_and_the_bad(write_video, write_broken, tmp_path, check):
    bad = [write_broken(kind) for kind in ("text", "truncated", "vanished", "empty")]
    folder = write_videos(write_video, tmp_path / "videos", ["a.mp4", "b, c.mkv"])
    source = tmp_path / "source.csv"
    lines = ["path,label,start,end", "videos/a.mp4,3,0.2,0.8", '"videos/b, c.mkv",4,,', "videos/a.mp4,5,,", "videos/a.mp4,6,7,9"]
    source.write_text("\n".join([*lines, *(f"{path},7,," for path in bad)]))
    result = check(source, num_workers=2)
    assert (result.num_rows, result.num_decoded, len(result.facts), len(result.bad)) == (8, 5, 2, 5)
    assert not list((tmp_path / "out").glob(".*"))

    written = read_manifest(tmp_path / "out" / "m.csv")
    assert written.paths == [str(folder / "a.mp4"), str(folder / "b, c.mkv"), str(folder / "a.mp4")]
    assert written.label_S.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(written.first_seconds_S, [0.2, np.nan, np.nan])
    np.testing.assert_array_equal(written.last_seconds_S, [0.8, np.nan, np.nan])
    rows = read_rows(tmp_path / "out" / "m.csv")
    assert tuple(rows[0]) == COLUMNS and [row["num_frames"] for row in rows] == ["20", "21", "20"]
    assert {row["vfr"] for row in rows} == {"0"} and float(rows[1]["fps"]) == pytest.approx(20)

    reasons = {
        (os.path.basename(row["path"]), row["label"]): row["reason"] for row in read_rows(tmp_path / "out" / "quarantine.csv")
    }
    assert reasons["a.mp4", "6"] == "no frame between 7 s and 9 s; the last one is at 0.950 s"
    assert reasons["text.mp4", "7"] == "a text file, not a video"
    assert "cut off" in reasons["truncated.mp4", "7"] and "No such file" in reasons["vanished.mp4", "7"]


def test_a_break_limits_the_rows_of_its_file(write_video, tmp_path, check):
    path = write_video(tmp_path / "videos" / "a.mp4", num_frames=60, gop=60)
    import av

    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux(video=0)][40]
    data = path.read_bytes()
    path.write_bytes(data[:place] + b"\xff" * size + data[place + size :])
    source = tmp_path / "source.csv"
    source.write_text(
        "path,label,start,end\nvideos/a.mp4,0,,\nvideos/a.mp4,1,0.5,1.0\nvideos/a.mp4,2,1.5,2.8\nvideos/a.mp4,3,2.2,2.9\n"
    )
    result = check(source)
    rows = read_rows(tmp_path / "out" / "m.csv")
    assert [(row["start"], row["end"]) for row in rows] == [("", "1.975"), ("0.5", "1"), ("1.5", "1.975")]
    assert "then: the data there is damaged" in rows[0]["warnings"]
    assert [(row.label, row.reason) for row in result.bad] == [
        (3, "damaged in part: decodes up to frame 40 of 60, then: the data there is damaged; frames 0 to 39 can be used")
    ]


def test_paths_below_a_root_are_written_relative_to_it(write_video, tmp_path, check):
    write_videos(write_video, tmp_path / "videos" / "deep", ["a.mp4"])
    source = tmp_path / "list.txt"
    source.write_text("deep/a.mp4 1\n")
    check(source, root=tmp_path / "videos")
    assert [row["path"] for row in read_rows(tmp_path / "out" / "m.csv")] == ["deep/a.mp4"]
    assert read_manifest(tmp_path / "out" / "m.csv", root=tmp_path / "videos").paths == [
        str(tmp_path / "videos" / "deep" / "a.mp4")
    ]


def test_what_may_be_the_machines_fault_costs_one_file_and_is_tried_again(write_video, tmp_path, check, request):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4", "crash.mp4", "b.mp4"])
    request.getfixturevalue("evil_workers")
    result = check(source)
    assert sorted(os.path.basename(path) for path in result.facts) == ["a.mp4", "b.mp4"]
    [row] = result.bad
    assert row.path.endswith("crash.mp4") and "SIGABRT" in row.reason
    check_set.check_one = check_one
    result = check(source)
    assert (result.num_decoded, len(result.bad)) == (1, 0)


def test_an_interrupted_check_goes_on_where_it_was(write_video, write_broken, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", [f"{number}.mp4" for number in range(6)])
    write_broken("text").rename(source / "bad.mp4")
    finished = []

    def interrupt(num_done, num_files, num_bad):
        finished.append(num_done)
        if num_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(source, num_workers=2, on_done=interrupt)
    assert finished == [0, 1, 2, 3] and not (tmp_path / "out" / "m.csv").exists()
    assert not children_of(os.getpid())
    with open(journal_path(tmp_path / "out" / "m.csv"), "a") as journal:
        journal.write('{"version": 1, "path": "torn')
    result = check(source)
    assert (result.num_decoded, len(result.facts), len(result.bad)) == (4, 6, 1)
    again = check(source)
    assert (again.num_decoded, again.facts, again.bad) == (0, result.facts, result.bad)
    assert check(source, resume=False).num_decoded == 7


def test_a_changed_file_is_decoded_again(write_video, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4", "b.mp4"])
    check(source)
    write_video(source / "b.mp4", num_frames=33)
    result = check(source)
    assert result.num_decoded == 1 and result.facts[str(source / "b.mp4")].num_frames == 33
    (source / "b.mp4").unlink()
    (row,) = read_rows_after(check, source, tmp_path)
    assert row["path"].endswith("a.mp4")


def read_rows_after(check, source, tmp_path):
    check(source)
    return read_rows(tmp_path / "out" / "m.csv")


def test_facts_of_another_version_are_not_used(write_video, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4", "b.mp4", "c.mp4"])
    check(source)
    journal = journal_path(tmp_path / "out" / "m.csv")
    first, second, third, *tables = (json.loads(line) for line in journal.read_text().splitlines())
    assert [table["wrote"] for table in tables] == ["quarantine.csv", "m.csv"]
    first["version"] = 0
    second["facts"].pop("gop")
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in (first, second, third, *tables)))
    assert check(source).num_decoded == 2


def test_two_checks_cannot_write_one_journal(write_video, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4"])

    def check_within(*_):
        with pytest.raises(ValueError, match="another check is writing .*m.csv.journal: wait for it, or give another --out"):
            check(source)

    check(source, on_done=check_within)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "--workers is at least 1, got 0"),
        ({"timeout_seconds": 0.0}, "--timeout .* above 0, got 0"),
        ({"quarantine": "m.csv", "out": "m.csv"}, "give two names"),
        ({"quarantine": "videos"}, "videos is a folder"),
        ({"out": "videos/a.mp4/m.csv"}, "videos/a.mp4/m.csv cannot be written"),
    ],
)
def test_unusable_arguments(write_video, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    manifest = read_manifest(write_videos(write_video, tmp_path / "videos", ["a.mp4"]))
    options = {"out": "m.csv", "quarantine": "q.csv", "num_workers": 1} | options
    with pytest.raises(ValueError, match=message):
        check_manifest(manifest, **options)


def test_a_file_that_vanishes_before_its_turn_is_named(write_video, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4", "b.mp4"])

    def remove(num_done, num_files, num_bad):
        if num_done == 0:
            (source / "b.mp4").unlink()

    result = check(source, on_done=remove)
    assert [(os.path.basename(row.path), row.reason) for row in result.bad] == [
        ("b.mp4", "No such file or directory (FileNotFoundError)")
    ]


def test_a_dangling_link_and_a_folder_that_is_called_a_video(write_video, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4", "deep.mp4/b.mp4"])
    (source / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    result = check(source)
    assert sorted(os.path.relpath(path, source) for path in result.facts) == ["a.mp4", "deep.mp4/b.mp4"]
    assert [(os.path.basename(row.path), row.reason) for row in result.bad] == [
        ("link.mp4", "No such file or directory (FileNotFoundError)")
    ]
    (tmp_path / "list.csv").write_text("path\nvideos/a.mp4\nvideos/deep.mp4\n")
    assert [row.reason for row in check(tmp_path / "list.csv").bad] == ["a directory"]


def test_names_that_a_manifest_cannot_hold(write_video, tmp_path, check):
    source = write_videos(write_video, tmp_path / "videos", ["a.mp4", "two\nlines.mp4"])
    os.rename(source / "a.mp4", os.fsencode(source) + b"/latin\xe9.mp4")
    result = check(source)
    assert [row.reason for row in result.bad] == ["its name is not UTF-8: rename it"]
    assert read_manifest(tmp_path / "out" / "m.csv").paths == [str(source / "two\nlines.mp4")]
    assert "latin\\udce9.mp4" in (tmp_path / "out" / "quarantine.csv").read_text()


def children_of(parent):
    """Processes that live and whose parent this is; a moment is given to those that are ending."""
    for _ in range(30):
        children = []
        for entry in os.listdir("/proc"):
            try:
                state, ppid = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[:2]  # noqa: SIM115
                command = open(f"/proc/{entry}/cmdline").read()  # noqa: SIM115
            except (OSError, ValueError):
                continue
            if int(ppid) == parent and state != "Z" and "worker_pool" in command:
                children.append(entry)
        if not children:
            return []
        time.sleep(0.1)
    return children
