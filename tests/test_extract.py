"""extract.py as its users start it: the encoder's own features, in shards that are resumed, the same on any number of ranks."""

from __future__ import annotations

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch

import mats_ds
from mats_ds import extract
from mats_ds.data.manifest import read_manifest
from mats_ds.data.view_pass import read_views
from mats_ds.interop.feature_shards import read_shard
from mats_ds.interop.origin import Origin
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
        """(arguments, folder, {shard: bytes, time of writing}) of a finished extraction of three shards."""
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
        assert "2 of 3 shards are there and whole" in caplog.text
        for shard, (content, written) in before.items():
            assert shard.read_bytes() == content
            assert (shard.stat().st_mtime_ns == written) == (shard != hurt)

    @pytest.mark.parametrize(("name", "value"), [("pool", "tubelet"), ("keep_ratio", "0.25"), ("stride", "2")])
    def test_a_folder_of_other_settings_is_left_alone(self, begun, name, value):
        arguments, before = begun
        status, _, err = run(*arguments, f"--{name}", value)
        assert status == 2 and f"made otherwise ({name} is" in err and "another --out" in err
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


@pytest.mark.slow
def test_two_ranks_write_the_same_shards(folder, manifest, model, ranks):
    arguments = ["--model", model, "--manifest", manifest, "--shard_videos", "2", *FEW]
    for world_size in (1, 2):
        answers = ranks(run, world_size, *arguments, "--out", folder / f"ranks-{world_size}")
        assert [status for status, *_ in answers] == [0] * world_size, answers
    one, two = (sorted((folder / f"ranks-{number}").iterdir()) for number in (1, 2))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 6
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
