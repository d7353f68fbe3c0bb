"""Files are replaced as a whole, and a link never leads a writer or a reader elsewhere."""

import os

import pytest

from mats_ds.core.storage.files import (
    WrongKindOfFile,
    open_regular,
    open_to_append,
    read_bytes,
    replace_file,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replace_file(path) as aside:
        aside.write_text("ne")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("durable", [False, True])
def test_replaces_what_is_there_and_keeps_the_umask(tmp_path, durable):
    path = tmp_path / ("n" * 250 + ".txt")
    old = os.umask(0o027)
    try:
        write_text(path, "one\r\n", durable=durable)
        write_text(path, "two\r\n", durable=durable)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two\r\n" and path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_refuses_what_is_no_regular_file(tmp_path, kind):
    path, private = tmp_path / "report.html", tmp_path / "private"
    private.write_text("mine")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(private if kind == "link" else tmp_path / "nowhere")
    for attempt in (lambda: write_text(path, "x"), lambda: open_to_append(path), lambda: open_regular(path)):
        with pytest.raises(WrongKindOfFile, match="report.html"):
            attempt()
    assert private.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_no_folder_on_the_way_may_be_a_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("private")
    (tmp_path / "run" / "sub").symlink_to(tmp_path / "elsewhere")
    assert read_bytes(tmp_path / "run" / "sub" / "a.txt", max_bytes=7) == b"private"
    with pytest.raises(WrongKindOfFile, match="sub is a symbolic link"):
        read_bytes(tmp_path / "run" / "sub" / "a.txt", max_bytes=7, below=tmp_path / "run")
    (tmp_path / "way").symlink_to(tmp_path / "run")  # the folder that the user named may be a link
    (tmp_path / "run" / "b.txt").write_text("b")
    assert read_bytes(tmp_path / "way" / "b.txt", max_bytes=7, below=tmp_path / "way") == b"b"


def test_long_files_are_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", max_bytes=5) == b"12345"
    with pytest.raises(ValueError, match="4 bytes"):
        read_bytes(tmp_path / "a", max_bytes=4)


def test_what_a_link_leads_to_is_named_in_one_line(tmp_path):
    path = tmp_path / "a"
    path.symlink_to("x\n\x1b[31mred")
    with pytest.raises(WrongKindOfFile) as refused:
        open_regular(path)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)
