"""The synthetic set is real video with known motion, written once."""

import json
import multiprocessing

import numpy as np
import pytest

from mats_ds.data.decode import decode_frames
from mats_ds.data.manifest import read_manifest
from mats_ds.data.probe import index_video
from mats_ds.data.scenes import DIRECTIONS, NAMES, find_covered
from mats_ds.data.synthetic import read_motion, write_synthetic_set

SMALL = dict(num_videos=6, num_frames=20, height=64, width=96)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "synthetic"
    write_synthetic_set(folder, **SMALL)
    return folder


def test_it_is_a_manifest_of_videos_in_both_codecs(synthetic):
    manifest = read_manifest(synthetic / "manifest.csv")
    assert len(manifest) == 6 and set(manifest.label_S.tolist()) == {0, 1, 2}
    indices = [index_video(path) for path in manifest.paths]
    assert [index.codec for index in indices] == ["h264", "vp9"] * 3
    assert all((index.num_frames, index.height, index.width) == (20, 64, 96) and index.plain for index in indices)


def test_only_sprites_and_camera_move(synthetic):
    """Where nothing moves, frames differ by coding noise only; inside the sprites' boxes they differ by far more."""
    for video in read_motion(synthetic):
        frames = decode_frames(str(synthetic / video.path), np.arange(20)).astype(float)
        pans = len({tuple(shift) for shift in video.background_shifts}) > 1
        moving, still = [], []
        for frame in range(1, 20):
            covered = np.zeros((64, 96), bool)
            for track in (*video.boxes, *video.distractor_boxes):
                for box in (track[frame], track[frame - 1]):
                    covered |= find_covered(box, 64, 96)
            change = np.abs(frames[frame] - frames[frame - 1]).mean(-1)
            moving.append(change[covered].mean())
            still.append(change[~covered].mean())
        assert np.mean(moving) > 10, video.path
        assert np.mean(moving) > (2 if pans else 8) * np.mean(still), video.path


def steps_of(track, *, height, width):
    """[T - 1, 2]: how far (down, right) a sprite goes from frame to frame, the shorter way round."""
    corners = np.array(track)[:, :2]
    size = np.array([height, width])
    return (np.diff(corners, axis=0) + size // 2) % size - size // 2


@pytest.mark.parametrize("num_classes", [2, 3, 4, 8])
def test_sprites_go_straight_on_in_the_direction_of_their_label(tmp_path, num_classes):
    write_synthetic_set(tmp_path / "set", **(SMALL | {"num_videos": 2 * num_classes}), num_classes=num_classes)
    videos = read_motion(tmp_path / "set")
    assert [video.label for video in videos] == [number // 2 for number in range(2 * num_classes)]
    for video in videos:
        assert NAMES[video.label] == video.direction and f"_{video.direction}." in video.path
        for track in video.boxes:
            steps = steps_of(track, height=64, width=96)
            assert np.abs(steps).sum() > 19 and (np.sign(steps.sum(0)) == DIRECTIONS[video.direction]).all()
            assert {tuple(step) for step in np.sign(steps)} <= {(0, 0), DIRECTIONS[video.direction]}


def test_a_distractor_moves_otherwise(synthetic):
    for video in read_motion(synthetic):
        (track,) = video.distractor_boxes
        assert tuple(np.sign(steps_of(track, height=64, width=96).sum(0))) != DIRECTIONS[video.direction]


def test_some_videos_have_a_camera_that_pans(synthetic):
    pans = [len({tuple(shift) for shift in video.background_shifts}) > 1 for video in read_motion(synthetic)]
    assert pans == [False, False, True, False, False, True]


def test_a_complete_set_is_reused_and_anything_else_written_anew(tmp_path):
    folder = tmp_path / "set"
    settings = SMALL | {"num_videos": 2}
    manifest = write_synthetic_set(folder, **settings)
    truth, stamp = (folder / "motion.json").read_text(), manifest.stat().st_mtime_ns
    write_synthetic_set(folder, **settings)
    assert manifest.stat().st_mtime_ns == stamp

    video = next(folder.glob("*.mp4"))
    video.write_bytes(video.read_bytes()[:100])  # torn
    write_synthetic_set(folder, **settings)
    assert (folder / "motion.json").read_text() == truth  # same seed, same set

    write_synthetic_set(folder, **settings, seed=1)
    assert json.loads((folder / "motion.json").read_text())["settings"]["seed"] == 1
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path != folder]


def test_foreign_files_are_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="thesis.tex"):
        write_synthetic_set(tmp_path, **SMALL)
    assert (tmp_path / "thesis.tex").exists()


def test_several_processes_write_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    settings = SMALL | {"num_videos": 2}
    folder = tmp_path / "set"
    ranks = [context.Process(target=write_synthetic_set, args=(folder,), kwargs=settings) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert len(read_manifest(folder / "manifest.csv")) == 2


@pytest.mark.parametrize("num_classes", [2, 3, 4, 6, 8])
def test_every_class_has_as_many_moving_cameras(tmp_path, num_classes):
    settings = SMALL | {"num_videos": 6 * num_classes, "num_frames": 3, "height": 48, "width": 48}
    write_synthetic_set(tmp_path / "set", **settings, num_classes=num_classes)
    panning = [video.label for video in read_motion(tmp_path / "set") if len(set(map(tuple, video.background_shifts))) > 1]
    assert sorted(panning) == [label for label in range(num_classes) for _ in range(2)]


@pytest.mark.parametrize("wrong", [{"num_videos": 0}, {"height": 63}, {"width": 32}, {"num_classes": 1}, {"num_classes": 9}])
def test_sizes_that_cannot_be_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="a synthetic set needs"):
        write_synthetic_set(tmp_path / "set", **(SMALL | wrong))
