"""Files are replaced in one step and read within bounds; a link never leads a writer or a reader
elsewhere."""

import hashlib
import os

import pytest

from mats_ds.core.storage.files import (
    WrongKindOfFile,
    append_text,
    format_csv,
    hash_file,
    hash_text,
    is_same_file,
    open_regular,
    open_to_append,
    read_bytes,
    read_text,
    replace_file,
    why_no_file_name,
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


def test_a_text_is_read_through_a_link_only_where_links_are_followed(tmp_path):
    (tmp_path / "blob").write_text("größer", encoding="utf-8")
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")
    assert read_text(tmp_path / "config.json", max_bytes=8, follows_links=True) == "größer"
    with pytest.raises(WrongKindOfFile, match="config.json"):
        read_text(tmp_path / "config.json", max_bytes=8)


@pytest.mark.parametrize("follows_links", [False, True])
def test_what_is_long_or_no_text_is_refused(tmp_path, follows_links):
    with (tmp_path / "a").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: nothing of it is on the disk
    with pytest.raises(ValueError, match="1,000 bytes"):
        read_text(tmp_path / "a", max_bytes=1000, follows_links=follows_links)
    (tmp_path / "b").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="UTF-8.* byte 2"):
        read_text(tmp_path / "b", max_bytes=1000, follows_links=follows_links)


def test_a_file_and_its_text_have_one_hash(tmp_path):
    text = "a\r\n\udc80\n"
    write_text(tmp_path / "a", text, errors="backslashreplace")
    assert hash_file(tmp_path / "a") == hash_text(text) == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(WrongKindOfFile):
        hash_file(tmp_path / "link")
    assert is_same_file(tmp_path / "link", tmp_path / "a") and not is_same_file(tmp_path / "a", tmp_path / "b")


def test_rows_are_appended_as_lines_of_a_table(tmp_path):
    with open_to_append(tmp_path / "a.csv") as file:
        append_text(file, format_csv([("path", "label"), ("a,b.mp4", 3)]))
        append_text(file, format_csv([('say "c"', None), ("\udc80", 7)]))
    assert (tmp_path / "a.csv").read_bytes() == b'path,label\n"a,b.mp4",3\n"say ""c""",\n\\udc80,7\n'


@pytest.mark.parametrize(
    "name",
    ["tiny", "ucf101-long_2.0", "my run (v2), 50% + a=b", "видео", "動画", "می‌خواهم", "é" * 100, "...a"[3:], "a..b", "#1 @home"],
)
def test_names_of_any_script_are_names(name):
    assert why_no_file_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["", " ", " a", "a ", ".", "..", "../..", "a/b", "/etc", "a\\b", ".hidden", "-rf", "~root", "a.", "a\nb", "a\x1b[2J", "a\0b",
     "a\u202eb", "a\ud800", "c:a", "a*", "a" * 101, "動" * 67, "a\u2028b"],
)  # fmt: skip
def test_what_leads_elsewhere_or_cannot_be_seen_is_none(name):
    assert why_no_file_name(name)
