"""A run folder of somebody else: nothing is written or read through what stands there, and nothing
foreign is overwritten."""

import errno
import io
import json
import os
import socket
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from mats_ds.reporting import report_html, write
from mats_ds.reporting.page import markup
from tests.reporting.fake_runs import run_report, write_fake_run

SECRET = "ssh-ed25519 AAAA very-private"


def make_png(width=3, height=2, text=None):
    stream, info = io.BytesIO(), PngImagePlugin.PngInfo()
    if text:
        info.add_text("note", text)
    Image.new("RGB", (width, height), (10, 20, 30)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def make_bomb(side):
    """A PNG of a kilobyte or so whose header says side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "home" / "authorized_keys"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def put(kind, path, private):
    """Something that is no regular file, at `path`."""
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(private)
    elif kind == "dangling link":
        path.symlink_to(private.parent / "new")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path has a hundred characters at most
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)


KINDS = ["link", "dangling link", "folder", "pipe", "socket"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_what_stands_where_a_report_goes_is_left_as_it_is(tmp_path, capsys, private, name, kind):
    run_dir = write_fake_run(tmp_path / "run")
    put(kind, run_dir / name, private)
    status, text, errors = run_report(capsys, run_dir)
    assert (status, text[:5], errors.count("\n")) == (0, "PASS:", 1)
    assert f"{name} could not be written" in errors
    assert private.read_text() == SECRET and os.listdir(private.parent) == [private.name]
    other = ({"report.html", "report.json"} - {name}).pop()
    assert (run_dir / other).stat().st_size > 1000
    assert not [each for each in os.listdir(run_dir) if each.endswith(".part")]


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_file_of_another_program_is_not_overwritten(tmp_path, capsys, name):
    run_dir = write_fake_run(tmp_path / "run")
    content = b"<!DOCTYPE html><html><body>my thesis</body></html>" if name.endswith("html") else b'{"schema": 2, "mine": true}'
    (run_dir / name).write_bytes(content)
    status, text, errors = run_report(capsys, run_dir)
    assert (status, text[:5], errors.count("\n")) == (0, "PASS:", 1)
    assert f"{name} could not be written" in errors and "rename it" in errors
    assert (run_dir / name).read_bytes() == content


def test_a_report_is_renewed_also_one_of_version_01(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    run_report(capsys, run_dir)
    page, tree = ((run_dir / name).read_text() for name in ("report.html", "report.json"))
    assert markup.GENERATOR in page[:200]
    old = page.replace(markup.GENERATOR + "\n", "") + "<!-- old -->"  # as version 0.1 wrote it
    (run_dir / "report.html").write_text(old)
    (run_dir / "report.json").write_text(tree + " ")
    assert "could not" not in run_report(capsys, run_dir)[2]
    assert "<!-- old -->" not in (run_dir / "report.html").read_text()
    assert (run_dir / "report.json").read_text() == tree
    (run_dir / "report.html").write_text("")  # version 0.1 on a full disk
    assert "could not" not in run_report(capsys, run_dir)[2]


def test_a_folder_that_cannot_be_written_gives_the_text_and_one_line(tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "somewhere")

    for module in (write, report_html):
        monkeypatch.setattr(module, "write_text", refuse)
    run_dir = write_fake_run(tmp_path / "run")
    status, text, errors = run_report(capsys, run_dir)
    assert (status, text[:5]) == (0, "PASS:")
    assert errors == "report: report.json and report.html could not be written: Read-only file system\n"


@pytest.mark.parametrize(
    "content", ["[]", "3", "{}", '{"schema": 1, "run_dir": "wandb"}', "", "\ufeff[]", '{"world_size": 1e999}']
)
def test_a_folder_that_is_no_run_of_ours_gets_nothing(tmp_path, capsys, content):
    folder = tmp_path / "wandb"
    folder.mkdir()
    (folder / "run.json").write_text(content)
    status, text, errors = run_report(capsys, folder)
    assert (status, text, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ") and "run.json" in errors
    assert os.listdir(folder) == ["run.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["run.json", "outcome.json", "plan.json", "plan-measured.json", "result.json"])
def test_a_file_of_figures_that_is_no_regular_file_is_refused(tmp_path, capsys, private, name, kind):
    run_dir = write_fake_run(tmp_path / "run")
    if name == "plan-measured.json":
        from mats_ds.planning.plan_file import write_plan
        from tests.reporting.fake_runs import make_plan

        write_plan(run_dir, make_plan(saved_bytes=5))
    put(kind, run_dir / name, private)
    status, text, errors = run_report(capsys, run_dir)
    assert (status, text, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ") and name in errors and SECRET not in errors
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["recipe.yaml", "ds_config.json", "reconstruction.png", "bad_clips.csv"])
def test_a_file_beside_that_is_no_regular_file_is_left_out(tmp_path, capsys, private, name, kind):
    private.write_bytes(make_png(text=SECRET) if name.endswith("png") else f"0,1,{SECRET},2,{SECRET}\n".encode())
    run_dir = write_fake_run(tmp_path / "run")
    put(kind, run_dir / name, private)
    status, text, _ = run_report(capsys, run_dir)
    assert status == 0
    assert f"{name} is left out: " in " ".join(text.split())
    page = (run_dir / "report.html").read_text()
    assert f"{name} is left out: " in page
    for written in (page, (run_dir / "report.json").read_text(), text):
        assert SECRET not in written and "data:image" not in written


@pytest.mark.parametrize("kind", KINDS)
def test_records_that_are_no_regular_files_are_refused(tmp_path, capsys, private, kind):
    run_dir = write_fake_run(tmp_path / "run")
    put(kind, run_dir / "records" / "rank-00001.jsonl", private)
    status, _, errors = run_report(capsys, run_dir)
    assert (status, errors.count("\n")) == (2, 1) and "rank-00001.jsonl" in errors and SECRET not in errors


def test_neither_is_a_linked_folder_of_records_read(tmp_path, capsys):
    other, run_dir = write_fake_run(tmp_path / "other"), write_fake_run(tmp_path / "run")
    for path in (run_dir / "records").iterdir():
        path.unlink()
    (run_dir / "records").rmdir()
    (run_dir / "records").symlink_to(other / "records")
    status, _, errors = run_report(capsys, run_dir)
    assert (status, errors.count("\n")) == (2, 1) and "records is a symbolic link" in errors


def test_the_run_itself_may_be_a_link_and_its_checkpoints_too(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    (tmp_path / "big_disk").mkdir()
    (run_dir / "checkpoints").symlink_to(tmp_path / "big_disk")
    (tmp_path / "latest").symlink_to(run_dir)
    assert run_report(capsys, tmp_path / "latest")[0] == 0
    assert (run_dir / "report.html").exists() and os.listdir(tmp_path / "big_disk") == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SECRET.encode(), "no PNG picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no PNG picture"),
        (b"\x89PNG\r\n\x1a\n" + SECRET.encode(), "no PNG picture"),
        (make_png()[:-30], "no PNG picture"),
        (make_bomb(60_000), "pixels"),
        (make_bomb(5_000), "no PNG picture"),  # few enough pixels, which are not there
        (b"\x89PNG\r\n\x1a\n" + bytes(2**25), "longer than"),
    ],
    ids=["text", "svg", "signature", "torn", "bomb", "empty", "long"],
)
def test_what_is_no_picture_is_not_embedded(tmp_path, capsys, content, words):
    run_dir = write_fake_run(tmp_path / "run")
    (run_dir / "reconstruction.png").write_bytes(content)
    status, text, _ = run_report(capsys, run_dir)
    assert status == 0
    assert "reconstruction.png is left out" in " ".join(text.split()) and words in " ".join(text.split())
    assert "<img" not in (run_dir / "report.html").read_text()


def test_long_inputs_and_tables_are_left_out_and_the_rest_is_shown(tmp_path, capsys):
    run_dir = write_fake_run(tmp_path / "run")
    (run_dir / "recipe.yaml").write_bytes(b"a: 1\n" * 2**17)
    (run_dir / "bad_clips.csv").write_text('0,1,good.mp4,3,torn\n0,1,"' + "x" * 300_000 + "\n" + "y\n" * 100_000)
    text = " ".join(run_report(capsys, run_dir)[1].split())
    assert "recipe.yaml is left out" in text and "bad_clips.csv is left out from line" in text and "good.mp4 (torn)" in text
    assert (run_dir / "report.html").stat().st_size < 200_000


def test_a_comparison_names_the_bad_one_of_two(tmp_path, capsys):
    good, bad = write_fake_run(tmp_path / "good"), write_fake_run(tmp_path / "bad")
    tree = json.loads((bad / "run.json").read_text())
    (bad / "run.json").write_text(json.dumps(tree | {"world_size": 10**9}))
    for pair in ((good, bad), (bad, good)):
        status, text, errors = run_report(capsys, "--compare", *pair)
        assert (status, text, errors.count("\n")) == (2, "", 1)
        assert str(bad) in errors and str(good) not in errors and "1000000000" in errors


def test_a_comparison_of_long_recipes_takes_no_time_and_shows_no_linked_file(tmp_path, capsys, private):
    """difflib.ndiff, which looks for alike lines, takes minutes for these."""
    a, b = write_fake_run(tmp_path / "a"), write_fake_run(tmp_path / "b")
    for run_dir, letter in ((a, "a"), (b, "b")):
        (run_dir / "recipe.yaml").write_text("".join(f"key_{number}: {letter}{'x' * 80}{number}\n" for number in range(2500)))
    (b / "ds_config.json").symlink_to(private)
    begin = os.times()
    status, text, _ = run_report(capsys, "--compare", a, b)
    end = os.times()
    assert status == 0 and end.user - begin.user < 20
    assert "B: ds_config.json is left out" in text and SECRET not in text
    assert "- key_0: a" in text and "+ key_0: b" in text
