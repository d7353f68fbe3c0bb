"""Candidates of the adaptive frame selection: more frames than a clip uses, evenly over the same
span, read in the same pass."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from mats_ds.config.recipe import Recipe
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.decode import decode_frames, frame_numbers
from mats_ds.data.video.indexing import index_video
from tests.video_files import HEIGHT, WIDTH

USED, STRIDE, ALPHA, CANDIDATES = 8, 6, 1.5, 12
NUM_VIDEOS, MICRO_BATCH = 3, 4


@pytest.fixture(scope="module")
def videos(write_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [str(write_video(folder / f"{number}.mp4", num_frames=120 + number, gop=10)) for number in range(NUM_VIDEOS)]


def sampler_of(paths, *, repeats, **clip):
    recipe = Recipe(
        clip={"num_frames": USED, "stride": STRIDE, "height": HEIGHT, "width": HEIGHT, "tubelet": (2, 16, 16), **clip},
        selection={"frame_candidates": ALPHA},
    )
    nan_S = np.full(len(paths), np.nan)
    num_frames = recipe.candidate_grid().num_frames
    assert num_frames == CANDIDATES
    return ClipSampler(
        Manifest(list(paths), np.arange(len(paths)), nan_S, nan_S.copy(), "set"),
        recipe_clip=recipe.clip,
        num_frames=num_frames,
        global_batch=MICRO_BATCH,
        seed=2,
        repeats=repeats,
    )


@pytest.mark.parametrize("repeats", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_candidates_come_out_of_one_pass_over_the_file(videos, when_opened, repeats, num_workers):
    sampler = sampler_of(videos, repeats=repeats, flip=False, crop_scales=(1.0,))
    for path in videos:
        index_video(path)  # opens it too, once for all
    opened = []
    when_opened(lambda path: path in videos and opened.append(path))
    split, options = BatchSplit(0, 1, MICRO_BATCH), ReadOptions(num_workers)
    with ClipLoader(sampler, split, size=(HEIGHT, HEIGHT), device=torch.device("cpu"), options=options) as loader:
        [batch] = islice(loader.micro_batches(0), 1)
    assert batch.frames_BTHWC.shape == (MICRO_BATCH, CANDIDATES, HEIGHT, HEIGHT, 3) and batch.valid_B.all()
    if num_workers == 0:  # nothing was read ahead
        assert len(opened) == MICRO_BATCH // repeats
    for position, frames_THWC in enumerate(batch.frames_BTHWC.numpy()):
        spec = sampler.spec(position)
        numbers = frame_numbers(spec, index=index_video(spec.path))
        assert set(np.diff(numbers)) == {USED * STRIDE // CANDIDATES}
        left = spec.crop.box(HEIGHT, WIDTH)[1]
        expected = decode_frames(spec.path, numbers)[:, :, left : left + HEIGHT].astype(int)
        assert abs(frames_THWC - expected).mean() < 2


def test_they_stretch_over_what_the_clip_would_use(videos):
    index = index_video(videos[0])
    for alpha_frames, step in ((USED, 6), (CANDIDATES, 4), (2 * USED, 3)):
        sampler = sampler_of(videos[:1], repeats=1)
        sampler.num_frames = alpha_frames
        numbers = frame_numbers(sampler.spec(0), index=index)
        assert len(numbers) == alpha_frames and set(np.diff(numbers)) == {step}
        assert numbers[-1] - numbers[0] + step == USED * STRIDE


def test_in_seconds_they_are_as_even_as_the_frames_allow(videos):
    sampler = sampler_of(videos[:1], repeats=1, stride_seconds=0.3)
    index = index_video(videos[0])
    numbers = frame_numbers(sampler.spec(0), index=index)
    gaps = np.diff(index.seconds()[numbers])
    # frames of 1/20 s
    assert len(numbers) == CANDIDATES and gaps.min() > 0.2 - 0.051 and gaps.max() < 0.2 + 0.051
    assert gaps.sum() == pytest.approx(USED * 0.3 * (CANDIDATES - 1) / CANDIDATES, abs=0.051)
