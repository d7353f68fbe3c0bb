"""The random resized crop follows torchvision's RandomResizedCrop, box and pixels, and is a
function of the place in the run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipSpec, RandomResizedCropSpec
from mats_ds.data.clip_sampler import CROP_RATIOS, BatchSplit, ClipSampler
from mats_ds.data.loading.reader import read_decoded, read_for_device
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video

PICTURE = (240, 320)
NUM_DRAWS = 4000


def sampler_of(num_videos=29, *, global_batch=8, areas=(0.08, 1.0), repeats=1, path="v.mp4", **clip) -> ClipSampler:
    nan_S = np.full(num_videos, np.nan)
    manifest = Manifest([path] * num_videos, np.arange(num_videos), nan_S, nan_S.copy(), "set")
    section = ClipSection(**{"num_frames": 4, "stride": 2, "height": 32, "width": 48, "flip": True, **clip})
    sizes = dict(num_frames=4, global_batch=global_batch, seed=5, repeats=repeats)
    return ClipSampler(manifest, recipe_clip=section, crop_areas=areas, **sizes)


def boxes_of(areas, *, picture=PICTURE, count=NUM_DRAWS) -> np.ndarray:
    sampler = sampler_of(areas=areas)
    return np.array([sampler.spec(position).crop.resolve(*picture).box(*picture) for position in range(count)])


def boxes_of_torchvision(areas, *, picture=PICTURE, count=NUM_DRAWS) -> np.ndarray:
    torch.manual_seed(1)
    picture = torch.empty(1, *picture)
    return np.array([RandomResizedCrop.get_params(picture, list(areas), list(CROP_RATIOS)) for _ in range(count)])


def largest_gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest distance between the shares of values up to any limit (Kolmogorov and
    Smirnov)."""
    limits = np.concatenate([ours, theirs])
    shares = [np.searchsorted(np.sort(values), limits, side="right") / len(values) for values in (ours, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())


@pytest.mark.parametrize("areas", [(0.08, 1.0), (0.5, 0.9)])
def test_area_ratio_and_place_are_distributed_as_torchvision_draws_them(areas):
    ours, theirs = boxes_of(areas), boxes_of_torchvision(areas)
    height, width = PICTURE
    assert (ours >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 0] + box[:, 2],
    ):
        # Two samples of one distribution pass this limit once in 1000 times; the draws are fixed.
        assert largest_gap(measure(ours), measure(theirs)) < 1.95 * math.sqrt(2 / NUM_DRAWS)


@pytest.mark.parametrize("picture", [(100, 300), (300, 100)])
def test_where_nothing_fits_it_is_torchvisions_middle(picture):
    ours, theirs = (draw((1.0, 1.0), picture=picture, count=200) for draw in (boxes_of, boxes_of_torchvision))
    assert (ours == theirs[0]).all() and (theirs == theirs[0]).all()
    never = RandomResizedCropSpec(tries_A=((1.0, 9.0),), top=0.5, left=0.5, ratios=CROP_RATIOS)
    assert never.resolve(100, 130).box(100, 130) == (0, 0, 100, 130)


def test_the_box_is_the_one_that_was_drawn():
    draw = RandomResizedCropSpec(tries_A=((0.9, 4 / 3), (0.25, 1.0)), top=0.5, left=0.999, ratios=CROP_RATIOS)
    assert draw.resolve(200, 100).box(200, 100) == (65, 29, 71, 71), "the first is too wide"
    for height in range(40, 260, 7):
        for width in range(40, 260, 9):
            area, ratio = 0.3, 1.1
            high, wide = round(math.sqrt(height * width * area / ratio)), round(math.sqrt(height * width * area * ratio))
            if high <= height and wide <= width:
                one = RandomResizedCropSpec(((area, ratio),), 0.3, 0.6, CROP_RATIOS)
                expected = (int(0.3 * (height - high + 1)), int(0.6 * (width - wide + 1)), high, wide)
                assert one.resolve(height, width).box(height, width) == expected


