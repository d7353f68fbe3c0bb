"""Members of tar shards by path: which paths are members, what they hold, what is refused."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from mats_ds.core.shards import members as module
from mats_ds.core.shards import open_shards
from mats_ds.core.shards.members import file_exists, is_file, open_file, split_member, stat_file, why_missing
from mats_ds.core.shards.table import dump_index, index_path, walk_headers
from mats_ds.core.storage.file_kind import not_a, why_no_video


def write_tar(path, contents, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in contents:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_index(path):
    descriptor = os.open(path, os.O_RDONLY)
    members, _ = walk_headers(descriptor, num_bytes=os.path.getsize(path))
    os.close(descriptor)
    with open(index_path(path), "w") as file:
        file.write(dump_index(members, num_bytes=os.path.getsize(path)))


NAMES = ["a.mp4", "cats/two words.mp4", "ünï/日本.webm", "line\nbreak.mkv", "a#b#c.mp4", "x.tar#y.mp4", f"{'long/' * 60}name.mp4"]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_name_is_found_with_its_bytes(tmp_path, form, indexed):
    contents = [(name, name.encode() * (number + 1) * 100) for number, name in enumerate(NAMES)]
    shard = write_tar(tmp_path / "s.tar", contents, format=form)
    if indexed:
        write_index(shard)
    for name, content in contents:
        path = f"{shard}#{name}"
        assert stat_file(path).num_bytes == len(content) and is_file(path)
        with open_file(path) as file:
            assert file.read() == content and file.read() == b""
            assert file.seek(-3, os.SEEK_END) == len(content) - 3 and file.read(99) == content[-3:]
            assert file.pread(5, 2) == content[2:7] and file.pread(5, len(content) + 1) == b""
            assert file.name == name


def test_an_ordinary_file_of_that_name_comes_first(tmp_path):
    (tmp_path / "a#b.mp4").write_bytes(b"hash")
    assert split_member(tmp_path / "a#b.mp4") is None and open_file(tmp_path / "a#b.mp4").read() == b"hash"
    write_tar(tmp_path / "s.tar", [("b.mp4", b"member")])
    (tmp_path / "s.tar#b.mp4").write_bytes(b"ordinary")
    assert open_file(tmp_path / "s.tar#b.mp4").read() == b"ordinary"


def test_the_first_archive_that_exists_is_the_shard(tmp_path):
    folder = tmp_path / "old.tar#1"
    folder.mkdir()
    write_tar(folder / "s.tar", [("x.tar#y.mp4", b"inner")])
    assert split_member(f"{folder}/s.tar#x.tar#y.mp4") == (f"{folder}/s.tar", "x.tar#y.mp4")


def test_links_devices_and_names_that_lead_out_are_no_members(tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in (("link.mp4", tarfile.SYMTYPE), ("hard.mp4", tarfile.LNKTYPE), ("pipe.mp4", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        for name in ("../secret.mp4", "/etc/passwd", "a/../../secret.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"bad"))
    for name in ("link.mp4", "hard.mp4", "pipe.mp4", "../secret.mp4", "/etc/passwd", "a/../../secret.mp4"):
        assert not file_exists(f"{tmp_path}/s.tar#{name}")
        with pytest.raises(OSError, match="no regular file"):
            open_file(f"{tmp_path}/s.tar#{name}")


def test_names_with_a_dot_before_them_and_repeated_names(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("./a.mp4", b"first"), ("a.mp4", b"second")])
    assert open_file(f"{shard}#a.mp4").read() == b"second"  # as `tar x` leaves it


def test_a_changed_shard_is_read_anew(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.mp4", b"one" * 400), ("b.mp4", b"two")])
    write_index(shard)
    with open_file(f"{shard}#a.mp4") as old:
        write_tar(tmp_path / "new.tar", [("b.mp4", b"TWO"), ("a.mp4", b"ONE" * 400)])
        os.replace(tmp_path / "new.tar", shard)  # of the same size: the index beside it is stale
        assert open_file(f"{shard}#a.mp4").read() == b"ONE" * 400
        assert open_file(f"{shard}#b.mp4").read() == b"TWO"
        assert old.read() == b"one" * 400  # whoever reads the old one goes on with it


def test_an_index_that_does_not_fit_is_named_and_passed_over(tmp_path, caplog):
    shard = write_tar(tmp_path / "s.tar", [("a.mp4", b"one")])
    for content in ("", "{}", "[1]\n", '{"format": "mats_ds tar index", "version": 1, "shard_bytes": 7}\n', "\0" * 99):
        with open(index_path(shard), "w") as file:
            file.write(content)
        os.utime(shard)
        assert open_file(f"{shard}#a.mp4").read() == b"one"
    assert "s.tar.index" in caplog.text and "7 bytes" in caplog.text


def test_an_index_cannot_lead_out_of_its_shard(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.mp4", b"one")])
    write_index(shard)
    lines = Path(index_path(shard)).read_text().replace(", 512, 3, ", ", 512, 30000, ")
    with open(index_path(shard), "w") as file:
        file.write(lines)
    assert open_file(f"{shard}#a.mp4").read() == b"one"


@pytest.mark.parametrize("indexed", [True, False])
def test_a_torn_shard_gives_what_is_whole(tmp_path, indexed):
    shard = write_tar(tmp_path / "s.tar", [("a.mp4", b"a" * 1000), ("b.mp4", b"b" * 100_000), ("c.mp4", b"c")])
    if indexed:
        write_index(shard)
    os.truncate(shard, 50_000)
    assert open_file(f"{shard}#a.mp4").read() == b"a" * 1000
    with pytest.raises(OSError, match="breaks off"):
        open_file(f"{shard}#b.mp4")
    with pytest.raises(OSError, match="breaks off"):
        open_file(f"{shard}#c.mp4")


def test_headers_that_ask_for_memory_or_have_no_end_are_refused(tmp_path):
    huge = tarfile.TarInfo("././@PaxHeader")
    huge.type, huge.size = b"x", 8 << 30
    (tmp_path / "huge.tar").write_bytes(huge.tobuf(tarfile.USTAR_FORMAT if huge.size < 1 << 33 else tarfile.GNU_FORMAT))
    with open(tmp_path / "huge.tar", "r+b") as file:
        file.truncate(9 << 30)  # a hole
    backward = bytearray(tarfile.TarInfo("a.mp4").tobuf(tarfile.GNU_FORMAT))
    backward[124:136] = b"\xff" * 8 + (-1024 & 0xFFFFFFFF).to_bytes(4, "big")
    backward[148:156] = b" " * 8
    backward[148:156] = b"%06o\0 " % sum(backward)
    (tmp_path / "back.tar").write_bytes(bytes(backward) + bytes(10_000))
    for name in ("huge.tar", "back.tar"):
        with pytest.raises(OSError, match="no tar archive|no regular file"):
            open_file(f"{tmp_path}/{name}#a.mp4")


def test_what_is_no_archive_says_so(tmp_path):
    write_tar(tmp_path / "s.tar", [("a.mp4", b"one")])
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "s.tar", "a.mp4")
    os.link(tmp_path / "z.tar.gz", tmp_path / "z.tar")
    (tmp_path / "t.tar").write_text("no archive")
    (tmp_path / "f.tar").mkdir()
    for name in ("z.tar", "z.tar.gz"):
        with pytest.raises(OSError, match="compressed.*prepare pack"):
            open_file(f"{tmp_path}/{name}#a.mp4") if name == "z.tar" else stat_file(f"{tmp_path}/{name}#a.mp4")
    with pytest.raises(OSError, match="no tar archive"):
        open_file(f"{tmp_path}/t.tar#a.mp4")
    with pytest.raises(OSError):
        open_file(f"{tmp_path}/f.tar#a.mp4")
    with pytest.raises(FileNotFoundError):
        stat_file(f"{tmp_path}/none.tar#a.mp4")


def test_open_shards_are_bounded_and_shared_by_all_readers(tmp_path, monkeypatch):
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 3)
    monkeypatch.setattr(module, "_SHARDS", open_shards.OpenShards())
    shards = [write_tar(tmp_path / f"{n}.tar", [(f"{m}.mp4", b"%d" % m) for m in range(20)]) for n in range(8)]

    def count_open():
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in links)

    readers = [open_file(f"{shards[0]}#{m}.mp4") for m in range(20)]
    assert count_open() == 1
    for shard in shards:
        assert open_file(f"{shard}#7.mp4").read() == b"7"
    assert count_open() == 4  # three kept, and the one that is still read from
    assert [reader.read() for reader in readers] == [b"%d" % m for m in range(20)]
    del readers
    assert count_open() == 3


def test_the_reason_names_the_shard_and_what_the_entry_is(tmp_path):
    sparse = tmp_path / "hole.mp4"
    sparse.touch()
    os.truncate(sparse, 1 << 20)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in (("link.mp4", tarfile.SYMTYPE), ("hard.mp4", tarfile.LNKTYPE), ("dir.mp4", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.mp4"
            archive.addfile(info)
    subprocess.run(["tar", "--sparse", "-cf", "hole.tar", "hole.mp4"], cwd=tmp_path, check=True)
    (tmp_path / "f.tar").mkdir()
    cases = {
        "s.tar#link.mp4": "a link to 'a.mp4'",
        "s.tar#hard.mp4": "a link to 'a.mp4'",
        "s.tar#./dir.mp4": "a folder",
        "s.tar#gone.mp4": "'gone.mp4'",
        "hole.tar#hole.mp4": "a sparse file",
        "f.tar#a.mp4": "not a regular file",
        "none.tar#a.mp4": "not there",
    }
    for path, reason in cases.items():
        why = why_missing(f"{tmp_path}/{path}")
        assert reason in why and path.partition("#")[0] in why, path
        assert why in not_a("video", f"{tmp_path}/{path}") and f"{tmp_path}/{path}" in not_a("video", f"{tmp_path}/{path}")
    assert "compressed" in not_a("video", f"{tmp_path}/s.tar.gz#a.mp4")
    assert why_missing(tmp_path / "gone.mp4") == "" and why_missing(tmp_path / "s.tar") == ""
    assert f"{tmp_path}/s.tar#" in why_no_video(tmp_path / "s.tar", "no file")


def test_a_shard_that_was_replaced_is_named_once_and_in_each_reason(tmp_path, caplog):
    shard = write_tar(tmp_path / "s.tar", [("a.mp4", b"one"), ("b.mp4", b"two")])
    write_index(shard)
    write_tar(shard, [("c.mp4", b"one"), ("d.mp4", b"two")])  # of the same size
    for name in ("a.mp4", "b.mp4"):
        assert "replaced" in why_missing(f"{shard}#{name}") and "s.tar" in why_missing(f"{shard}#{name}")
    shard.write_bytes(b"")
    assert all("s.tar" in why_missing(f"{shard}#{name}") for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert caplog.text.count("does not fit") == 1 and caplog.text.count("this one has 0") == 1


def test_a_member_is_found_by_the_name_that_tar_prints(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("./a.mp4", b"dot")])
    assert open_file(f"{shard}#./a.mp4").read() == b"dot"
