"""Manifests and annotation lists of any content are read or refused."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.importers import FORMATS, import_annotations
from mats_ds.data.prepare.importers.rows import format_manifest
from tests.security.json_values import objects, values

FIELDS = st.one_of(
    st.sampled_from(
        ["path", "label", "start", "end", "a.mp4", "b/c d.avi", "../../x.mp4", "/etc/passwd", "http://h/a.mp4", "concat:a|b", "0"]
        + ["-1", "7", "1.5", "nan", "inf", "1e999", "２", "9" * 5000, '"', '""', '"a\nb"', "\0", "\r", "\x85", "\u2028", "é", " "]
        + ["youtube_id", "time_start", "time_end", "split", "train", "x" * 300, "v_A_g01_c01.avi", "A/v_A_g01_c01.avi 1"]
    ),
    st.text(max_size=8),
)
LINES = st.builds(str.join, st.sampled_from([",", " ", "\t", ", "]), st.lists(FIELDS, max_size=6))
TEXTS = st.builds(str.join, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(LINES, max_size=8))
CLIP_WORDS = ["clips", "id", "template", "label", "placeholders", "clip_uid", "video_uid", "state_change", "start_sec", "end_sec"]
DOCUMENTS = st.one_of(st.lists(objects(CLIP_WORDS), max_size=4), objects(CLIP_WORDS), values(CLIP_WORDS)).map(json.dumps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With one file, so that a manifest that names it is accepted."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "a.mp4").write_bytes(b"")
    return folder


@given(content=st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60)))
@example(content=b'path,label\n"' + b"x" * 200_000 + b'",1\n')  # longer than the csv module takes
@example(content=b'path,label\r"a\rb.mp4",1\r')
@example(content=b'path\n"a.mp4')
def test_a_manifest(folder, read_or_refuse, content):
    path = folder / "list.csv"
    path.write_bytes(content)
    manifest = read_or_refuse(read_manifest, path)
    assert manifest is None or len(manifest) == len(manifest.label_S) > 0


@given(content=st.one_of(TEXTS, DOCUMENTS), format=st.sampled_from(["auto", "auto", *sorted(set(FORMATS) - {"class-folders"})]))
@example(content="[" * 100_000, format="ssv2")
@example(content='{"clips": ' + "[" * 100_000, format="auto")
@example(content='label,youtube_id,time_start,time_end,split\n"' + "x" * 200_000 + '",a,1,2,train\n', format="auto")
def test_annotations(folder, read_or_refuse, format, content):
    path = folder / "annotations.txt"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    imported = read_or_refuse(import_annotations, path, format=format)
    if imported is not None and imported.rows:
        again = folder / "again.csv"
        again.write_text(format_manifest(imported.rows), encoding="utf-8", newline="")
        read_or_refuse(read_manifest, again)


@pytest.mark.parametrize(
    "line", ["a" + " " * 100_000 + "b", "a" + "," * 100_000 + "b", "a " + "1" * 100_000 + "x", "1 " * 50_000 + "x", "a" * 200_000]
)
def test_a_long_line_takes_no_time(folder, read_or_refuse, line):
    path = folder / "long.txt"
    path.write_text(line + "\n" + line + " 3\n")
    for read in (read_manifest, import_annotations):
        begin = time.process_time()
        read_or_refuse(read, path)
        # what grows with the square of a line's length takes minutes
        assert time.process_time() - begin < 20