def test_nothing_else_of_a_clip_changes_and_substitutes_have_crops_of_their_own():
    resized, plain = sampler_of(), sampler_of(areas=None)
    for position in range(40):
        one, other = resized.spec(position), plain.spec(position)
        assert (one.sample, one.start, one.clip_seed) == (other.sample, other.start, other.clip_seed)
        assert one.crop.flip == other.crop.flip
    assert resized.spec(3, attempt=1).crop != resized.spec(3).crop == sampler_of().spec(3).crop
    assert not any(sampler_of(flip=False).spec(position).crop.flip for position in range(20))


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_a_step_holds_the_same_crops_on_any_number_of_ranks(world_size):
    sampler = sampler_of(repeats=2)
    crops = {}
    for rank in range(world_size):
        positions = BatchSplit(rank, world_size, micro_batch=8 // world_size).positions(5, 0, global_batch=8)
        crops |= {position: sampler.spec(position).crop for position in positions}
    assert list(sorted(crops)) == list(range(40, 48))
    assert [crops[position] for position in sorted(crops)] == [
        sampler_of(repeats=2).spec(position).crop for position in range(40, 48)
    ]
    assert len(set(crops.values())) == 8, "clips of one video are cropped differently"


@pytest.fixture(scope="module")
def path(write_video, tmp_path_factory) -> str:
    return str(write_video(tmp_path_factory.mktemp("videos") / "a.mp4", num_frames=12, height=72, width=112))


def test_all_frames_are_what_torchvision_crops_and_scales(path):
    """Pictures of few colours, so that a wrong box shows; they differ by rounding."""
    sampler, size = sampler_of(path=path), (32, 48)
    whole = torch.from_numpy(decode_frames(path, np.arange(0, 8, 2)))
    shapes = set()
    for position in range(12):
        spec = sampler.spec(position)
        spec = ClipSpec(path=path, sample=0, num_frames=4, stride=2, start=0.0, crop=spec.crop)
        box = spec.crop.resolve(72, 112).box(72, 112)
        expected = transforms.resized_crop(whole.movedim(-1, 1), *box, list(size), antialias=True)
        expected = transforms.horizontal_flip(expected) if spec.crop.flip else expected
        ours = read_decoded(spec, size=size).frames_THWC
        assert np.abs(ours.astype(int) - expected.movedim(1, -1).numpy()).max() <= 1
        shapes.add(box)
    assert len(shapes) == 12


def test_the_graphs_of_a_gpu_get_the_same_box(path, monkeypatch):
    monkeypatch.setattr("mats_ds.data.loading.reader.device_can_decode", lambda index, codecs: True)
    spec = sampler_of(path=path).spec(7)
    region = read_for_device(spec, codecs=frozenset({"h264"}), size=(32, 48)).region
    top, left, height, width = spec.crop.resolve(*index_video(path).upright_size).box(72, 112)
    assert region.corners == (top, left, top + height, left + width) and region.flip == spec.crop.flip


def test_a_large_picture_is_cropped_where_a_small_one_is(write_video, tmp_path):
    """It is shrunk by a whole number first; the box is still the one of the whole picture."""
    large = str(write_video(tmp_path / "large.mp4", num_frames=8, height=288, width=448))
    crop = RandomResizedCropSpec(((0.4, 1.25),), 0.7, 0.2, CROP_RATIOS)
    spec = ClipSpec(path=large, sample=0, num_frames=2, stride=2, start=0.0, crop=crop)
    box = crop.resolve(288, 448).box(288, 448)
    whole = torch.from_numpy(decode_frames(large, np.array([0, 2]))).movedim(-1, 1)
    expected = transforms.resized_crop(whole, *box, [32, 48], antialias=True).movedim(1, -1).numpy()
    ours = read_decoded(spec, size=(32, 48)).frames_THWC
    assert np.abs(ours.astype(int) - expected).mean() < 3  # shrunk in two steps instead of one
