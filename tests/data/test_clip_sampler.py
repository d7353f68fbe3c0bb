"""What is drawn depends on the seed and the position alone."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from mats_ds.config.finetune_recipe import parse_rand_augment
from mats_ds.config.recipe import ClipSection
from mats_ds.data.clip_sampler import CROP_ANCHORS, BatchSplit, ClipSampler
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.decode import frame_numbers


def manifest_of(num_videos: int) -> Manifest:
    nan_S = np.full(num_videos, np.nan)
    return Manifest([f"v{i}.mp4" for i in range(num_videos)], np.arange(num_videos) + 100, nan_S, nan_S.copy(), "set")


def sampler_of(num_videos: int = 29, *, global_batch: int = 8, seed: int = 5, num_frames: int = 4, **clip) -> ClipSampler:
    section = ClipSection(**{"num_frames": 4, "stride": 3, "height": 32, "width": 48, "flip": True, **clip})
    return ClipSampler(manifest_of(num_videos), recipe_clip=section, num_frames=num_frames, global_batch=global_batch, seed=seed)


def test_an_epoch_takes_no_video_twice_and_each_epoch_has_its_own_order():
    sampler = sampler_of()
    assert sampler.steps_per_epoch == 3
    epochs = [[sampler.spec(24 * epoch + i).sample for i in range(24)] for epoch in range(2)]
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [sampler.epoch(position) for position in (0, 23, 24, 48)] == [0, 0, 1, 2]


def test_fewer_videos_than_a_batch_go_round_evenly_with_different_draws():
    sampler = sampler_of(3, global_batch=8)
    specs = [sampler.spec(i) for i in range(8)]
    assert sampler.steps_per_epoch == 1
    assert sorted(Counter(spec.sample for spec in specs).values()) == [2, 3, 3]
    assert len({(spec.start, spec.clip_seed) for spec in specs}) == 8


def test_a_spec_does_not_depend_on_what_was_asked_before():
    ahead, afresh = sampler_of(), sampler_of()
    walked = [ahead.spec(position) for position in range(100)]
    assert walked[77] == afresh.spec(77)
    assert sampler_of(seed=6).spec(77) != walked[77]


def test_the_draws_are_the_same_for_ever():
    """Frozen figures: a change here changes what every seed means, and breaks the resumption of
    running trainings."""
    spec = sampler_of().spec(30)
    assert (spec.sample, spec.clip_seed, round(spec.start, 6), spec.crop.flip) == (2, 3943213076083438747, 0.832523, False)


def test_the_spec_carries_the_manifest_and_the_recipe():
    manifest = manifest_of(1)
    manifest.first_seconds_S[0], manifest.last_seconds_S[0] = 1.5, 9.0
    section = ClipSection(num_frames=4, stride=3, height=32, width=32, sampling="uniform")
    spec = ClipSampler(manifest, recipe_clip=section, num_frames=6, global_batch=1, seed=0).spec(0)
    assert (spec.path, spec.label, spec.first_seconds, spec.last_seconds) == ("v0.mp4", 100, 1.5, 9.0)
    assert (spec.num_frames, spec.stride, spec.span, spec.sampling) == (6, 3, 12, "uniform")
    assert spec.span_seconds is None
    in_time = section.model_copy(update={"stride_seconds": 0.25})
    assert ClipSampler(manifest, recipe_clip=in_time, num_frames=6, global_batch=1, seed=0).spec(0).span_seconds == 1.0
    assert sampler_of().spec(0).first_seconds is None


def uniform_draws(num_videos: int = 1, *, length: int, num_draws: int, num_frames: int = 16, repeats: int = 1) -> np.ndarray:
    """Frame numbers of the first draws from videos of `length` frames, int64 [draws,
    num_frames]."""
    section = ClipSection(num_frames=16, stride=2, height=32, width=48, sampling="uniform")
    manifest = manifest_of(num_videos)
    sampler = ClipSampler(manifest, recipe_clip=section, num_frames=num_frames, global_batch=1, seed=3, repeats=repeats)
    file = SimpleNamespace(num_frames=length)
    return np.stack([frame_numbers(sampler.spec(position), index=file) for position in range(num_draws)])


@pytest.mark.parametrize(("length", "num_frames"), [(48, 16), (72, 24)])
def test_uniform_training_clips_draw_one_frame_out_of_every_segment_on_its_own(length, num_frames):
    """Segments of 3 frames, also of the 24 candidates: 3**16 and 3**24 clips, so that 2,000 draws
    hardly meet."""
    draws = uniform_draws(length=length, num_draws=2000, num_frames=num_frames)
    offsets = draws - 3 * np.arange(num_frames)
    assert offsets.min() == 0 and offsets.max() == 2
    assert len(np.unique(draws, axis=0)) >= 1990  # one offset for all segments gave 3
    counts = np.stack([(offsets == offset).sum(axis=0) for offset in range(3)])
    # five standard deviations of a binomial
    assert np.abs(counts - 2000 / 3).max() < 5 * (2000 * 2 / 9) ** 0.5
    # independent: the offsets of two segments agree in a third of the draws
    agree = np.mean(offsets[:, :-1] == offsets[:, 1:])
    assert abs(agree - 1 / 3) < 0.01


@pytest.mark.parametrize("length", [50, 61, 11, 16])
def test_uniform_training_clips_show_every_frame_alike_whatever_the_length(length):
    draws = uniform_draws(length=length, num_draws=2000)
    assert (np.diff(draws, axis=1) >= 0).all() and draws.max() < length
    expected = 2000 * 16 / length
    counts = np.bincount(draws.ravel(), minlength=length)
    assert np.abs(counts / expected - 1).max() < 0.15
    assert len(np.unique(draws, axis=0)) >= (1900 if length > 16 else 1)


def test_the_segments_draws_are_stateless_and_differ_for_epochs_attempts_and_repeats():
    section = ClipSection(num_frames=16, stride=2, height=32, width=48, sampling="uniform")

    def spec(position, attempt=0, *, seed=3, repeats=1):
        sampler = ClipSampler(manifest_of(4), recipe_clip=section, num_frames=16, global_batch=4, seed=seed, repeats=repeats)
        return sampler.spec(position, attempt)

    first = spec(0)
    assert len(first.segment_starts) == len(set(first.segment_starts)) == 16
    assert first == spec(0)
    others = [spec(4), spec(1), spec(0, 1), spec(0, seed=4), spec(1, repeats=2)]
    # (1, repeats=2) is (1) again
    assert len({first.segment_starts, *(each.segment_starts for each in others)}) == 5
    assert spec(0, repeats=2).sample == spec(1, repeats=2).sample
    # frozen figures, as below: a change breaks the resumption of running trainings
    assert [round(share, 6) for share in first.segment_starts[:3]] == [0.997223, 0.556058, 0.311567]


def test_dense_clips_have_no_draws_of_segments():
    assert sampler_of().spec(0).segment_starts == ()


def test_seeds_are_distinct_and_fit_62_bits():
    sampler = sampler_of(500, global_batch=100)
    seeds = [sampler.spec(position).clip_seed for position in range(1000)]
    assert len(set(seeds)) == 1000
    assert min(seeds) >= 0 and 2**60 < max(seeds) < 2**62


def test_substitutes_are_other_videos_each_time_and_share_the_seed():
    sampler = sampler_of()
    for position in range(60):
        specs = [sampler.spec(position, attempt) for attempt in range(4)]
        assert len({spec.sample for spec in specs}) == 4
        assert {spec.clip_seed for spec in specs} == {specs[0].clip_seed}
        assert [spec.attempt for spec in specs] == [0, 1, 2, 3]
    assert sampler_of(1, global_batch=1).spec(0, attempt=2).sample == 0


def test_crops_are_multi_scale_at_thirteen_places():
    sampler = sampler_of(300, global_batch=300)
    crops = [sampler.spec(position).crop for position in range(3000)]
    scales = [1.0, 0.875, 0.75, 0.66]
    pairs = Counter((scales.index(crop.height_scale), scales.index(crop.width_scale)) for crop in crops)
    assert set(pairs) == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert min(pairs.values()) > 200  # 300 expected of each
    assert len(set(CROP_ANCHORS)) == 13
    assert {(4 * crop.top, 4 * crop.left) for crop in crops} == set(CROP_ANCHORS)
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55
    starts = [sampler.spec(position).start for position in range(3000)]
    assert 0 <= min(starts) < 0.01 and 0.99 < max(starts) < 1


def test_flip_can_be_switched_off_without_changing_anything_else():
    with_flip, without = sampler_of(), sampler_of(flip=False)
    for position in range(20):
        one, other = with_flip.spec(position), without.spec(position)
        assert not other.crop.flip
        assert one.crop.flip == (position in (0, 2, 3, 4, 5, 7, 9, 12, 19))
        assert (one.sample, one.start, one.clip_seed) == (other.sample, other.start, other.clip_seed)
        assert one.crop.top == other.crop.top


@pytest.mark.parametrize("split", [(1, 8, 1), (1, 2, 4), (2, 4, 1), (2, 1, 4), (8, 1, 1)])
def test_a_step_holds_the_same_clips_on_any_split(split):
    world_size, micro_batch, accumulation = split
    seen = [
        position
        for rank in range(world_size)
        for micro in range(accumulation)
        for position in BatchSplit(rank, world_size, micro_batch, accumulation).positions(5, micro, global_batch=8)
    ]
    assert sorted(seen) == list(range(40, 48))


def test_a_split_that_does_not_make_the_global_batch():
    with pytest.raises(ValueError, match=r"micro-batch 3 x accumulation 2 x 2 ranks = 12, but the global batch is 8"):
        BatchSplit(rank=0, world_size=2, micro_batch=3, accumulation=2).positions(0, 0, global_batch=8)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        BatchSplit(rank=2, world_size=2, micro_batch=4).positions(0, 0, global_batch=8)


@pytest.mark.parametrize("wrong", [{"num_videos": 0}, {"global_batch": 0}, {"num_frames": 0}, {"seed": -1}])
def test_sizes_below_one(wrong):
    with pytest.raises(ValueError):
        sampler_of(**wrong)


def test_operations_are_those_of_the_place_in_the_run_and_change_nothing_else():
    def augmenting(**options) -> ClipSampler:
        plan = parse_rand_augment("rand-m7-n4-mstd0.5-inc1")
        section = ClipSection(num_frames=4, stride=3, height=32, width=48, flip=True)
        sizes = dict(num_frames=4, global_batch=8, seed=5, **options)
        return ClipSampler(manifest_of(29), recipe_clip=section, rand_augment=plan, **sizes)

    plain, augmented = sampler_of(), augmenting()
    assert augmented.augments and not plain.augments
    drawn = [augmented.spec(position) for position in range(60)]
    for position, spec in enumerate(drawn):
        assert dataclasses.replace(spec, operations=()) == plain.spec(position)
    assert drawn == [augmenting().spec(position) for position in range(60)]
    assert len({spec.operations for spec in drawn}) > 40 and any(not spec.operations for spec in drawn)
    assert augmented.spec(7, attempt=1).operations != augmented.spec(7).operations
    repeated = augmenting(repeats=2)
    assert repeated.spec(2).path == repeated.spec(3).path and repeated.spec(2).operations != repeated.spec(3).operations
