"""extract.py as its users start it: the encoder's own features, in shards that are resumed, the
same on any number of ranks."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mats_ds
from mats_ds import extract
from mats_ds.data.loading.build import read_views
from mats_ds.data.manifest import read_manifest
from mats_ds.evaluation.features import feature_folder
from mats_ds.evaluation.features.feature_store import read_shard
from mats_ds.models.weights.origin import Origin
from tests.trained_models import GRID, save_autoencoder, save_classifier, write_manifest, write_videos

FEW = ["--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("extract")


@pytest.fixture(scope="module")
def manifest(folder):
    """Five readable videos without labels, and in their middle one that is none."""
    videos = [(path, "") for path, _ in write_videos(folder / "set", num_videos=5)]
    broken = folder / "broken.mp4"
    broken.write_text("no video")
    return write_manifest(folder / "videos.csv", [*videos[:2], (broken, ""), *videos[2:]])


@pytest.fixture(scope="module")
def model(folder):
    return save_classifier(folder / "classifier.safetensors")


def run(*arguments):
    """(status, stdout, stderr) of one rank."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = extract.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def index_of(out):
    with (out / "index.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def expected(model_path, manifest, **views):
    """{(sample, clip, crop): VideoTokens of that one view}, from the notebook's door."""
    encoder = mats_ds.load_encoder(model_path)
    section = mats_ds.load_recipe("tiny").clip.model_copy(
        update=dict(num_frames=4, height=32, width=48, tubelet=(2, 8, 8), stride=4, stride_seconds=None, sampling="dense")
    )
    found = {}
    size = dict(num_frames=4, micro_batch=1, device=torch.device("cpu"))
    for batch in read_views(read_manifest(manifest), recipe_clip=section, **size, **views):
        if batch.readable[0]:
            view = batch.views[0]
            found[view.sample, view.clip, view.crop] = encoder.tokens(batch.clips.frames_BTHWC)
    return found


@pytest.mark.parametrize("format", ["safetensors", "npz"])
@pytest.mark.parametrize("pool", ["mean", "tubelet", "none"])
def test_a_shard_holds_the_encoders_features_and_the_index_says_where(folder, manifest, model, pool, format):
    out = folder / f"{pool}-{format}"
    arguments = ["--pool", pool, "--format", format, "--shard_videos", "4", "--crops", "2", *FEW]
    status, told, err = run("--model", model, "--manifest", manifest, "--out", out, *arguments)
    assert status == 0, err
    assert "10 views of 5 videos (of 6) in 2 shards" in told and "1 unreadable" in told
    wanted = expected(model, manifest, num_clips=1, num_crops=2)
    rows = index_of(out)
    assert [(int(row["sample"]), int(row["clip"]), int(row["crop"])) for row in rows] == sorted(wanted)
    assert {row["shard"] for row in rows} == {f"features-0000{number}.{format}" for number in (0, 1)}
    for row in rows:
        arrays, number = read_shard(out / row["shard"]).arrays, int(row["row"])
        view = int(row["sample"]), int(row["clip"]), int(row["crop"])
        assert tuple(int(arrays[name][number]) for name in ("sample", "clip", "crop")) == view
        tokens, features = wanted[view], arrays["features"][number]
        if pool == "mean":
            np.testing.assert_allclose(features, tokens.features_BD[0], rtol=1e-5, atol=1e-5)
        elif pool == "none":
            np.testing.assert_allclose(features, tokens.tokens_BKD[0], rtol=1e-5, atol=1e-5)
            assert np.array_equal(arrays["position"][number], tokens.position_BK3[0])
        else:
            assert features.shape == (GRID.tau, 24) and arrays["count"][number].sum() == GRID.num_tokens // 2
            weighted = (features * arrays["count"][number][:, None]).sum(axis=0) / (GRID.num_tokens // 2)
            np.testing.assert_allclose(weighted, tokens.tokens_BKD[0].mean(dim=0), rtol=1e-4, atol=1e-5)


def test_pretrained_weights_give_all_tokens_and_no_label_is_needed(folder, manifest):
    path = save_autoencoder(folder / "pretrained.safetensors")
    out = folder / "pretrained"
    assert run("--model", path, "--manifest", manifest, "--out", out, "--pool", "none", "--store", "float16", *FEW)[0] == 0
    features = read_shard(out / "features-00000.safetensors").arrays["features"]
    assert features.shape == (5, GRID.num_tokens, 24) and features.dtype == np.float16
    assert {row["label"] for row in index_of(out)} == {"-1"}


class TestResume:
    @pytest.fixture
    def begun(self, tmp_path, manifest, model):
        """(arguments, folder, {shard: bytes, time of writing}) of a finished extraction of three
        shards."""
        arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path / "out", "--shard_videos", "2", *FEW]
        assert run(*arguments)[0] == 0
        shards = sorted((tmp_path / "out").glob("features-*.safetensors"))
        assert len(shards) == 3
        return arguments, {shard: (shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards}

    @pytest.mark.parametrize("damage", ["missing", "torn", "flipped"])
    def test_only_what_is_missing_or_damaged_is_made_again(self, begun, damage, caplog):
        arguments, before = begun
        hurt = list(before)[1]
        if damage == "missing":
            hurt.unlink()
        else:
            content = bytearray(before[hurt][0])
            content[-9] ^= 4
            hurt.write_bytes(content[:-20] if damage == "torn" else content)
        with caplog.at_level("INFO", "mats_ds"):
            assert run(*arguments)[0] == 0
        assert "2 of 3 shards" in caplog.text
        for shard, (content, written) in before.items():
            assert shard.read_bytes() == content
            assert (shard.stat().st_mtime_ns == written) == (shard != hurt)

    @pytest.mark.parametrize(("name", "value"), [("pool", "tubelet"), ("keep_ratio", "0.25"), ("stride", "2")])
    def test_a_folder_of_other_settings_is_left_alone(self, begun, name, value):
        arguments, before = begun
        status, _, err = run(*arguments, f"--{name}", value)
        assert status == 2 and f"({name} is" in err and "another --out" in err
        assert all(shard.read_bytes() == content for shard, (content, _) in before.items())

    def test_a_folder_of_version_0_1_is_not_gone_on_with(self, begun):
        """Under bf16 that version rounded the position tables: its shards hold other numbers."""
        arguments, before = begun
        settings = next(iter(before)).parent / "features.json"
        tree = json.loads(settings.read_text())
        assert tree.pop("version") == 2
        settings.write_text(json.dumps(tree))
        status, _, err = run(*arguments)
        assert status == 2 and "version is None there and 2 here" in err and "another --out" in err

    def test_other_weights_are_noticed(self, begun, tmp_path):
        arguments, _ = begun
        other = save_classifier(tmp_path / "other.safetensors", head_init_scale=1.0)
        assert run(*["--model", other, *arguments[2:]])[0] == 2


def bytes_below(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


class TestOut:
    """--out DIR: new, empty or of an earlier extraction; anything else stays as it is."""

    FOREIGN = {
        "an index": {"index.csv": "path,label\nprecious.mp4,1\n"},
        "settings of another program": {"features.json": '{"name": "theirs"}'},
        "a list": {"features.json": "[]"},
        "a shard's name": {"features-00000.safetensors": "theirs"},
        "another command's": {".made_by.json": '{"made_by": "probe"}', "probe.json": "{}"},
        "notes": {"notes.txt": "theirs"},
    }

    @pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
    def test_a_foreign_folder_is_refused_before_the_weights_are_read(self, tmp_path, manifest, model, monkeypatch, files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        before = bytes_below(tmp_path)
        monkeypatch.setattr(feature_folder, "read_model_weights", None)
        status, told, err = run("--model", model, "--manifest", manifest, "--out", tmp_path, *FEW)
        assert (status, told) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
        assert "new or empty folder" in err and bytes_below(tmp_path) == before

    def test_the_folder_of_the_videos_is_refused(self, folder, manifest, model):
        before = bytes_below(folder / "set")
        status, _, err = run("--model", model, "--manifest", folder / "set", "--out", folder / "set", *FEW)
        assert status == 2 and "did not write" in err and bytes_below(folder / "set") == before

    def test_a_linked_folder_of_ones_own_is_taken(self, tmp_path, manifest, model):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        assert run("--model", model, "--manifest", manifest, "--out", tmp_path / "link" / "new", *FEW)[0] == 0
        assert (tmp_path / "disk" / "new" / "index.csv").is_file()

    @pytest.fixture
    def done(self, tmp_path, manifest, model):
        arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path / "out", "--shard_videos", "2", *FEW]
        assert run(*arguments)[0] == 0
        assert not (tmp_path / "out" / ".lock").exists()
        return arguments, tmp_path / "out"

    def test_a_folder_without_a_marker_is_known_by_its_settings(self, done):
        """As version 0.1 left it."""
        arguments, out = done
        (out / ".made_by.json").unlink()
        assert run(*arguments)[0] == 0 and (out / ".made_by.json").is_file()

    @pytest.mark.parametrize("name", ["index.csv", "unreadable.csv"])
    def test_a_table_that_somebody_has_changed_is_not_overwritten(self, done, name):
        arguments, out = done
        (out / name).write_text("path,notes\nprecious,1\n")
        before = bytes_below(out)
        status, _, err = run(*arguments)
        assert status == 2 and f"{out / name} is another table" in err and bytes_below(out) == before

    @pytest.mark.parametrize("name", ["index.csv", "features.json"])
    def test_one_that_was_edited_below_its_first_line_is_not_overwritten(self, done, name):
        arguments, out = done
        text = (out / name).read_text()
        (out / name).write_text(text.replace('"source": "', '"source": "mine: ') if name.endswith(".json") else f"{text}mine\n")
        before = bytes_below(out)
        status, _, err = run(*arguments)
        assert status == 2 and f"{out / name} was changed" in err and "rename it" in err and bytes_below(out) == before
        (out / name).rename(out / "mine")
        assert run(*arguments)[0] == 0 and (out / name).read_text() == text

    def test_its_own_index_is_no_source_for_it(self, tmp_path, model):
        out = tmp_path / "out"
        readable = write_manifest(tmp_path / "two.csv", write_videos(tmp_path / "set", num_videos=2))
        assert run("--model", model, "--manifest", readable, "--out", out, *FEW)[0] == 0
        before = bytes_below(out)
        status, _, err = run("--model", model, "--manifest", out / "index.csv", "--root", tmp_path, "--out", out, *FEW)
        assert status == 2 and "index.csv would be overwritten" in err and bytes_below(out) == before

    @pytest.mark.parametrize("foreign", ["text", "tensors", "arrays"])
    def test_a_foreign_file_with_the_name_of_a_shard_is_not_overwritten(self, tmp_path, manifest, model, foreign):
        """It comes only late in the run: nothing is written before it is seen."""
        form = "npz" if foreign == "arrays" else "safetensors"
        arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path / "out", "--shard_videos", "2", *FEW]
        assert run(*arguments, "--format", form)[0] == 0
        shard = tmp_path / "out" / f"features-00002.{form}"
        if foreign == "text":
            shard.write_text("precious")
        elif foreign == "tensors":
            save_file({"precious": np.zeros(3)}, shard)
        else:
            np.savez(shard, precious=np.zeros(3))
        (tmp_path / "out" / f"features-00001.{form}").unlink()
        before = shard.read_bytes()
        status, _, err = run(*arguments, "--format", form)
        assert status == 2 and f"{shard} holds no features" in err and err.count("\n") == 1
        assert shard.read_bytes() == before and not (tmp_path / "out" / f"features-00001.{form}").exists()

    @pytest.mark.parametrize(
        "name", ["index.csv", "unreadable.csv", "features.json", "features-00001.safetensors", ".made_by.json"]
    )
    def test_a_link_is_neither_followed_nor_replaced(self, done, tmp_path, name):
        arguments, out = done
        precious = tmp_path / "precious"
        precious.write_text("precious")
        (out / name).unlink()
        (out / name).symlink_to(precious)
        status, _, err = run(*arguments)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        assert precious.read_text() == "precious" and (out / name).is_symlink()

    def test_what_a_killed_start_left_is_removed_and_nothing_else(self, done, caplog):
        arguments, out = done
        shard = ".features-00001.safetensors.0123456789ab.part"
        for name in (shard, ".index.csv.part", "features-00001.safetensors.part", "notes.txt"):
            (out / name).touch()
        (out / "features-00001.safetensors").unlink()
        with caplog.at_level("INFO", "mats_ds"):
            assert run(*arguments)[0] == 0
        assert "removed 2 unfinished files" in caplog.text
        left = {path.name for path in out.iterdir()}
        assert {"features-00001.safetensors.part", "notes.txt"} <= left and not {shard, ".index.csv.part"} & left

    def test_a_second_one_at_once_is_refused_with_who_is_there(self, done):
        arguments, out = done
        code = "import sys, pathlib; from mats_ds.core.storage.folder_lock import hold_folder as hold\n"
        code += "hold(pathlib.Path(sys.argv[1]), command='extract'); print('held', flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code, out], stdin=-1, stdout=-1, text=True) as other:
            assert other.stdout.readline() == "held\n"
            before = bytes_below(out)
            status, _, err = run(*arguments)
            after = bytes_below(out)
            other.stdin.close()
        assert status == 2 and f"in use by extract on host {socket.gethostname()}, process {other.pid}" in err
        assert before == after and Path(".lock") in after

    def test_without_room_it_stops_with_one_line_and_goes_on_later(self, tmp_path, manifest, model, file_limit):
        out = tmp_path / "out"
        arguments = ["--model", model, "--manifest", manifest, "--out", out, "--shard_videos", "2", "--pool", "none", *FEW]
        with file_limit(3000):  # a shard of two videos has 5 kB
            status, told, err = run(*arguments)
        assert (status, told) == (1, "") and err.startswith("stopped: rank 0: ") and err.count("\n") == 1
        assert "features-00000.safetensors cannot be written" in err and "start the same command again" in err
        assert {path.name for path in out.iterdir()} == {".made_by.json", "features.json"}
        status, told, _ = run(*arguments)
        assert status == 0 and "5 views of 5 videos (of 6) in 3 shards" in told

    def test_a_folder_that_cannot_be_written_is_said_first(self, tmp_path, manifest, model):
        (tmp_path / "file").touch()
        status, _, err = run("--model", model, "--manifest", manifest, "--out", tmp_path / "file" / "new", *FEW)
        assert status == 2 and err.startswith("error: ") and "give another name" in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["foreign folder", "no room on rank 1"])
def test_two_ranks_end_alike(tmp_path, manifest, model, ranks, fault):
    arguments = ["--model", model, "--manifest", manifest, "--out", tmp_path, "--shard_videos", "2", "--pool", "none", *FEW]
    if fault == "foreign folder":
        (tmp_path / "index.csv").write_text("theirs")
        answers = ranks(run, 2, *arguments)
        assert [status for status, *_ in answers] == [2, 2] and answers[0][2].count("holds index.csv") == 1, answers
        assert [path.name for path in tmp_path.iterdir()] == ["index.csv"]
    else:
        answers = ranks(run_with_little_room, 2, *arguments)
        assert [status for status, *_ in answers] == [1, 1], answers
        assert "stopped: rank 1: " in answers[0][2] and "cannot be written" in answers[0][2]
        assert {path.name for path in tmp_path.glob("features-*")} == {f"features-0000{n}.safetensors" for n in (0, 2)}
        assert [status for status, *_ in ranks(run, 2, *arguments)] == [0, 0]


def run_with_little_room(*arguments):
    if os.environ["RANK"] == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return run(*arguments)


@pytest.mark.slow
def test_two_ranks_write_the_same_shards(folder, manifest, model, ranks):
    arguments = ["--model", model, "--manifest", manifest, "--shard_videos", "2", *FEW]
    for world_size in (1, 2):
        answers = ranks(run, world_size, *arguments, "--out", folder / f"ranks-{world_size}")
        assert [status for status, *_ in answers] == [0] * world_size, answers
    one, two = (sorted((folder / f"ranks-{number}").iterdir()) for number in (1, 2))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 7
    assert all(left.read_bytes() == right.read_bytes() for left, right in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "there is no file or folder nowhere"),
        (["--shard_videos", "0"], "--shard_videos is at least 1, got 0"),
        (["--keep_ratio", "0.001"], "is no token at all"),
        (["--manifest", "nowhere.csv"], "no manifest at nowhere.csv"),
    ],
)
def test_one_clear_error(tmp_path, manifest, model, arguments, message):
    status, told, err = run("--model", model, "--manifest", manifest, "--out", tmp_path / "out", *FEW, *arguments)
    assert status == 2 and told == "" and err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()


def test_settings_are_written_down(folder, manifest, model, tmp_path, caplog):
    out, origin = folder / "settings", Origin(step=8, averaged=True, clip={"stride": 2, "sampling": "uniform"})
    model = save_classifier(tmp_path / "of_a_run.safetensors", origin=origin)
    with caplog.at_level("INFO", "mats_ds"):
        assert run("--model", model, "--manifest", manifest, "--out", out, *FEW)[0] == 0
    assert f"weights: {model}: " in caplog.text and "step 8, the average" in caplog.text and "uniform sampling" in caplog.text
    settings = json.loads((out / "features.json").read_text())
    assert settings["grid"] == {"tubelets": 2, "rows": 4, "columns": 6, "tubelet": [2, 8, 8]}
    assert (settings["width"], settings["keep_ratio"], settings["pool"]) == (24, 0.5, "mean")
    assert (settings["origin"]["step"], settings["origin"]["averaged"]) == (8, True)
    assert (settings["stride"], settings["sampling"]) == (2, "uniform")
