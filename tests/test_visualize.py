"""mats_ds/visualize.py from outside: what it writes for each kind of weights, and one clear error
for what it cannot show."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier, visualize
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import dump_recipe, load_recipe
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.models.weights.load import weights_of
from mats_ds.models.weights.native import load_weights, save_weights
from mats_ds.models.weights.origin import Origin
from mats_ds.visualization import render, viewer

GRID = TokenGrid(num_frames=4, height=32, width=32, tubelet=(2, 8, 8))
SIZES = dict(width=12, depth=1, heads=3)
DECODER = dict(decoder_width=6, decoder_heads=3, decoder_depth=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("videos")
    write_synthetic_set(folder, num_videos=1, num_frames=40, height=48, width=64)
    return str(next(folder.glob("*.mp4")))


@pytest.fixture
def save(tmp_path):
    """Writes a model's weights; returns their path."""

    def write(model) -> str:
        weights = weights_of(model, "a test")
        save_weights(tmp_path / "w.safetensors", weights.spec, weights.state)
        return str(tmp_path / "w.safetensors")

    return write


@pytest.fixture
def show(video, tmp_path, capsys):
    """Runs it on the video; returns the status and what it printed on stdout and stderr."""

    def run(*arguments: str, out: str = "x.png", source: str = video) -> tuple[int, str, str]:
        status = visualize.main([source, "--out", str(tmp_path / out), "--device", "cpu", *arguments])
        return status, *capsys.readouterr()

    return run


def make_autoencoder(**options):
    torch.manual_seed(0)
    return MaskedAutoencoder(grid=GRID, **SIZES, **DECODER, keep_ratio=0.5, visible_ratio=0.25, **options)


def test_a_film_has_a_picture_for_every_frame_of_every_clip(show, save, tmp_path):
    weights = save(make_autoencoder())
    arguments = ("--weights", weights, "--stride", "3", "--start", "0", "--clips", "2")
    status, printed, _ = show(*arguments, out="x.mp4")
    assert status == 0 and f"wrote {tmp_path / 'x.mp4'}: w.safetensors" in printed
    with av.open(str(tmp_path / "x.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == pytest.approx(25 / 3, abs=0.02)
    assert len(pictures) == 8
    assert pictures[0].shape[1] > 5 * 224  # five panels
    show(*arguments, out="x.gif")
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 8


def test_frames_are_spaced_as_in_the_training_of_the_weights(show, save, tmp_path, monkeypatch):
    """Of best.safetensors of a fine-tuning, in its folder and elsewhere."""
    sections, plan = [], render.plan_excerpts
    monkeypatch.setattr(render, "plan_excerpts", lambda *some, section, **named: (
        sections.append(section), plan(*some, section=section, **named))[1])  # fmt: skip
    torch.manual_seed(0)
    path = save(VideoClassifier(grid=GRID, **SIZES, num_classes=3, keep_ratio=0.5))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("finetune_tiny", ["clip.stride=5"], schema=FinetuneRecipe)))
    assert show("--weights", path)[0] == 0
    assert show("--weights", path, "--keep_ratio", "0.25")[0] == 0
    weights = load_weights(path)
    (tmp_path / "away").mkdir()
    away = save_weights(
        tmp_path / "away" / "w.safetensors", weights.spec, weights.state, origin=Origin(step=8, clip={"stride": 6})
    )
    status, printed, _ = show("--weights", str(away))
    assert status == 0 and f"weights: {away}: a weight file of mats_ds: step 8" in printed
    assert [section.stride for section in sections] == [5, 5, 6]


def test_the_same_seed_draws_the_same_picture(show, save, tmp_path):
    weights = save(make_autoencoder())
    pictures = []
    for seed in ("1", "1", "2"):
        assert show("--weights", weights, "--seed", seed)[0] == 0
        pictures.append(np.asarray(Image.open(tmp_path / "x.png")))
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_adaptive_frames_add_their_strip(show, save, tmp_path):
    weights = save(make_autoencoder())
    show("--weights", weights)
    plain = Image.open(tmp_path / "x.png").size
    assert show("--weights", weights, "--frame_candidates", "2")[0] == 0
    assert Image.open(tmp_path / "x.png").size[1] > plain[1] + 50
    show("--weights", save(make_autoencoder(candidate_grid=GRID.with_tau(3))))  # as the weights say
    assert Image.open(tmp_path / "x.png").size[1] > plain[1] + 50


def test_without_weights_it_says_that_there_is_no_reconstruction(show, tmp_path):
    status, printed, _ = show("--recipe", "tiny")
    assert status == 0 and "no weights given" in printed and "no reconstruction" in printed
    assert Image.open(tmp_path / "x.png").width < 5 * 256  # four panels of 256


def test_a_classifier_shows_what_it_keeps_and_its_prediction(show, save, monkeypatch):
    torch.manual_seed(0)
    model = VideoClassifier(grid=GRID, **SIZES, num_classes=2, class_names=("left", "right"), keep_ratio=0.5)
    pages = []
    monkeypatch.setattr(render, "write_pages", lambda out, suffix, drawn, **_: pages.extend(drawn))
    status, printed, _ = show("--weights", save(model))
    assert status == 0 and "a classifier: no reconstruction" in printed
    assert len(pages[0].panels) == 3
    assert pages[0].note.startswith("a classifier: no reconstruction; prediction: ") and "%" in pages[0].note


