"""Files whose names look like something else: addresses, options, patterns. Each is the file of
that name, in its own folder."""

from __future__ import annotations

import os

import av
import numpy as np
import pytest

from mats_ds.config.load import load_recipe
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.copying.copies import make_copies
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.video.containers import file_url
from mats_ds.data.video.indexing import index_video
from mats_ds.visualization.video_writer import write_mp4

NUM_FRAMES = 20
NAMES = [
    "co:lon 12:30.mp4",
    "file:abc.mp4",
    "http:abc.mp4",
    "concat:abc.mp4",
    "data:abc.mp4",
    "pipe:0.mp4",
    "subfile,,start,0,end,0,,:abc.mp4",
    "-abc.mp4",
    "abc%03d.mp4",
    "a|b.mp4",
    "~.mp4",
    "s*t[r]?.mp4",
    "key=value.mp4",
    " blanks .mp4",
    'quote".mp4',
    "größe.mp4",
]
NOT_UTF8 = os.fsdecode(b"caf\xe9.mp4")


def write(path):
    with av.open(file_url(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(NUM_FRAMES):
            picture = np.full((32, 48, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """tmp_path is the current folder: a relative path is a bare name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*NAMES, NOT_UTF8, "line\nbreak.mp4"])
def test_a_bare_name_is_a_file(here, name):
    write(name)
    assert os.listdir(here) == [name]
    assert index_video(name).num_frames == NUM_FRAMES


def test_a_film_gets_the_name_that_it_is_given(here):
    write_mp4("co:lon.mp4", [np.zeros((32, 48, 3), np.uint8)] * 3, frames_per_second=5)
    assert os.listdir(here) == ["co:lon.mp4"]


def test_copies_of_files_with_such_names(here):
    for name in (*NAMES, NOT_UTF8):
        (here / "in").mkdir(exist_ok=True)
        write(here / "in" / name)
    source = read_manifest("in")
    summary = make_copies(source, "co:pies", scanned=here / "in", base=here / "in", settings=CopySettings(short_side=16))
    assert summary.num_copied == len(NAMES)
    assert list(summary.failed.values()) == ["its name is not UTF-8: rename it"]
    manifest = read_manifest(here / "co:pies" / "manifest.csv")
    assert sorted(os.path.basename(path) for path in manifest.paths) == sorted(NAMES)
    assert all(os.path.isfile(path) for path in manifest.paths)
    assert "caf\\udce9.mp4" in (here / "co:pies" / "failed.csv").read_text()


def test_blanks_that_belong_to_a_name_in_a_table(here):
    (here / " a .mp4").touch()
    (here / "b.mp4").touch()
    (here / "m.csv").write_text("path,label\n a .mp4,0\n b.mp4 ,1\n")
    assert [os.path.basename(path) for path in read_manifest("m.csv").paths] == [" a .mp4", "b.mp4"]


@pytest.mark.parametrize("text", ["12:30", "a=b.csv", "my #1.csv", "[x].csv", "*.csv", "a: b.csv", "5", "co:lon.csv"])
def test_a_path_in_an_override_is_what_it_says(text):
    assert load_recipe("tiny", [f"data.manifest={text}"]).data.manifest == text


def test_an_override_can_still_say_that_there_is_no_path():
    assert load_recipe("tiny", ["data.manifest=null"]).data.manifest is None
    assert load_recipe("tiny", ['data.manifest="a b.csv"']).data.manifest == "a b.csv"
