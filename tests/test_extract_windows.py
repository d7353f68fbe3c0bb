"""`extract --window` as its users start it: one array a video, as other programs read
it, resumed."""

import csv
import json
import os
import signal

import numpy as np
import pytest

import mats_ds
from mats_ds.core.clips import CropSpec
from mats_ds.data.video.clip_frames import ClipCropper
from mats_ds.data.video.decode import visit_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.evaluation.features import window_folder
from mats_ds.evaluation.features.feature_store import read_shard
from mats_ds.prepare import main as prepare
from tests.test_extract import FEW, run
from tests.trained_models import save_classifier, write_manifest, write_videos


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("windows")


@pytest.fixture(scope="module")
def model(folder):
    return save_classifier(folder / "classifier.safetensors")


@pytest.fixture(scope="module")
def videos(folder):
    return [path for path, _ in write_videos(folder / "set", num_videos=3)]


@pytest.fixture(scope="module")
def manifest(folder, videos):
    broken = folder / "broken.v1.mp4"
    broken.write_text("no video")
    return write_manifest(folder / "videos.csv", [(videos[0], ""), (broken, ""), *((path, "") for path in videos[1:])])


def extract(folder, manifest, model, name, *more):
    return run("--model", model, "--manifest", manifest, "--out", folder / name, "--window", "0.4", "--hop", "0.1", *FEW, *more)


def read_crops(path, numbers):
    """The frames of a clip as every reader gives them: the centre crop, scaled to the model's
    size."""
    index = index_video(path)
    cropper = ClipCropper(numbers, CropSpec(), index=index, size=(32, 48))
    visit_frames(path, numbers, index=index, take=cropper.take)
    return cropper.frames()


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_array_a_video_equal_to_the_encoder_on_the_frames_of_each_window(folder, manifest, model, videos, caplog):
    status, told, err = extract(folder, manifest, model, "out")
    assert status == 0, err
    out = folder / "out"
    assert "of 3 videos (of 4)" in told and "1 unreadable" in told and "broken.v1.mp4: a text file" in caplog.text
    assert [row["video"] for row in table(out / "index.csv")] == [path.stem for path in videos]
    assert table(out / "unreadable.csv")[0]["path"].endswith("broken.v1.mp4")
    assert (out / "missing_files.txt").read_text() == "broken.v1\n"
    encoder = mats_ds.load_encoder(model)
    for path in videos:
        features, about = np.load(out / f"{path.stem}.npy"), json.loads((out / f"{path.stem}.json").read_text())
        seconds = index_video(str(path)).seconds()
        assert features.dtype == np.float32 and features.shape == (about["num_windows"], 24) and len(features) > 2
        assert about["feat_stride"] == pytest.approx(0.1 * about["fps"]) and about["num_frames"] == pytest.approx(
            0.4 * about["fps"]
        )
        for number in (0, len(features) - 1):
            moments = 0.1 * number + np.arange(4) * 0.1
            shown = np.searchsorted(seconds, moments + 1e-6, side="right") - 1
            frames = read_crops(str(path), shown)
            np.testing.assert_allclose(features[number], encoder(frames)[0], rtol=1e-5, atol=1e-5)


def test_configs_count_whole_frames_of_one_rate(folder, manifest, model):
    assert extract(folder, manifest, model, "out")[0] == 0
    configs = json.loads((folder / "out" / "features.json").read_text())["configs"]
    former, opentad = configs["actionformer"], configs["opentad"]
    rate = former["default_fps"]
    assert rate >= 24 and former["feat_stride"] / rate == pytest.approx(0.1) and former["num_frames"] / rate == pytest.approx(0.4)
    assert former["input_dim"] == opentad["in_channels"] == 24
    assert (opentad["fps"], opentad["feature_stride"], 2 * opentad["offset_frames"]) == (
        rate,
        former["feat_stride"],
        former["num_frames"],
    )
    assert all(isinstance(former[name], int) for name in ("default_fps", "feat_stride", "num_frames"))


def test_the_same_command_goes_on_and_does_nothing_twice(folder, manifest, model, videos, caplog):
    assert extract(folder, manifest, model, "again")[0] == 0
    out = folder / "again"
    first = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.npy")}
    (out / f"{videos[1].stem}.npy").unlink()
    (out / f".{videos[1].stem}.npy.0123456789ab.part").write_bytes(b"torn by a kill")
    torn = out / f"{videos[2].stem}.npy"
    torn.write_bytes(torn.read_bytes()[:-8])
    assert extract(folder, manifest, model, "again")[0] == 0
    assert "1 of 4 videos are there" in caplog.text
    assert {path.name: path.read_bytes() for path in out.glob("*.npy")} == {name: content for name, (content, _) in first.items()}
    assert (out / f"{videos[0].stem}.npy").stat().st_mtime_ns == first[f"{videos[0].stem}.npy"][1]
    assert not list(out.glob(".*.part"))


