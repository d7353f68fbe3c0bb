"""The synthetic set is real video with known motion, written once."""

import json
import multiprocessing
import os

import numpy as np
import pytest

from mats_ds.data import synthetic as synthetic_module
from mats_ds.data.manifest import read_manifest
from mats_ds.data.scenes import DIRECTIONS, NAMES, find_covered
from mats_ds.data.synthetic import read_motion, write_synthetic_set
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video

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
    """Where nothing moves, frames differ by coding noise only; inside the sprites' boxes they
    differ by far more."""
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
    """[T - 1, 2]: how far (down, right) a sprite goes from frame to frame, the shorter way
    round."""
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


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small(tmp_path):
    """A set of two videos in a folder of its own, to be written anew with another seed."""
    write_synthetic_set(tmp_path / "home" / "set", **(SMALL | {"num_videos": 2}))
    return tmp_path / "home" / "set"


def write_anew(folder):
    write_synthetic_set(folder, **(SMALL | {"num_videos": 2}), seed=1)


def test_the_same_settings_give_the_same_bytes(small, tmp_path):
    write_synthetic_set(tmp_path / "again", **(SMALL | {"num_videos": 2}))
    assert contents(small) == contents(tmp_path / "again")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("synthetic_notes.txt", "mine"),
        ("synthetic_900_left.mp4", "mine"),
        ("deep/thesis.tex", "mine"),
        (".hidden", ""),
        ("manifest.csv", "path,label\nmine.mp4,1\n"),
        ("motion.json", "{}"),
        ("motion.json", '{"videos": [], "bytes": [], "settings": {}}'),
        ("motion.json", '{"videos": [], "bytes": [], "settings": {"mine": 1}}'),
    ],
)
def test_a_set_with_a_file_of_the_users_is_not_deleted(small, name, text, old):
    if old:  # as version 0.1 leaves it
        motion = json.loads((small / "motion.json").read_text())
        del motion["sha256"]
        (small / "motion.json").write_text(json.dumps(motion))
    (small / name).parent.mkdir(exist_ok=True)
    (small / name).write_text(text)
    before = contents(small.parent)
    with pytest.raises(ValueError, match="holds"):
        write_anew(small)
    assert contents(small.parent) == before


def test_a_set_of_version_0_1_is_written_anew(small):
    motion = json.loads((small / "motion.json").read_text())
    (small / "motion.json").write_text(json.dumps({name: motion[name] for name in motion if name != "sha256"}))
    write_anew(small)
    assert json.loads((small / "motion.json").read_text())["settings"]["seed"] == 1
    assert {path.name for path in small.parent.iterdir()} == {"set", ".set.lock"}


def test_a_video_that_was_replaced_is_the_users(small):
    video = next(small.glob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"longer")
    with pytest.raises(ValueError, match=video.name):
        write_anew(small)


def test_a_link_to_another_disk_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "set").symlink_to(tmp_path / "disk")
    for seed in (0, 1):
        write_synthetic_set(tmp_path / "set", **(SMALL | {"num_videos": 2}), seed=seed)
    assert (tmp_path / "set").is_symlink() and len(read_manifest(tmp_path / "disk" / "manifest.csv")) == 2


def test_a_file_that_is_put_into_the_set_meanwhile_stays(small, monkeypatch):
    draw = synthetic_module.make_scene

    def put(*given, **more):
        (small / "thesis.tex").write_text("mine")
        return draw(*given, **more)

    monkeypatch.setattr(synthetic_module, "make_scene", put)
    with pytest.raises(ValueError, match="thesis.tex"):
        write_anew(small)
    assert (small / "thesis.tex").read_text() == "mine" and (small / "manifest.csv").exists()
    assert {path.name for path in small.parent.iterdir()} == {"set", ".set.lock"}


def test_neighbours_of_the_set_stay(small):
    """What lies beside it under names that look temporary."""
    for name in (".set.lock", f".set.{os.getpid()}/a", ".set.tmp/b"):
        (small.parent / name).parent.mkdir(exist_ok=True)
        (small.parent / name).write_text("mine")
    write_anew(small)
    assert {name: data for name, data in contents(small.parent).items() if not name.startswith("set/")} == {
        ".set.lock": b"mine",
        f".set.{os.getpid()}/a": b"mine",
        ".set.tmp/b": b"mine",
    }


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic_module, "_write_video", fail)
    with pytest.raises(ValueError, match="set.*No space left"):
        write_synthetic_set(tmp_path / "set", **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {".set.lock"}


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
