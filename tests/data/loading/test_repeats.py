"""Several clips of a video from one pass over it: the same frames as one by one, for less
decoding."""

from __future__ import annotations

import functools
from itertools import islice

import numpy as np
import pytest
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading import batching
from mats_ds.data.loading import reader as routes
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.containers import UnreadableVideo
from tests.data.loading.fake_reading import CountingReader

HEIGHT, WIDTH, NUM_FRAMES, REPEATS = 32, 48, 4, 2
SECTION = ClipSection(num_frames=NUM_FRAMES, stride=3, height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def videos(write_video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [str(write_video(folder / f"{number}.mp4", num_frames=30 + number)) for number in range(5)]


def sampler_of(paths, *, repeats=REPEATS, global_batch=4, sampling="dense"):
    nan_S = np.full(len(paths), np.nan)
    manifest = Manifest(list(paths), np.arange(len(paths)), nan_S, nan_S.copy(), "set")
    section = SECTION.model_copy(update={"sampling": sampling})
    return ClipSampler(manifest, recipe_clip=section, num_frames=NUM_FRAMES, global_batch=global_batch, seed=1, repeats=repeats)


def batches_of(sampler, count, *, micro_batch=4, num_workers=3):
    options = dict(size=(HEIGHT, WIDTH), device=torch.device("cpu"), options=ReadOptions(num_workers))
    loader = ClipLoader(sampler, BatchSplit(0, 1, micro_batch), **options)
    with loader:
        return list(islice(loader.micro_batches(0), count))


def test_neighbouring_positions_are_different_clips_of_one_video(videos):
    sampler = sampler_of(videos)
    for position in range(0, 16, REPEATS):
        one, other = sampler.spec(position), sampler.spec(position + 1)
        assert one.path == other.path and one.clip_seed != other.clip_seed
        assert (one.start, one.crop) != (other.start, other.crop)
    epoch = [sampler.spec(position).path for position in range(sampler.steps_per_epoch * 4)]
    assert sampler.steps_per_epoch == 2
    assert sorted(epoch.count(path) for path in set(epoch)) == [2, 2, 2, 2]


@pytest.mark.parametrize(("num_workers", "sampling"), [(0, "dense"), (1, "dense"), (3, "dense"), (0, "uniform"), (3, "uniform")])
def test_frames_are_those_of_clips_read_one_by_one_and_each_video_is_decoded_once(
    videos, num_workers, sampling, monkeypatch, tmp_path
):
    log = tmp_path / "passes.txt"
    monkeypatch.setattr(batching, "ClipReader", functools.partial(CountingReader, log=str(log)))
    sampler = sampler_of(videos, sampling=sampling)
    together = batches_of(sampler, 3, num_workers=num_workers)
    num_passes = len(log.read_text().splitlines())
    for step, batch in enumerate(together):
        for position, frames_THWC in enumerate(batch.frames_BTHWC, 4 * step):
            alone = routes.read_decoded(sampler.spec(position), size=(HEIGHT, WIDTH)).frames_THWC
            np.testing.assert_array_equal(frames_THWC.numpy(), alone)
        assert batch.seed_B.tolist() == [sampler.spec(4 * step + row).clip_seed for row in range(4)]
    # each pass is of a whole group; some were read ahead
    assert 3 * 4 / REPEATS <= num_passes <= (3 + 2 + 3) * 4 / REPEATS
    if num_workers == 0:
        assert num_passes == 3 * 4 / REPEATS


def test_a_video_that_cannot_be_read_is_replaced_for_each_of_its_clips_and_named_once(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing of a video")
    batches = batches_of(sampler_of([*videos[:3], str(broken)], global_batch=8), 1, micro_batch=8)
    assert [bad.path for batch in batches for bad in batch.bad] == [str(broken)]
    assert batches[0].num_substitutes == REPEATS and str(broken) not in batches[0].paths


def test_one_unreadable_clip_does_not_take_its_neighbours_with_it(videos, monkeypatch):
    sampler = sampler_of(videos)
    specs = [sampler.spec(0), sampler.spec(1)]
    decode = routes.visit_frames
    poisoned = routes.frame_numbers(specs[1], index=routes.index_video(specs[1].path))[-1]

    def fail(path, numbers, **options):
        if poisoned in numbers:
            raise UnreadableVideo("a hole in it")
        return decode(path, numbers, **options)

    monkeypatch.setattr(routes, "visit_frames", fail)
    clips = routes.read_together(specs, size=(HEIGHT, WIDTH))
    failed = [isinstance(clip, UnreadableVideo) for clip in clips]
    assert failed[1] and failed[0] == bool(poisoned in routes.frame_numbers(specs[0], index=routes.index_video(specs[0].path)))


def test_a_micro_batch_that_would_split_a_video_is_refused(videos):
    with pytest.raises(ValueError, match="no multiple of data.repeats=2"):
        batches_of(sampler_of(videos, global_batch=3), 1, micro_batch=3)
