"""ClipLoader.from_manifest is all that somebody else's training loop needs."""

import shutil
import threading
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.distributed as dist

import mats_ds
import mats_ds.data
from mats_ds.data import ClipLoader
from mats_ds.data.loading.loader import ClipLoader as SameLoader
from mats_ds.data.synthetic import write_synthetic_set
from tests.ranks import run_ranks


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


def read_two_epochs(manifest, starts_ranks_first):
    """Two epochs' samples on this rank, as a user of DistributedDataParallel reads them; then those
    of a loader that was given its rank."""

    def start_ranks():
        dist.init_process_group("gloo")
        return dist.get_rank(), dist.get_world_size()

    ranks = start_ranks() if starts_ranks_first else None
    options = dict(batch_size=1, num_frames=2, size=32, num_workers=0)
    with ClipLoader.from_manifest(manifest, **options) as loader:
        lengths = [len(loader)]
        ranks = ranks or start_ranks()
        lengths.append(len(loader))
        epochs = [[samples[0] for samples, _, _ in read(loader)] for _ in range(2)]
    with ClipLoader.from_manifest(manifest, rank=0, world_size=1, **options) as loader:
        alone = [samples[0] for samples, _, _ in read(loader)]
    dist.destroy_process_group()
    return ranks, lengths, epochs, alone


@pytest.mark.parametrize("starts_ranks_first", [True, False])
def test_ranks_of_torch_distributed_read_every_video_once(manifest, starts_ranks_first):
    """Lightning starts its process group after the loader is made."""
    one, other = run_ranks(read_two_epochs, 2, manifest, starts_ranks_first)
    for number, (ranks, lengths, epochs, alone) in enumerate((one, other)):
        assert ranks == (number, 2) and lengths == [3 if starts_ranks_first else 6, 3]
        assert [len(samples) for samples in epochs] == [3, 3]
        assert sorted(alone) == list(range(6)), "a rank that was given wins"
    for epoch in range(2):
        assert sorted(one[2][epoch] + other[2][epoch]) == list(range(6))
    assert one[2][0] != one[2][1]
    assert one[3] == other[3]


def test_the_parts_of_two_ranks_are_the_global_batches_of_one(manifest):
    options = dict(num_frames=2, size=32, num_workers=0, seed=3)
    with ClipLoader.from_manifest(manifest, batch_size=4, **options) as loader:
        ((samples, _, frames),) = read(loader)
    for rank in range(2):
        with ClipLoader.from_manifest(manifest, batch_size=2, rank=rank, world_size=2, **options) as loader:
            ((part, _, frames_of_part),) = read(loader)
        assert part == samples[2 * rank : 2 * rank + 2] and torch.equal(frames_of_part, frames[2 * rank : 2 * rank + 2])


def test_an_epoch_can_be_chosen_and_an_iterator_that_nobody_reads_takes_none(manifest):
    options = dict(batch_size=2, num_frames=2, size=32, num_workers=0)
    with ClipLoader.from_manifest(manifest, **options) as loader:
        epochs = [[samples for samples, _, _ in read(loader)] for _ in range(3)]
    with ClipLoader.from_manifest(manifest, **options) as loader:
        iterator = iter(loader)  # Lightning makes it before its hooks run
        loader.set_epoch(2)
        assert [batch.sample_B.tolist() for batch in iterator] == epochs[2] != epochs[0]
        with pytest.raises(ValueError, match="-1"):
            loader.set_epoch(-1)


def test_a_batch_goes_to_a_device_with_all_that_it_says(tmp_path, manifest):
    """What Lightning and Accelerate do to a batch; they take no frozen dataclass apart."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copy(manifest.parent / "synthetic_000_horizontal.mp4", tmp_path)
    with ClipLoader.from_manifest(tmp_path, batch_size=2, num_frames=2, size=32, num_workers=0) as loader:
        (batch,) = loader
    moved = batch.to("meta", non_blocking=True)
    tensors = [field.name for field in fields(batch) if isinstance(getattr(batch, field.name), torch.Tensor)]
    assert len(tensors) == 5 and all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert [bad.path for bad in moved.bad] == [str(tmp_path / "broken.mp4")] and moved.num_substitutes == 1
    assert batch.frames_BTHWC.device.type == "cpu"


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
        (dict(num_workers=-1), "num_workers is a whole number of 0 or more, got -1"),
        (dict(num_workers=1.5), "num_workers is a whole number of 0 or more, got 1.5"),
        (dict(rank=2, world_size=1), "rank 2 of 1"),
        (dict(rank=1), "rank=1 and world_size=None: give both, or neither"),
        (dict(world_size=2), "rank=None and world_size=2: give both, or neither"),
    ],
)
def test_numbers_that_do_not_go_together_are_one_clear_error(manifest, changes, facts):
    with pytest.raises(ValueError, match=facts) as error:
        ClipLoader.from_manifest(manifest, **{"batch_size": 2, **changes})
    assert "\n" not in str(error.value)
