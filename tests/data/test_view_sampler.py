"""Every view of every video is read exactly once, on any number of ranks, and shows what its
numbers say."""

from __future__ import annotations

import functools
import time
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading import batching
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import frame_numbers
from mats_ds.data.video.indexing import index_video
from mats_ds.data.view_sampler import PADDING, View, ViewSampler, fit_micro_batch
from tests.data.loading.fake_reading import FaultyReader
from tests.data.prepare.copying.test_transcode import write_timed

SIDE = 48  # of the clips; the files are 48 x 80, so that crops are not scaled
NUM_FRAMES, STRIDE = 4, 3


def sampler_of(paths, *, num_clips=2, num_crops=3, micro_batch=4, world_size=1, num_frames=None, seed=0, **clip):
    section = ClipSection(**{"num_frames": NUM_FRAMES, "stride": STRIDE, "height": SIDE, "width": SIDE} | clip)
    nan_S = np.full(len(paths), np.nan)
    manifest = Manifest([str(path) for path in paths], np.arange(len(paths)) + 100, nan_S, nan_S.copy(), "set")
    sizes = dict(num_clips=num_clips, num_crops=num_crops, micro_batch=micro_batch, world_size=world_size)
    return ViewSampler(manifest, recipe_clip=section, **sizes, num_frames=num_frames, seed=seed)


def batches_of(sampler, *, rank=0, world_size=1, num_workers=2, num_steps=None, **options):
    """(positions, batch) of every step of a pass on one rank."""
    loader = ClipLoader(
        sampler,
        BatchSplit(rank, world_size, sampler.global_batch // world_size),
        size=(sampler.recipe_clip.height, sampler.recipe_clip.width),
        device=torch.device("cpu"),
        options=ReadOptions(num_workers, **options),
    )
    with loader:
        batches = list(islice(loader.micro_batches(0), num_steps or sampler.steps_per_epoch))
    return [(loader.positions(step, 0), batch) for step, batch in enumerate(batches)]


def counted_views(sampler, read):
    """(view, frames) of all that a test may count, as the docstring says."""
    found = []
    for positions, batch in read:
        for place, position in enumerate(positions):
            counts = bool(batch.valid_B[place]) and batch.sample_B[place] >= 0
            if counts:
                shown = sampler.view(position)
                assert shown.sample == batch.sample_B[place] and batch.label_B[place] == 100 + shown.sample
                found.append((shown, batch.frames_BTHWC[place].numpy().tobytes()))
    return found


@pytest.fixture(scope="module")
def videos(write_video, tmp_path_factory):
    """Five files; the last is shorter than the span of a clip."""
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"{length}.mp4", num_frames=length) for length in (40, 33, 57, 41, 7)]


