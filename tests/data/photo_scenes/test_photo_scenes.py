"""Photo scenes are real video of cut-outs that move before photographs, and say whose those are."""

import json
import sys

import numpy as np
import pytest
import torch

from mats_ds.core.token_grid import TokenGrid
from mats_ds.data.classes import resolve_classes
from mats_ds.data.manifest import read_manifest
from mats_ds.data.photo_scenes.clips import describe_sources, write_photo_clips
from mats_ds.data.photo_scenes.motion import ACTIONS, CAMERAS, sample_camera, sample_path
from mats_ds.data.video.indexing import index_video
from mats_ds.models.vit import split_patches
from mats_ds.tokens.motion import score_motion

SIZE = dict(num_frames=8, height=48, width=64)


@pytest.fixture(scope="module")
def photographs():
    pytest.importorskip("skimage")
    from mats_ds.data.photo_scenes import photographs

    return photographs


@pytest.fixture(scope="module")
def clips(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "photo"
    write_photo_clips(folder, num_videos=6, **SIZE)
    return folder


def film(action, backdrop, camera="tripod", seed=3):
    from mats_ds.data.photo_scenes.filming import film_scene

    return film_scene(seed, action=action, backdrop=backdrop, camera=camera, **SIZE)


def test_every_photograph_is_called_free_where_it_comes_from(photographs):
    """The licence in SOURCES is what scikit-image itself says of the photograph."""
    from skimage import data

    for source in photographs.SOURCES:
        text = " ".join(getattr(data, source.name).__doc__.split())
        said = {"CC0": ("CC0", "Creative Commons CC0"), "public domain": ("public domain",)}[source.licence]
        assert any(word in text for word in said), source
        assert f"{source.name}: {source.shows}; {source.author}; {source.licence}" in describe_sources()
    used = {photograph for photograph, _ in photographs.OUTLINES.values()} | set(photographs.TINTS)
    assert used | {"hubble_deep_field", "chelsea", "retina"} == {source.name for source in photographs.SOURCES}


def test_the_photographs_come_with_the_package(photographs, monkeypatch):
    """Nothing is downloaded: scikit-image's downloader is not even asked."""
    from skimage.data import _fetchers

    monkeypatch.setattr(_fetchers, "_image_fetcher", None)
    for source in photographs.SOURCES:
        assert photographs.read_photograph.__wrapped__(source.name).shape[2] == 3


def test_a_set_is_a_labelled_manifest_of_real_videos(clips):
    manifest = read_manifest(clips / "manifest.csv")
    assert manifest.label_S.tolist() == [0, 1, 2, 3, 4, 0]
    assert (clips / "manifest.csv.classes.txt").read_text().split() == list(ACTIONS)
    assert resolve_classes(manifest, clips / "manifest.csv", asked=None).names == tuple(ACTIONS)
    for path in manifest.paths:
        index = index_video(path)
        assert (index.num_frames, index.height, index.width) == (8, 48, 64)
    assert "Eileen Collins" in (clips / "SOURCES.txt").read_text()


def test_a_set_is_used_again_and_nothing_else_is_overwritten(clips, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in clips.iterdir()}
    write_photo_clips(clips, num_videos=6, **SIZE)
    assert {path.name: path.stat().st_mtime_ns for path in clips.iterdir()} == before
    with pytest.raises(ValueError, match="empty or new"):
        write_photo_clips(clips, num_videos=5, **SIZE)
    with pytest.raises(ValueError, match="even sides"):
        write_photo_clips(tmp_path / "odd", num_videos=1, num_frames=8, height=49, width=64)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_set_is_not_taken_for_a_whole_one(clips, tmp_path):
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in clips.iterdir():
        (torn / path.name).write_bytes(path.read_bytes())
    name = next(iter(json.loads((torn / "photo_clips.json").read_text())["bytes"]))
    (torn / name).write_bytes(b"half")
    with pytest.raises(ValueError, match="empty or new"):
        write_photo_clips(torn, num_videos=6, **SIZE)


def test_without_the_package_the_message_names_it(tmp_path, monkeypatch):
    from mats_ds.data.photo_scenes import photographs

    for cached in ("read_photograph", "make_backdrop", "cut_out", "make_ball"):
        getattr(photographs, cached).cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ValueError, match="needs scikit-image, which"):
        write_photo_clips(tmp_path / "photo", num_videos=1, **SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action, backdrop", [("walk", "brick"), ("slide", "gravel"), ("roll", "cat"), ("drift", "deep_field")])
def test_on_a_tripod_the_actor_moves_and_the_rest_does_not(photographs, action, backdrop):
    scene = film(action, backdrop)
    frames = scene.frames_THWC.astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean(-1)
    covered = np.maximum(scene.covered_THW[1:], scene.covered_THW[:-1])
    shadowed = np.abs(frames - np.median(frames, axis=0)).mean(-1)[1:] > 8  # shadows move too
    assert (covered > 0.5).mean() > 0.02
    assert change[covered > 0.5].mean() > 3 * change[(covered < 0.01) & ~shadowed].mean()


def test_motion_scores_are_highest_where_the_actor_is(photographs):
    scene = film("slide", "gravel")
    grid = TokenGrid(8, 48, 64, (2, 8, 8))
    patches = split_patches(torch.from_numpy(scene.frames_THWC)[None], grid)
    score_N = score_motion(patches.float(), grid)[0].numpy()
    covered_N = split_patches(torch.from_numpy(np.repeat(scene.covered_THW[..., None], 3, -1))[None], grid)[0].mean(-1).numpy()
    # the first tubelet has nothing before it to differ from
    later = np.arange(grid.num_tokens) >= grid.rows * grid.columns
    assert score_N[later & (covered_N > 0.5)].mean() > 2 * score_N[later & (covered_N == 0)].mean()


def test_the_camera_moves_what_nobody_touches(photographs):
    still, moving = (film("drift", "deep_field", camera).frames_THWC.astype(float) for camera in ("tripod", "pan"))
    corner = np.s_[:, :10, :10]
    assert np.abs(moving[-1] - moving[0])[corner[1:]].mean() > 2 * np.abs(still[-1] - still[0])[corner[1:]].mean()


def test_equal_seeds_film_equal_scenes_and_others_do_not(photographs):
    first, again, other = (film("walk", "grass", "handheld", seed).frames_THWC for seed in (1, 1, 2))
    assert np.abs(first.astype(int) - again).max() <= 1 and np.abs(first.astype(int) - other).max() > 9


def test_edges_are_soft(photographs):
    for name in photographs.OUTLINES:
        alpha = photographs.cut_out(name)[..., 3]
        assert alpha.min() == 0 and alpha.max() == 1
        assert 0.002 < ((alpha > 0.05) & (alpha < 0.95)).mean() < 0.2, name


def test_every_action_and_camera_has_poses_that_can_be_inverted():
    time_M = np.linspace(0, 1, 9)
    for seed, action in enumerate(ACTIONS):
        pose = sample_path(np.random.default_rng(seed), action, time_M).homographies()
        assert np.isfinite(np.linalg.inv(pose)).all() and not np.allclose(pose[0], pose[-1])
    for seed, camera in enumerate(CAMERAS):
        assert np.isfinite(np.linalg.inv(sample_camera(np.random.default_rng(seed), camera, time_M))).all()
    with pytest.raises(ValueError, match="lift-off"):
        sample_path(np.random.default_rng(0), "fly", time_M)
    with pytest.raises(ValueError, match="handheld"):
        sample_camera(np.random.default_rng(0), "drone", time_M)