def test_other_settings_need_another_folder(folder, manifest, model):
    assert extract(folder, manifest, model, "fixed")[0] == 0
    status, _, err = extract(folder, manifest, model, "fixed", "--hop", "0.2")
    assert status == 2 and "hop_seconds" in err and "--out" in err
    status, _, err = run("--model", model, "--manifest", manifest, "--out", folder / "fixed", *FEW)
    assert status == 2 and "other settings" in err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--window", "1"], "--hop"),
        (["--hop", "1"], "--window"),
        (["--window", "1", "--hop", "0"], "--hop"),
        (["--window", "1", "--hop", "1", "--pool", "none"], "--pool"),
        (["--window", "1", "--hop", "1", "--clips", "3"], "--clips"),
        (["--window", "1", "--hop", "1", "--stride", "2"], "--stride"),
    ],
)
def test_options_that_do_not_go_together_are_named(folder, manifest, model, options, named):
    status, _, err = run("--model", model, "--manifest", manifest, "--out", folder / "none", *options, *FEW)
    assert status == 2 and named in err and "Traceback" not in err and not (folder / "none").exists()


def test_files_of_one_name_and_members_of_shards_get_names_of_their_own(folder, model, videos):
    for side in ("left", "right"):
        (folder / "twins" / side).mkdir(parents=True)
        (folder / "twins" / side / "a.mp4").write_bytes(videos[0].read_bytes())
    assert prepare(["pack", str(folder / "twins"), "--out", str(folder / "packed")]) == 0
    listed = folder / "packed" / "manifest.csv"
    status, _, err = extract(folder, listed, model, "members")
    assert status == 0, err
    assert extract(folder, folder / "twins", model, "loose")[0] == 0
    names = {path.name for path in (folder / "loose").glob("*.npy")}
    assert names == {path.name for path in (folder / "members").glob("*.npy")} == {"left__a.npy", "right__a.npy"}
    for name in names:
        assert (folder / "members" / name).read_bytes() == (folder / "loose" / name).read_bytes()


def test_a_window_is_what_extract_makes_of_that_part_of_the_video(folder, model, videos):
    path = videos[0]
    spacing = 1 / index_video(str(path)).frame_rate
    length = 8 * spacing  # four frames, two apart
    listed = folder / "cuts.csv"
    cuts = [f"{path},{4 * number * spacing:.6f},{(4 * number + 8) * spacing:.6f}\n" for number in range(5)]
    listed.write_text("path,start,end\n" + "".join(cuts))
    one = write_manifest(folder / "one.csv", [(path, "")])
    windows = ["--window", length, "--hop", length / 2]
    assert run("--model", model, "--manifest", one, "--out", folder / "slid", *windows, *FEW)[0] == 0
    whole = ["--stride_seconds", length / 4, "--out", folder / "cut", *FEW]
    assert run("--model", model, "--manifest", listed, *whole)[0] == 0
    cut = read_shard(folder / "cut" / "features-00000.safetensors").arrays["features"]
    slid = np.load(folder / "slid" / f"{path.stem}.npy")
    assert len(cut) == len(slid) == 5
    np.testing.assert_allclose(slid, cut, rtol=1e-6, atol=1e-6)


def bytes_below(out):
    """All files but the settings, whose configs name the folder itself, and the hash of those."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in ("features.json", ".made_by.json")}


def run_and_be_killed(*arguments):
    """Rank 1 dies in the middle of its second array."""
    if os.environ["RANK"] == "1":
        save, calls = np.save, []

        def save_half(file, array):
            calls.append(array)
            if len(calls) == 2:
                file.write(b"half of an array")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(file, array)

        window_folder.np.save = save_half
    return run(*arguments)


@pytest.mark.slow
def test_any_number_of_ranks_writes_the_same_arrays_also_after_a_kill(folder, model, ranks):
    videos = [(path, "") for path, _ in write_videos(folder / "more", num_videos=5)]
    broken = folder / "more" / "a_broken.mp4"
    broken.write_text("no video")
    listed = write_manifest(folder / "more.csv", [*videos[:2], (broken, ""), *videos[2:]])
    windows = ["--model", model, "--window", "0.4", "--hop", "0.1", *FEW]
    one = folder / "ranks-1"
    assert run("--manifest", listed, "--out", one, *windows)[0] == 0
    wanted = bytes_below(one)
    assert len([name for name in wanted if name.endswith(".npy")]) == 5

    answers = ranks(run, 2, "--manifest", listed, "--out", folder / "ranks-2", *windows)
    assert [status for status, *_ in answers] == [0, 0], answers
    assert bytes_below(folder / "ranks-2") == wanted

    killed = folder / "killed"
    arguments = ["--manifest", listed, "--out", killed, *windows]
    first, second = ranks(run_and_be_killed, 2, *arguments, expect_errors=None)
    assert second == "the process died without a word" and first[0] != 0, (first, second)
    left = {path.name: path.read_bytes() for path in killed.glob("*.npy") if not path.name.startswith(".")}
    assert 0 < len(left) < 5 and left.items() <= wanted.items(), "an array that is there is whole"
    answers = ranks(run, 2, *arguments)
    assert [status for status, *_ in answers] == [0, 0], answers
    assert bytes_below(killed) == wanted

    few = write_manifest(folder / "few.csv", videos[:1])
    answers = ranks(run, 3, "--manifest", few, "--out", folder / "few", *windows)
    assert [status for status, *_ in answers] == [0, 0, 0] and "of 1 video (of 1)" in answers[0][1], answers
    name = f"{videos[0][0].stem}.npy"
    assert bytes_below(folder / "few")[name] == wanted[name]
