"""A check replaces its own tables and no other file, whatever is there and however it is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import prepare
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.checking import check_set

ROOT = Path(__file__).resolve().parents[4]
HEADER = "path,label,reason\n"


def check_here(function, paths, **_):
    """`run_tasks` without worker processes."""
    for path in paths:
        yield path, function(path)


@pytest.fixture
def home(write_video, tmp_path, monkeypatch):
    """A folder with two videos, one of them bad, two lists of them, and the working directory in
    it."""
    write_video(tmp_path / "videos" / "a.mp4", num_frames=17)
    (tmp_path / "videos" / "bad.mp4").write_text("<html>")
    (tmp_path / "one.csv").write_text("path,label\nvideos/a.mp4,3\nvideos/bad.mp4,4\n")
    (tmp_path / "two.csv").write_text("path,label\nvideos/bad.mp4,5\nvideos/a.mp4,6\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_set, "run_tasks", check_here)
    return tmp_path


def check(*arguments):
    return prepare.main(["check", *map(str, arguments), "--workers", "1"])


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def forget_tables(journal):
    """Make a journal one of version 0.1."""
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    kept = [{key: entry[key] for key in entry if key not in ("ctime_ns", "sample")} for entry in entries if "wrote" not in entry]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["one.csv", "--out", "one.csv"], "one.csv"),
        (["one.csv", "--out", "./videos/../one.csv"], "one.csv"),
        (["one.csv", "--out", "link.csv"], "link.csv"),
        (["one.csv", "--out", "hard.csv"], "hard.csv"),
        (["one.csv", "--out", "way/a.mp4"], "a.mp4"),
        (["one.csv", "--out", "videos/bad.mp4"], "bad.mp4"),
        (["one.csv", "--out", "gone/new.mp4"], "new.mp4"),
        (["one.csv", "--out", "thesis.txt"], "thesis.txt"),
        (["one.csv", "--out", "m.csv", "--quarantine", "one.csv"], "one.csv"),
        (["one.csv", "--out", "m.csv", "--quarantine", "way/a.mp4"], "a.mp4"),
        (["one.csv", "--out", "m.csv", "--quarantine", "thesis.txt"], "thesis.txt"),
        (["one.csv", "--out", "m.csv", "--quarantine", "m.csv"], "two names"),
        (["one.csv", "--out", "m.csv", "--quarantine", "m.csv.journal"], "m.csv.journal"),
        (["one.csv", "--out", "k.csv"], "k.csv.journal"),
        (["x.csv.journal", "--out", "x.csv"], "x.csv.journal"),
    ],
)
def test_what_is_not_its_own_is_refused_before_the_work(home, monkeypatch, capsys, arguments, named):
    (home / "link.csv").symlink_to("thesis.txt")
    os.link("two.csv", "hard.csv")
    (home / "way").symlink_to("videos")
    (home / "thesis.txt").write_text("mine")
    (home / "k.csv.journal").write_text("dear diary\n")
    (home / "x.csv.journal").write_text("path,label\nvideos/a.mp4,3\n")
    (home / "gone").mkdir()
    (home / "one.csv").write_text((home / "one.csv").read_text() + "gone/new.mp4,5\n")
    before = contents(home)

    def decode(*_, **__):
        raise AssertionError("decoded before it was refused")

    monkeypatch.setattr(check_set, "run_tasks", decode)
    assert check(*arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and named in told and told.count("\n") == 1
    assert contents(home) == before


def test_every_list_of_a_folder_has_its_own_quarantine(home, capsys):
    assert check("one.csv", "--out", "m1.csv") == 0
    first = (home / "quarantine.csv").read_text()
    assert check("two.csv", "--out", "m2.csv") == 0
    assert "m2.quarantine.csv" in capsys.readouterr().out
    assert (home / "quarantine.csv").read_text() == first and ",4," in first
    assert ",5," in (home / "m2.quarantine.csv").read_text()
    for source, out in (("one.csv", "m1.csv"), ("two.csv", "m2.csv")):  # each finds its own again
        assert check(source, "--out", out) == 0
    (home / "quarantine.csv").unlink()
    assert check("two.csv", "--out", "m2.csv") == 0
    assert not (home / "quarantine.csv").exists() and not list(home.glob("*.old"))


def test_the_quarantine_itself_can_be_checked(home):
    assert check("one.csv", "--out", "m.csv") == 0
    before = (home / "quarantine.csv").read_text()
    assert check("quarantine.csv", "--out", "again.csv") == 0
    assert (home / "quarantine.csv").read_text() == before
    assert "bad.mp4" in (home / "again.quarantine.csv").read_text()


def test_a_quarantine_that_is_nobodys_is_left_alone(home, capsys):
    (home / "quarantine.csv").write_text(HEADER)
    (home / "m.quarantine.csv").write_text("notes")
    assert check("one.csv", "--out", "m.csv") == 2
    assert "--quarantine" in capsys.readouterr().err and not (home / "m.csv").exists()
    (home / "m.quarantine.csv").unlink()
    assert check("one.csv", "--out", "m.csv") == 0
    assert (home / "quarantine.csv").read_text() == HEADER


@pytest.mark.parametrize("name", ["m.csv", "bad.csv"])
def test_a_table_that_was_edited_is_the_users(home, capsys, name):
    arguments = ("one.csv", "--out", "m.csv", "--quarantine", "bad.csv")
    assert check(*arguments) == 0
    (home / name).write_text((home / name).read_text().replace(",3,", ",30,") + "# mine\n")
    before = contents(home)
    assert check(*arguments) == 2
    assert name in capsys.readouterr().err and contents(home) == before
    (home / name).rename(home / "kept.csv")
    assert check(*arguments) == 0 and (home / name).exists()


def test_the_same_command_again_goes_on_also_with_restart(home, capsys):
    for more in ((), (), ("--restart",), ("--restart",), ()):
        assert check("one.csv", "--out", "m.csv", *more) == 0
        assert ("2 files decoded" in capsys.readouterr().out) == (more == ("--restart",) or not (home / "seen").exists())
        (home / "seen").touch()
    assert not list(home.glob("*.old*"))


def test_a_copy_of_the_folder_goes_on(home, tmp_path):
    import shutil

    (home / "out").mkdir()
    assert check("one.csv", "--out", "out/m.csv") == 0
    shutil.copytree("out", "moved")
    assert check("one.csv", "--out", "moved/m.csv") == 0


def test_tables_of_version_0_1_are_known_and_kept_where_they_differ(home, capsys):
    assert check("one.csv", "--out", "m.csv") == 0
    forget_tables(home / "m.csv.journal")
    assert check("one.csv", "--out", "m.csv") == 0  # nothing has changed: nothing is kept
    assert not list(home.glob("*.old"))

    forget_tables(home / "m.csv.journal")
    edited = (home / "m.csv").read_text().replace(",3,", ",30,")
    (home / "m.csv").write_text(edited)
    assert check("one.csv", "--out", "m.csv") == 0
    assert (home / "m.csv.old").read_text() == edited and "m.csv.old" in capsys.readouterr().out
    assert read_manifest("m.csv").label_S.tolist() == [3]
    assert [path.name for path in home.glob("*.old*")] == ["m.csv.old"]

    forget_tables(home / "m.csv.journal")
    # of another list, by version 0.1
    (home / "quarantine.csv").write_text(HEADER + "/elsewhere/b.mp4,1,torn\n")
    assert check("one.csv", "--out", "m.csv") == 0
    assert "elsewhere" in (home / "quarantine.csv").read_text() and (home / "m.quarantine.csv").exists()


def test_a_check_that_was_killed_does_not_take_the_tables_of_another(home, monkeypatch):
    """Its journal tells of no table yet, as that of version 0.1; one of version 0.1 that goes on
    still knows its own."""
    (home / "good.csv").write_text("path,label\nvideos/a.mp4,3\n")
    assert check("good.csv", "--out", "good1.csv") == 0
    assert (home / "quarantine.csv").read_text() == HEADER

    def die_after_one(*how, **more):
        yield next(check_here(*how, **more))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(check_set, "run_tasks", die_after_one)
        assert check("one.csv", "--out", "m.csv") == 130
    assert check("one.csv", "--out", "m.csv") == 0
    assert (home / "quarantine.csv").read_text() == HEADER and (home / "m.quarantine.csv").exists()

    forget_tables(home / "m.csv.journal")
    (home / "m.quarantine.csv").unlink()
    (home / "quarantine.csv").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(check_set, "run_tasks", die_after_one)
        os.utime("videos/a.mp4")
        assert check("one.csv", "--out", "m.csv") == 130
    assert check("one.csv", "--out", "m.csv") == 0


def test_a_file_that_appears_during_the_check_is_not_overwritten(home, monkeypatch, capsys):
    def appear(*how, **more):
        (home / "m.csv").write_text("mine")
        yield from check_here(*how, **more)

    monkeypatch.setattr(check_set, "run_tasks", appear)
    assert check("one.csv", "--out", "m.csv") == 2
    assert (home / "m.csv").read_text() == "mine" and "m.csv" in capsys.readouterr().err
    (home / "m.csv").unlink()
    monkeypatch.setattr(check_set, "run_tasks", lambda _, paths, **__: (1 / 0 for _ in paths))
    assert check("one.csv", "--out", "m.csv") == 0  # nothing is decoded again


def test_of_two_checks_that_end_together_each_writes_its_own(home, monkeypatch):
    """A second check takes the name of the quarantine, with the same content even, between the look
    and the write."""
    from mats_ds.data.prepare.checking import check_tables

    claim, theirs = check_tables.claim_name, []

    def claim_late(path):
        if not theirs:
            text = f'{HEADER}{home}/videos/bad.mp4,4,"an HTML page, not a video: the download was answered with a page"\n'
            (home / "quarantine.csv").write_text(text)
            theirs.append(text)
        claim(path)

    monkeypatch.setattr(check_tables, "claim_name", claim_late)
    assert check("one.csv", "--out", "m.csv") == 0
    assert (home / "m.quarantine.csv").read_text() == theirs[0]
    (home / "one.csv").write_text("path,label\nvideos/bad.mp4,40\nvideos/a.mp4,2\n")
    assert check("one.csv", "--out", "m.csv") == 0
    assert (home / "quarantine.csv").read_text() == theirs[0] and ",40," in (home / "m.quarantine.csv").read_text()


def test_a_kill_while_a_table_is_written_leaves_nothing_unknown(home, monkeypatch):
    from mats_ds.data.prepare.checking import check_tables

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    write_text = check_tables.write_text
    for number in (1, 2):  # before the first table, then before the second one, has its content
        calls = []

        def write(path, *given, limit=number, calls=calls, **more):
            calls.append(path)
            return die() if len(calls) == limit else write_text(path, *given, **more)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(check_tables, "write_text", write)
            check("one.csv", "--out", "m.csv")
    assert check("one.csv", "--out", "m.csv") == 0
    assert {path.name for path in home.iterdir()} == {"videos", "one.csv", "two.csv", "m.csv", "m.csv.journal", "quarantine.csv"}


def test_a_manifest_that_somebody_reads_stays_whole(home):
    """A training has opened it, or reads it just now: it sees the old rows or the new ones."""
    assert check("one.csv", "--out", "m.csv") == 0
    with open("m.csv", "rb", buffering=0) as reading:
        first = reading.read(10)
        (home / "one.csv").write_text("path,label\nvideos/a.mp4,77\n")
        assert check("one.csv", "--out", "m.csv") == 0
        seen = (first + reading.read()).decode()
    assert ".mp4,3," in seen and ".mp4,77," not in seen and ".mp4,77," in (home / "m.csv").read_text()


def test_content_is_looked_at_where_times_cannot_be_trusted(home, write_video, capsys):
    assert check("one.csv", "--out", "m.csv") == 0
    path = home / "videos" / "a.mp4"
    stamp, size = path.stat().st_mtime_ns, path.stat().st_size
    data = write_video(path, num_frames=16).read_bytes()
    assert len(data) <= size
    path.write_bytes(data.ljust(size, b"\0"))
    os.utime(path, ns=(stamp, stamp))
    assert check("one.csv", "--out", "m.csv") == 0
    assert "1 file decoded" in capsys.readouterr().out
    os.chmod(path, 0o600)
    assert check("one.csv", "--out", "m.csv") == 0
    assert "0 files decoded" in capsys.readouterr().out


def test_a_second_check_is_told_who_the_first_is(home):
    from mats_ds.data.prepare.checking.check_journal import journal_path, open_check_journal

    code = (
        "import sys; from pathlib import Path; from mats_ds.data.prepare.checking.check_journal import open_check_journal\n"
        "with open_check_journal(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(journal_path("m.csv"))]
    with open_check_journal(journal_path("m.csv")):
        done = subprocess.run(command, cwd=home, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 1 and f"process {os.getpid()}" in done.stderr and "host" in done.stderr
    assert not (home / ".m.csv.journal.lock").exists()
    (home / ".m.csv.journal.lock").write_text("mine")
    with open_check_journal(journal_path("m.csv")):
        pass
    assert (home / ".m.csv.journal.lock").read_text() == "mine"


@pytest.mark.parametrize("number", [28, 30, 122])
def test_a_disk_that_fails_ends_in_one_line_and_keeps_the_outcomes(home, monkeypatch, capsys, number):
    """ENOSPC, EROFS, EDQUOT while the tables are written; the same command goes on."""
    from mats_ds.data.prepare.checking import check_tables

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(check_tables, "write_text", fail)
        assert check("one.csv", "--out", "m.csv") == 2
    told = capsys.readouterr().err
    assert os.strerror(number) in told and "goes on" in told and told.startswith("error: ") and not (home / "m.csv").exists()
    assert check("one.csv", "--out", "m.csv") == 0
    assert "0 files decoded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": "fast"},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"num_frames": 17.5},
        {"num_frames": True},
        {"codec": 3},
        {"duration_seconds": float("inf")},
        {"start_seconds": "0"},
        {"width": None},
        {"more": 1},
    ],
)
def test_facts_of_a_journal_that_no_check_wrote_are_not_believed(home, capsys, wrong):
    assert check("one.csv", "--out", "m.csv") == 0
    journal = home / "m.csv.journal"
    lines = []
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("facts"):
            entry["facts"] |= wrong
        lines.append(json.dumps(entry))
    journal.write_text("\n".join([*lines, "{}", "[1]", "null", '{"version": 3, "facts": null, "path": 1}', ""]))
    capsys.readouterr()
    assert check("one.csv", "--out", "m.csv") == 0
    assert "1 file decoded" in capsys.readouterr().out
