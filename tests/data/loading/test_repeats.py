"""Several clips of a video from one pass over it: the same frames as one by one, for less
decoding."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading import reader as routes
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.loading.reader import MAX_OPEN_GROUPS, SharedDecoder, read_decoded
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.containers import UnreadableVideo

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
def test_frames_are_those_of_clips_read_one_by_one_and_each_video_is_decoded_once(videos, num_workers, sampling, monkeypatch):
    sampler = sampler_of(videos, sampling=sampling)
    passes = []
    decode = routes.visit_frames

    def counting(path, numbers, **options):
        passes.append(path)
        return decode(path, numbers, **options)

    monkeypatch.setattr(routes, "visit_frames", counting)
    together = batches_of(sampler, 3, num_workers=num_workers)
    in_all = len(passes)
    monkeypatch.setattr(routes, "read_together", None)
    alone = sampler_of(videos, sampling=sampling)
    # the same draw, without the reader of groups
    alone.repeats, steps_per_epoch = 1, alone.steps_per_epoch
    alone.spec = lambda position, attempt=0: sampler.spec(position, attempt)
    for one, other in zip(together, batches_of(alone, 3, num_workers=num_workers), strict=True):
        assert torch.equal(one.frames_BTHWC, other.frames_BTHWC)
        assert torch.equal(one.seed_B, other.seed_B) and one.paths == other.paths
    assert steps_per_epoch == 2
    if num_workers == 0:  # nothing was read ahead
        assert in_all <= 3 * 4 / REPEATS + 4


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


def test_clips_that_nobody_takes_are_dropped_and_can_be_read_again(videos):
    sampler = sampler_of(videos)
    reads = []

    def read(specs):
        reads.append(specs[0].position)
        return routes.read_together(specs, size=(HEIGHT, WIDTH))

    reader = SharedDecoder(REPEATS, spec_of=sampler.spec, read=read)
    for group in range(MAX_OPEN_GROUPS + 1):
        reader.read(sampler.spec(group * REPEATS))
    assert len(reader._groups) == MAX_OPEN_GROUPS
    again = reader.read(sampler.spec(1))
    np.testing.assert_array_equal(again.frames_THWC, read_decoded(sampler.spec(1), size=(HEIGHT, WIDTH)).frames_THWC)
    assert reads.count(0) == 2


def test_a_micro_batch_that_would_split_a_video_is_refused(videos):
    with pytest.raises(ValueError, match="no multiple of data.repeats=2"):
        batches_of(sampler_of(videos, global_batch=3), 1, micro_batch=3)
