"""No single frame tells the label of a synthetic video: probes of still frames stay at chance, a
measured shift does not."""

import csv

import av
import numpy as np
import pytest
import torch

from mats_ds.data.manifest import read_manifest
from mats_ds.data.scenes import DIRECTIONS, NAMES, SceneSize, make_scene
from mats_ds.data.synthetic import GOP_FRAMES, read_motion, write_synthetic_set

NUM_CLASSES, NUM_FRAMES = 4, GOP_FRAMES  # the last frame is the farthest from a keyframe
NUM_DEVIATIONS = 4.0  # of chance: one of 16,000 right probes fails; the seeds are fixed


def read_set(folder, **settings):
    """(frames [S, T, H, W, 3] uint8, labels [S])."""
    manifest = read_manifest(write_synthetic_set(folder, num_frames=NUM_FRAMES, **settings))
    videos = []
    for path in manifest.paths:
        with av.open(path) as container:
            videos.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
    return np.stack(videos), np.asarray(manifest.label_S)


def describe_still(frames_SHWC, *, grey):
    """features_SF of one frame a video: squares of 4 x 4 pixels averaged, of the colours or of
    their mean."""
    values = frames_SHWC.astype(np.float32) / 255
    values = values.mean(-1, keepdims=True) if grey else values
    num_videos, height, width, channels = values.shape
    return values.reshape(num_videos, height // 4, 4, width // 4, 4, channels).mean((2, 4)).reshape(num_videos, -1)


def fit_ridge(features_SF, labels_S, others_SF):
    wanted_SK = np.eye(NUM_CLASSES)[labels_S] - 1 / NUM_CLASSES
    gram_SS = features_SF @ features_SF.T
    weights_SK = np.linalg.solve(gram_SS + 0.1 * features_SF.shape[1] * np.eye(len(gram_SS)), wanted_SK)
    return (others_SF @ (features_SF.T @ weights_SK)).argmax(1)


def fit_mlp(features_SF, labels_S, others_SF):
    inputs, labels = torch.tensor(features_SF), torch.tensor(labels_S)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(inputs.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(),
            torch.nn.Linear(64, NUM_CLASSES),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(20):
        for rows in torch.randperm(len(inputs), generator=generator).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        return model(torch.tensor(others_SF)).argmax(1).numpy()


def chance_deviations(guesses_S, labels_S):
    """How many standard deviations the share of right guesses lies from that of guessing."""
    chance = 1 / NUM_CLASSES
    return ((guesses_S == labels_S).mean() - chance) / np.sqrt(chance * (1 - chance) / len(labels_S))


def probe_stills(folder, *, num_videos, height, width, names=("first", "middle", "last", "any")):
    """{(frame, colours, probe): deviations from chance on a second set}, of the named frames of
    every video."""
    size = {"num_videos": num_videos, "height": height, "width": width}
    train, label_S = read_set(folder / "train", seed=1, **size)
    val, true_S = read_set(folder / "val", seed=2, **size)
    rng, rows, found = np.random.default_rng(0), np.arange(num_videos), {}
    wanted = {"first": [0, 0], "middle": [NUM_FRAMES // 2] * 2, "last": [NUM_FRAMES - 1] * 2}
    wanted["any"] = [rng.integers(NUM_FRAMES, size=num_videos) for _ in range(2)]
    for name in names:
        of_train, of_val = wanted[name]
        for grey in (True, False):
            features, others = (describe_still(frames, grey=grey) for frames in (train[rows, of_train], val[rows, of_val]))
            mean, spread = features.mean(0), features.std(0) + 1e-6
            features, others = (features - mean) / spread, (others - mean) / spread
            for probe in (fit_ridge, fit_mlp):
                guesses = probe(features, label_S, others)
                found[name, "grey" if grey else "rgb", probe.__name__] = chance_deviations(guesses, true_S)
    return found


def test_a_still_frame_tells_nothing(tmp_path):
    found = probe_stills(tmp_path, num_videos=96, height=64, width=64, names=("last", "any"))
    assert max(map(abs, found.values())) < NUM_DEVIATIONS, found


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(48, 48), (64, 64), (96, 128)])
def test_a_still_frame_tells_nothing_at_any_size(tmp_path, height, width):
    found = probe_stills(tmp_path, num_videos=480, height=height, width=width)
    assert max(map(abs, found.values())) < NUM_DEVIATIONS, found


def measure_shift(frames_THWC):
    """(down, right): by how much the changes between frames move on from one to the next, where
    they fit best."""
    changes_THW = np.diff(frames_THWC.astype(np.float64).mean(-1), axis=0)
    spectra = np.fft.fft2(changes_THW)
    fit_HW = np.fft.ifft2((spectra[1:] * spectra[:-1].conj()).sum(0)).real
    height, width = fit_HW.shape
    down, right = np.meshgrid(np.fft.fftfreq(height, 1 / height), np.fft.fftfreq(width, 1 / width), indexing="ij")
    reach = np.hypot(down, right)
    fit_HW[(reach < 1) | (reach > min(height, width) / 6)] = -np.inf
    best = fit_HW.argmax()
    return down.flat[best], right.flat[best]


def guess_from_motion(frames_STHWC):
    """Of every video the direction that its measured shift is closest to."""
    step_K2 = np.array([DIRECTIONS[name] for name in NAMES[:NUM_CLASSES]], dtype=float)
    step_K2 /= np.linalg.norm(step_K2, axis=1, keepdims=True)
    return np.array([(step_K2 @ measure_shift(frames)).argmax() for frames in frames_STHWC])


@pytest.mark.parametrize(("height", "width"), [(48, 48), (96, 128)])
def test_a_few_frames_tell_it(tmp_path, height, width):
    frames_STHWC, label_S = read_set(tmp_path / "set", num_videos=48, height=height, width=width)
    assert (guess_from_motion(frames_STHWC) == label_S).mean() > 0.6
    backwards = guess_from_motion(frames_STHWC[:, ::-1])
    assert (backwards == label_S).mean() < 0.3, "played backwards the motion is another"


@pytest.mark.parametrize("name", NAMES)
def test_a_sprite_is_anywhere_in_every_frame(name):
    """Sixteen parts of the picture, each as likely as the next, at the beginning and at the end."""
    num_scenes = 320
    size = SceneSize(num_frames=3, height=48, width=64, num_classes=8)
    scenes = [make_scene(np.random.default_rng((7, number)), name, size=size, pans=False) for number in range(num_scenes)]
    for boxes in ([scene.boxes[0] for scene in scenes], [scene.distractor_boxes[0] for scene in scenes]):
        for frame in (0, 2):
            parts = [(track[frame][0] // 12) * 4 + track[frame][1] // 16 for track in boxes]
            times = np.bincount(parts, minlength=16)
            assert abs(times - num_scenes / 16).max() < 4.5 * np.sqrt(num_scenes / 16)


def test_neither_the_codec_nor_length_nor_camera_nor_bytes_go_with_the_label(tmp_path):
    folder = tmp_path / "set"
    manifest = write_synthetic_set(folder, num_videos=96, num_frames=NUM_FRAMES, height=48, width=64)
    with manifest.open() as file:
        label_of = {row["path"]: int(row["label"]) for row in csv.DictReader(file)}
    about = {}
    for video in read_motion(folder):
        pans = len({tuple(shift) for shift in video.background_shifts}) > 1
        about.setdefault(label_of[video.path], []).append((video.codec, pans, len(video.background_shifts)))
    assert len({tuple(sorted(videos)) for videos in about.values()}) == 1, "every class has the same videos of each kind"
    for suffix in ("mp4", "webm"):
        size_of = {path: (folder / path).stat().st_size for path in label_of if path.endswith(suffix)}
        overall = np.array(list(size_of.values()))
        for label in range(NUM_CLASSES):
            mine = [size for path, size in size_of.items() if label_of[path] == label]
            assert abs(np.mean(mine) - overall.mean()) < 4 * overall.std() / np.sqrt(len(mine))
