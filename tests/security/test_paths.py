"""Whatever paths a manifest holds, nothing is written outside of the folder that was asked for."""

import csv
import hashlib
import json
import os

import av
import numpy as np
import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.checking.check_set import check_manifest
from mats_ds.data.prepare.copying.copies import make_copies
from mats_ds.data.prepare.copying.copy_plan import plan_copies
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.indexing import index_video

STRANGE = [
    "../../outside.mp4",
    "{folder}/../outside.mp4",
    "/etc/passwd",
    "http://127.0.0.1:1/a.mp4",
    "concat:a.mp4|b.mp4",
    "file:a.mp4",
    "link.mp4",
    "away/inside.mp4",
    "x" * 300 + ".mp4",
    "a/" * 2000 + "a.mp4",
    "-rf.mp4",
    "$(touch made).mp4",
    "; touch made;.mp4",
    '"two\nlines.mp4"',
    "%s%n{0}.mp4",
    "\u202egpm.4pm",
]


def write_film(path, num_frames=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(num_frames):
            picture = np.full((48, 64, 3), number * 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def data(tmp_path):
    """A folder of a sound video, with links, and a manifest of strange paths; beside it, files that
    are nobody's business."""
    folder = tmp_path / "home" / "data"
    film = write_film(folder / "a.mp4")
    for outside in (tmp_path / "outside.mp4", tmp_path / "home" / "outside.mp4", tmp_path / "elsewhere" / "inside.mp4"):
        outside.parent.mkdir(exist_ok=True)
        outside.write_bytes(film.read_bytes())
    for name in ("-rf.mp4", "$(touch made).mp4", "; touch made;.mp4", "two\nlines.mp4", "%s%n{0}.mp4", "\u202egpm.4pm"):
        (folder / name).write_bytes(film.read_bytes())
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "away").symlink_to(tmp_path / "elsewhere")
    rows = "".join(f"{path.format(folder=folder) if '{folder}' in path else path},1\n" for path in ["a.mp4", *STRANGE])
    (folder / "list.csv").write_text("path,label\n" + rows)
    return folder


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def everything(folder, *, but):
    """What lies below a folder, aside from `but`: links as links, files by their hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if but not in (path, *path.parents):
            is_file = path.is_file() and not path.is_symlink()
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else os.path.islink(path)
    return found


def test_copies_lie_below_out(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = everything(tmp_path, but=out)
    monkeypatch.chdir(tmp_path)
    summary = make_copies(read_manifest(data / "list.csv"), out, base=data, num_workers=2)
    assert everything(tmp_path, but=out) == before
    assert summary.num_copied >= 9 and all(not os.path.exists(path) or path == "/etc/passwd" for path in summary.failed)
    for row in read_rows(summary.manifest):
        assert os.path.realpath(out / row["path"]).startswith(f"{out}/")


def test_a_check_writes_its_three_files_only(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    before = everything(tmp_path, but=out)
    monkeypatch.chdir(tmp_path)
    check_manifest(read_manifest(data / "list.csv"), out=out / "m.csv", quarantine=out / "bad.csv", num_workers=1)
    assert everything(tmp_path, but=out) == before
    assert {path.name for path in out.iterdir()} == {"m.csv", "m.csv.journal", "bad.csv"}


def test_strange_paths_are_read_or_named_and_that_is_all(data):
    for path in read_manifest(data / "list.csv").paths:
        try:
            assert index_video(path).num_frames == 10
        except UnreadableVideo as error:
            assert error.reason and "\n" not in error.reason


def test_a_manifest_with_a_zero_byte_is_refused(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,label\na\0b.mp4,1\n")
    with pytest.raises(ValueError, match="binary data"):
        read_manifest(tmp_path / "list.csv")


def test_a_link_in_out_that_leads_away_is_refused(data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "deep").symlink_to(tmp_path / "elsewhere")
    write_film(data / "deep" / "b.mp4")
    (tmp_path / "list.csv").write_text(f"path\n{data}/deep/b.mp4\n{data}/a.mp4\n")
    with pytest.raises(ValueError, match="leads out of it"):
        plan_copies(read_manifest(tmp_path / "list.csv"), out, base=data)


def test_a_foreign_journal_has_nothing_removed_or_believed_outside_of_out(data, tmp_path):
    out = tmp_path / "out"
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    (tmp_path / "list.csv").write_text(f"path\n{data}/a.mp4\n")
    manifest = read_manifest(tmp_path / "list.csv")
    make_copies(manifest, out, base=data)
    entry = json.loads((out / "copies.jsonl").read_text())
    lines = []
    for path in (str(thesis), "../thesis.txt", f"{out}/../thesis.txt"):
        pieces = [entry["pieces"][0] | {"path": path, "num_bytes": 4}]
        lines += [json.dumps(entry | {"pieces": pieces}), json.dumps(entry | {"pieces": pieces, "kind": {}})]
    lines += [
        "[" * 100_000,
        "[]",
        '{"source": []}',
        json.dumps({"source": entry["source"], "pieces": [3]}),
        json.dumps(entry | {"pieces": 7}),
    ]
    (out / "copies.jsonl").write_text("\n".join(lines))
    (out / "a.mp4").unlink()
    summary = make_copies(manifest, out, base=data)
    assert summary.num_reused == 0 and (out / "a.mp4").exists() and thesis.read_text() == "mine"
    [row] = read_rows(summary.manifest)
    assert row["path"] == "a.mp4"