def numbers_in(frames_THWC, *, left):
    """The bits of the frames' numbers that a crop of the 80 pixels shows, by bit."""
    shown = {}
    for bit in range(8):
        column = 10 * bit + 5 - left
        if 3 <= column < SIDE - 3:
            shown[bit] = [int(value > 128) for value in frames_THWC[:, SIDE // 4, column, 1]]
    return shown


def test_crops_lie_left_in_the_middle_and_right_and_clips_over_the_whole_video(videos):
    sampler = sampler_of(videos[:1], num_clips=3, num_crops=3, micro_batch=9)
    [(positions, batch)] = batches_of(sampler)
    # 40 frames, span 4 x 3: 29 possible beginnings
    for position, frames_THWC in zip(positions, batch.frames_BTHWC.numpy(), strict=True):
        shown = sampler.view(position)
        expected = [(0, 14, 28)[shown.clip] + 3 * step for step in range(NUM_FRAMES)]
        for bit, values in numbers_in(frames_THWC, left=(0, 16, 32)[shown.crop]).items():
            assert values == [number >> bit & 1 for number in expected], (shown, bit)


def test_crops_of_upright_pictures_lie_above_each_other():
    specs = [sampler_of(["a.mp4"], num_clips=1).spec(position) for position in range(3)]
    assert [spec.crop.box(80, 48) for spec in specs] == [(0, 0, 48, 48), (16, 0, 48, 48), (32, 0, 48, 48)]
    assert [spec.crop.box(48, 80) for spec in specs] == [(0, 0, 48, 48), (0, 16, 48, 48), (0, 32, 48, 48)]
    assert not any(spec.crop.flip for spec in specs)


def test_one_view_is_the_middle_of_both():
    spec = sampler_of(["a.mp4"], num_clips=1, num_crops=1).spec(0)
    assert (spec.start, spec.crop.top, spec.crop.left) == (0.5, 0.5, 0.5)


def test_uniform_clips_share_the_segments_among_them(videos):
    sampler = sampler_of(videos[:1], num_clips=2, num_crops=1, sampling="uniform")
    index = index_video(str(videos[0]))
    numbers = [frame_numbers(sampler.spec(position), index=index).tolist() for position in range(2)]
    # segments of ten frames: their first frames, and their middle ones
    assert numbers == [[0, 10, 20, 30], [5, 15, 25, 35]]


@pytest.mark.parametrize("num_frames", [7, 16, 29, 48, 97, 250])
def test_two_uniform_clips_are_those_of_videomae_on_ssv2(num_frames):
    """Its rule, in reals: tick = length / 16, clip 0 takes every tick, clip 1 lies half a tick
    later."""
    sampler = sampler_of(["a.mp4"], num_clips=2, num_crops=1, num_frames=16, sampling="uniform")
    file = SimpleNamespace(num_frames=num_frames)
    tick = num_frames / 16
    for clip in range(2):
        expected = [int(clip * tick / 2 + tick * segment) for segment in range(16)]
        assert frame_numbers(sampler.spec(clip), index=file).tolist() == expected


def test_uniform_clips_of_a_test_have_one_phase_for_all_segments():
    """Nothing is drawn in a test: one clip takes the middle of each segment, n clips take n equal
    steps."""
    assert frame_numbers(
        sampler_of(["a.mp4"], num_clips=5, num_crops=1, sampling="uniform").spec(1), index=SimpleNamespace(num_frames=40)
    ).tolist() == [2, 12, 22, 32]
    for num_clips, phases in ((1, [0.5]), (2, [0.0, 0.5]), (5, [0.0, 0.2, 0.4, 0.6, 0.8])):
        sampler = sampler_of(["a.mp4"], num_clips=num_clips, num_crops=1, sampling="uniform")
        specs = [sampler.spec(position) for position in range(num_clips)]
        assert [(spec.start, spec.segment_starts) for spec in specs] == [(phase, ()) for phase in phases]


def test_in_seconds_on_a_file_of_varying_rate(tmp_path):
    from tests.video_files import number_picture

    # ten frames in the first second, then one a second
    path = write_timed(tmp_path / "a.mkv", [*range(0, 1000, 100), *range(1000, 10000, 1000)], number_picture)
    sampler = sampler_of([path], num_clips=3, num_crops=1, stride_seconds=0.25)
    index = index_video(str(path))
    numbers = [frame_numbers(sampler.spec(position), index=index).tolist() for position in range(3)]
    # Each clip lasts a second: four of ten frames at first, then the one that stays from 4 s on,
    # and from 8 s on (to 9.1 s).
    assert numbers == [[0, 2, 5, 7], [13, 13, 13, 13], [17, 17, 17, 17]]
    assert index.seconds()[[13, 17]].tolist() == [4.0, 8.0]


def test_a_short_video_gives_all_its_views(videos):
    sampler = sampler_of(videos[4:], num_clips=2, num_crops=1, micro_batch=2)
    [(_, batch)] = batches_of(sampler)
    assert batch.valid_B.all()
    first, second = batch.frames_BTHWC
    # seven frames, spread over the clip of twelve: there is but one beginning
    assert torch.equal(first, second)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 4), (1, 6), (2, 4), (3, 4), (3, 6), (2, 35)])
def test_every_view_counts_once_on_any_number_of_ranks(videos, world_size, micro_batch):
    alone = sampler_of(videos, micro_batch=5)
    expected = sorted(counted_views(alone, batches_of(alone)), key=str)
    sampler = sampler_of(videos, micro_batch=micro_batch, world_size=world_size)
    found, num_batches = [], []
    for rank in range(world_size):
        read = batches_of(sampler, rank=rank, world_size=world_size)
        num_batches.append(len(read))
        found += counted_views(sampler, read)
    assert len(set(num_batches)) == 1
    assert sorted(found, key=str) == expected
    everything = [View(sample, clip, crop) for sample in range(5) for clip in range(2) for crop in range(3)]
    assert sorted((shown for shown, _ in found), key=str) == sorted(everything, key=str)


def test_what_fills_up_the_last_step_is_marked(videos):
    sampler = sampler_of(videos, micro_batch=8)
    read = batches_of(sampler)
    assert sampler.steps_per_epoch == 4 and sampler.num_positions == 30
    assert [batch.sample_B.tolist().count(PADDING) for _, batch in read] == [0, 0, 0, 2]
    assert [sampler.view(position) is None for position in read[-1][0]] == 6 * [False] + 2 * [True]
    assert read[-1][1].label_B.tolist() == 6 * [104] + 2 * [-1]


def test_a_second_pass_is_the_first_again(videos):
    sampler = sampler_of(videos, micro_batch=8)
    per_pass = sampler.steps_per_epoch * sampler.global_batch
    assert [sampler.epoch(position) for position in (0, per_pass - 1, per_pass)] == [0, 0, 1]
    for position in range(per_pass):
        once, again = sampler.spec(position), sampler.spec(position + per_pass)
        assert sampler.view(position + per_pass) == sampler.view(position)
        assert (again.path, again.start, again.crop, again.clip_seed) == (once.path, once.start, once.crop, once.clip_seed)


def test_seeds_are_distinct_and_follow_the_samplers_seed():
    seeds = [sampler_of(["a.mp4"] * 50).spec(position).clip_seed for position in range(300)]
    assert len(set(seeds)) == 300 and min(seeds) >= 0 and max(seeds) < 2**62
    assert sampler_of(["a.mp4"] * 50, seed=1).spec(0).clip_seed != seeds[0]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["vanished", "text", "truncated"])
