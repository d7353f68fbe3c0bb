"""ClipLoader.from_manifest is all that somebody else's training loop needs."""

import threading

import numpy as np
import pytest
import torch

import mats_ds
import mats_ds.data
from mats_ds.data import ClipLoader
from mats_ds.data.loading.loader import ClipLoader as SameLoader
from mats_ds.data.synthetic import write_synthetic_set


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_synthetic_set(tmp_path_factory.mktemp("set") / "synthetic", num_videos=6, num_frames=12, height=48, width=64)


def read(loader):
    return [(batch.sample_B.tolist(), batch.label_B.tolist(), batch.frames_BTHWC) for batch in loader]


def test_it_is_one_class_under_all_its_names():
    assert ClipLoader is SameLoader is mats_ds.ClipLoader
    with pytest.raises(AttributeError, match="ClipLoader"):
        mats_ds.data.ClipLoder  # noqa: B018


def test_a_loop_is_an_epoch_and_the_next_loop_the_next(manifest):
    with ClipLoader.from_manifest(manifest, batch_size=3, num_frames=4, stride=2, size=(32, 48), num_workers=0) as loader:
        assert len(loader) == 2
        first, second = read(loader), read(loader)
        again = read(loader.epoch(0))
    for epoch in (first, second):
        assert sorted(sample for samples, _, _ in epoch for sample in samples) == list(range(6))
    assert [samples for samples, _, _ in first] != [samples for samples, _, _ in second]
    assert all(torch.equal(one[2], other[2]) for one, other in zip(first, again, strict=True))
    frames = first[0][2]
    assert frames.shape == (3, 4, 32, 48, 3) and frames.dtype == torch.uint8
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert all((labels[samples] == label).all() for samples, label, _ in first)


def test_a_loop_that_was_left_early_does_not_stop_the_next(manifest):
    with ClipLoader.from_manifest(manifest, batch_size=2, num_frames=2, size=32) as loader:
        for _ in loader:
            break
        assert len(read(loader)) == 3


def test_a_loop_that_another_one_ended_says_so(manifest):
    """Not a shorter epoch: zip(loader, loader) would train on a part of the videos."""
    with ClipLoader.from_manifest(manifest, batch_size=2, num_frames=2, size=32, num_workers=0) as loader:
        with pytest.raises(RuntimeError, match="1 of the 3 batches"):
            list(zip(loader, loader, strict=True))
        batches = iter(loader)
        next(batches)
        loader.close()
        with pytest.raises(RuntimeError, match="1 of the 3 batches"):
            next(batches)
        assert len(read(loader)) == 3


def test_no_thread_is_left_by_an_exception_in_the_loop(manifest):
    with (
        pytest.raises(KeyError),
        ClipLoader.from_manifest(manifest, batch_size=2, num_frames=2, size=32, num_workers=2) as loader,
    ):
        for _ in loader:
            raise KeyError
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mats-")]


def test_a_set_smaller_than_a_batch_goes_round_and_a_rest_is_left_out(manifest):
    options = dict(num_frames=2, size=32, num_workers=0)
    with ClipLoader.from_manifest(manifest, batch_size=8, **options) as loader:
        ((samples, _, _),) = read(loader)
        assert len(samples) == 8 and set(samples) == set(range(6))
    with ClipLoader.from_manifest(manifest, batch_size=4, **options) as loader:
        assert len(loader) == 1 and len(read(loader)) == 1


def test_ranks_read_disjoint_halves(manifest):
    seen = []
    for rank in range(2):
        options = dict(batch_size=3, num_frames=2, size=32, rank=rank, world_size=2, num_workers=0)
        with ClipLoader.from_manifest(manifest, **options) as loader:
            seen += [sample for samples, _, _ in read(loader) for sample in samples]
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize(
    "changes, facts",
    [
        (dict(num_frames=0), "num_frames"),
        (dict(crop_scales=(1.5,)), "crop_scales"),
        (dict(size=0), "height"),
        (dict(batch_size=0), "batch_size is a whole number of at least 1, got 0"),
        (dict(batch_size=2.0), "batch_size is a whole number of at least 1, got 2.0"),
        (dict(size="32"), r"\(height, width\), got '32'"),
        (dict(size=(32, 32, 3)), r"\(height, width\), got \(32, 32, 3\)"),
        (dict(num_workers=-1), "num_workers is 0 or more, got -1"),
        (dict(rank=2), "rank 2 of 1"),
    ],
)
def test_numbers_that_do_not_go_together_are_one_clear_error(manifest, changes, facts):
    with pytest.raises(ValueError, match=facts) as error:
        ClipLoader.from_manifest(manifest, **{"batch_size": 2, **changes})
    assert "\n" not in str(error.value)