def test_the_recipe_of_a_run_spaces_the_frames(show, save, monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    weights = save(make_autoencoder())
    monkeypatch.setattr(viewer, "read_recipe_beside", lambda path: load_recipe("tiny", ["clip.stride=5"]))
    pages = []
    monkeypatch.setattr(render, "write_pages", lambda out, suffix, drawn, **_: pages.extend(drawn))
    show("--weights", weights, "--start", "0")
    show("--weights", weights, "--start", "0", "--stride", "2")
    assert [np.round(page.seconds_T * 25).tolist() for page in pages] == [[0, 5, 10, 15], [0, 2, 4, 6]]


@pytest.mark.parametrize(
    ("arguments", "out", "facts"),
    [
        ((), "x.avi", "give a name that ends in .mp4, .gif or .png"),
        (("--weights", "nowhere.safetensors"), "x.png", "there is no file or folder nowhere.safetensors"),
        (("--start", "99"), "x.png", "the video lasts 1.60 s"),
        (("--clips", "0"), "x.png", "--clips is at least 1, got 0"),
        (("--keep_ratio", "0.05"), "x.png", "must be below keep_ratio"),
        (("--keep_ratio", "3"), "x.png", "keep_ratio: Input should be less than or equal to 1"),
        (("--recipe", "tinny"), "x.png", "did you mean tiny?"),
        (("--fps", "0"), "x.gif", "--fps is above 0"),
        (("--device", "nonsense"), "x.png", "there is no device 'nonsense'"),
    ],
)
def test_one_clear_error_and_no_file(show, tmp_path, arguments, out, facts):
    status, printed, error = show("--recipe", "tiny", *arguments, out=out)
    assert status == 2 and printed == ""
    assert error.startswith("error: ") and facts in error and "Traceback" not in error
    assert error.count("\n") == 1
    assert not (tmp_path / out).exists()


def test_a_place_that_cannot_be_written_is_one_error(show, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, error = show("--recipe", "tiny", out="file/x.png")
    assert status == 2 and error.startswith("error: ") and str(tmp_path / "file") in error


def test_files_that_are_no_video_or_no_weights(show, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    status, _, error = show("--recipe", "tiny", source=str(tmp_path / "notes.mp4"))
    assert status == 2 and error.startswith(f"error: {tmp_path / 'notes.mp4'} is a text file, no video")
    status, _, error = show(source=str(tmp_path / "absent.mp4"))
    assert status == 2 and "absent.mp4" in error
    (tmp_path / "w.pth").write_text(json.dumps({"no": "weights"}))
    status, _, error = show("--weights", str(tmp_path / "w.pth"))
    assert status == 2 and "w.pth" in error and error.count("\n") == 1


class TestOut:
    """--out FILE: what this command wrote is replaced, nothing else is, and no input by any
    name."""

    @pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4"])
    def test_an_own_picture_is_replaced(self, show, tmp_path, suffix):
        for seed in ("1", "2"):
            assert show("--recipe", "tiny", "--seed", seed, out=f"x{suffix}")[0] == 0
        assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]

    @pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4"])
    def test_another_file_is_refused_before_any_work_unless_forced(self, show, tmp_path, monkeypatch, suffix):
        out = tmp_path / f"x{suffix}"
        out.write_text("theirs")
        with monkeypatch.context() as patch:
            patch.setattr(render, "index_video", None)
            status, printed, error = show("--recipe", "tiny", out=out.name)
        assert (status, printed) == (2, "") and f"{out} exists" in error and "--force" in error and error.count("\n") == 1
        assert out.read_text() == "theirs"
        assert show("--recipe", "tiny", "--force", out=out.name)[0] == 0 and out.read_bytes() != b"theirs"

    @pytest.mark.parametrize("kind", ["same", "hard link", "link"])
    def test_the_video_is_never_written(self, show, video, tmp_path, kind):
        """Not even one that this command has drawn."""
        assert show("--recipe", "tiny", out="drawn.mp4")[0] == 0
        drawn, out = tmp_path / "drawn.mp4", tmp_path / "out.mp4"
        before = drawn.read_bytes()
        if kind == "same":
            out = drawn
        elif kind == "link":
            out.symlink_to(drawn)
        else:
            out.hardlink_to(drawn)
        status, _, error = show("--recipe", "tiny", "--force", out=out.name, source=str(drawn))
        assert status == 2 and "give another name" in error and drawn.read_bytes() == before

    def test_a_recipe_with_a_pictures_name_is_not_overwritten(self, show, tmp_path):
        recipe = tmp_path / "recipe.png"
        recipe.write_text(dump_recipe(load_recipe("tiny")))
        status, _, error = show("--recipe", str(recipe), "--force", out="recipe.png")
        assert status == 2 and "is read: give another name" in error and recipe.read_text().startswith("name:")

    def test_no_room_is_one_error_and_leaves_what_was_there(self, show, tmp_path, file_limit):
        assert show("--recipe", "tiny", "--seed", "1")[0] == 0
        before = (tmp_path / "x.png").read_bytes()
        with file_limit(2000):
            status, _, error = show("--recipe", "tiny", "--seed", "2")
        assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
        assert (tmp_path / "x.png").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["x.png"]

    def test_what_a_killed_write_left_is_named(self, show, tmp_path):
        left = tmp_path / ".x.png.0123456789ab.part"
        left.touch()
        status, printed, _ = show("--recipe", "tiny")
        assert status == 0 and f"note: {left}" in printed and left.exists()