def test_an_unreadable_video_is_blank_under_its_own_number_and_no_other_takes_its_place(videos, write_broken, kind, num_workers):
    broken = write_broken(kind)
    sampler = sampler_of([videos[0], broken, videos[1]], micro_batch=6)
    read = batches_of(sampler, num_workers=num_workers)
    batch = read[1][1]
    assert batch.sample_B.tolist() == 6 * [1] and batch.label_B.tolist() == 6 * [101]
    assert not batch.valid_B.any() and batch.num_substitutes == 6 and not batch.frames_BTHWC.any()
    assert [(bad.path, bad.sample) for bad in batch.bad] == [(str(broken), 1)]
    assert "substitutes" not in batch.bad[0].reason
    assert {shown.sample for shown, _ in counted_views(sampler, read)} == {0, 2}
    assert sum(len(batch.bad) for _, batch in read) == 1


def test_a_video_that_hangs_is_blank_and_does_not_wait_once_for_each_of_its_views(videos, monkeypatch, tmp_path):
    hanging = tmp_path / "hanging.mp4"
    hanging.write_bytes(videos[1].read_bytes())
    monkeypatch.setattr(batching, "ClipReader", functools.partial(FaultyReader, hangs=(str(hanging),)))
    sampler = sampler_of([videos[0], hanging, videos[2]], micro_batch=6)
    began = time.monotonic()
    read = batches_of(sampler, clip_timeout_seconds=5.0)
    assert time.monotonic() - began < 6 * 5
    assert [batch.valid_B.tolist() for _, batch in read] == [6 * [True], 6 * [False], 6 * [True]]
    assert "not read within 5 s" in read[1][1].bad[0].reason


@pytest.mark.parametrize(("micro_batch", "repeats"), [(6, 6), (12, 6), (3, 3), (4, 2), (5, 1)])
def test_as_many_views_as_fit_are_decoded_in_one_pass(videos, when_opened, micro_batch, repeats):
    sampler = sampler_of(videos[:2], micro_batch=micro_batch)
    assert sampler.repeats == repeats
    for path in sampler.manifest.paths:
        index_video(path)  # opens it too, once for all
    opened = []
    when_opened(opened.append)
    batches_of(sampler, num_workers=0, num_steps=1)  # without workers nothing is read ahead
    assert opened.count(str(videos[0])) == min(micro_batch, 6) // repeats


@pytest.mark.parametrize(
    ("num_views", "at_most", "expected"),
    [(15, 16, 15), (30, 16, 15), (6, 16, 12), (1, 16, 16), (30, 64, 60), (7, 1, 1)],
)
def test_a_micro_batch_for_whole_videos(num_views, at_most, expected):
    """As many views as can be come out of one pass; of equal ones the largest batch."""
    assert fit_micro_batch(num_views, at_most=at_most) == expected


def test_candidates_of_the_frame_selection_are_spread_over_the_same_span(videos):
    index = index_video(str(videos[0]))
    used, read = sampler_of(videos[:1]).spec(0), sampler_of(videos[:1], num_frames=6).spec(0)
    assert frame_numbers(used, index=index).tolist() == [0, 3, 6, 9]
    assert frame_numbers(read, index=index).tolist() == [0, 2, 4, 6, 8, 10]


def test_the_synthetic_set_of_two_codecs(tmp_path):
    manifest = read_manifest(write_synthetic_set(tmp_path / "set", num_videos=4, num_frames=20))
    section = ClipSection(num_frames=4, stride=2, height=32, width=32)
    sampler = ViewSampler(manifest, recipe_clip=section, num_clips=5, num_crops=3, micro_batch=15)
    read = batches_of(sampler)
    assert [batch.sample_B.tolist() for _, batch in read] == [15 * [sample] for sample in range(4)]
    assert all(batch.valid_B.all() for _, batch in read)
    for _, batch in read:
        views = {frames.numpy().tobytes() for frames in batch.frames_BTHWC}
        assert len(views) == 15


def test_a_test_takes_no_substitutes():
    with pytest.raises(UnreadableVideo, match="no substitutes"):
        sampler_of(["a.mp4"]).spec(0, attempt=1)


@pytest.mark.parametrize("wrong", ["num_clips", "num_crops", "micro_batch", "world_size", "num_frames"])
def test_sizes_below_one(wrong):
    with pytest.raises(ValueError, match=f"{wrong} is at least 1, got 0"):
        sampler_of(["a.mp4"], **{wrong: 0})


def test_an_empty_manifest():
    with pytest.raises(ValueError, match="empty"):
        sampler_of([])


def test_the_loader_needs_of_a_sampler_what_both_have():
    public = {name for name in dir(ClipSampler) if not name.startswith("_")}
    public.remove("with_global_batch")  # of loaders of from_manifest alone, which make a ClipSampler
    assert public <= {name for name in dir(ViewSampler) if not name.startswith("_")}
