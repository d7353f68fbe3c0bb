"""The loader delivers the same clips whatever the number of processes, ranks or restarts, and a bad
file never stops it."""

import functools
import gc
import importlib.util
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mats_ds.config.finetune_recipe import parse_rand_augment
from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import ClipBatch, CropSpec, ImageOperation
from mats_ds.data.augment.augmented_crop import AugmentedCrop
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading import batching, dali, given_up, reader, session, template
from mats_ds.data.loading import loader as pipeline
from mats_ds.data.loading.channel import pack
from mats_ds.data.loading.dali import GpuDecoder
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ClipPrefetcher, ReadOptions
from mats_ds.data.loading.reader import EncodedClip, Region
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.video import nvdec_support
from tests.data.loading.fake_reading import FaultyReader

CPU = torch.device("cpu")
VP9 = {"vp9": nvdec_support.NVDEC_LIMITS["vp9"]}
HEIGHT, WIDTH, NUM_FRAMES = 32, 48, 4


@pytest.fixture(scope="module")
def videos(write_video, tmp_path_factory) -> list[str]:
    """Seven sound files, of different codecs and sizes."""
    folder = tmp_path_factory.mktemp("videos")
    paths = []
    for number in range(7):
        name, options = (("a.mp4", {"b_frames": 2}), ("b.webm", {"codec": "libvpx-vp9"}), ("c.avi", {"codec": "mpeg4"}))[
            number % 3
        ]
        paths.append(write_video(folder / f"{number}{name}", num_frames=20 + number, height=48 + 16 * (number % 2), **options))
    return [str(path) for path in paths]


def manifest_of(paths: list[str]) -> Manifest:
    nan_S = np.full(len(paths), np.nan)
    return Manifest(paths, np.arange(len(paths)), nan_S, nan_S.copy(), "set")


AUGMENTED = {"crop_areas": (0.08, 1.0), "rand_augment": parse_rand_augment("rand-m7-n4-mstd0.5-inc1")}


def loader_of(
    paths, *, global_batch=6, world_size=1, rank=0, accumulation=1, stride=2, repeats=1, augments=False, **options
) -> ClipLoader:
    clip = ClipSection(num_frames=NUM_FRAMES, stride=stride, height=HEIGHT, width=WIDTH, flip=True)
    sizes = dict(num_frames=NUM_FRAMES, global_batch=global_batch, seed=3, repeats=repeats)
    sampler = ClipSampler(manifest_of(paths), recipe_clip=clip, **sizes, **(AUGMENTED if augments else {}))
    return ClipLoader(
        sampler,
        BatchSplit(rank, world_size, global_batch // world_size // accumulation, accumulation),
        size=(HEIGHT, WIDTH),
        device=CPU,
        options=ReadOptions(**{"num_workers": 2, **options}),
    )


def take(loader: ClipLoader, count: int, first_step: int = 0) -> list[ClipBatch]:
    with loader:
        return list(islice(loader.micro_batches(first_step), count))


def assert_equal(one: ClipBatch, other: ClipBatch) -> None:
    for name in ("frames_BTHWC", "label_B", "sample_B", "valid_B", "seed_B"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.bad, one.paths) == (other.bad, other.paths)


def assert_alike(one: ClipBatch, other: ClipBatch) -> None:
    """The same clips through two decoders, whose colour conversions differ by a level or two; a
    wrong frame or crop would differ by tens.
    """
    assert (one.paths, one.bad) == (other.paths, other.bad) and torch.equal(one.seed_B, other.seed_B)
    difference_BT = (one.frames_BTHWC.float() - other.frames_BTHWC.float()).abs().flatten(2).mean(2)
    assert difference_BT.max() <= 3, difference_BT


def concatenate(batches: list[ClipBatch]) -> dict[int, torch.Tensor]:
    """The frames of each clip by its seed."""
    return {int(seed): frames for batch in batches for seed, frames in zip(batch.seed_B, batch.frames_BTHWC, strict=True)}


def test_a_batch_holds_what_the_sampler_says(videos):
    loader = loader_of(videos)
    (batch,) = take(loader, 1)
    specs = [loader.sampler.spec(position) for position in range(6)]
    assert batch.frames_BTHWC.shape == (6, NUM_FRAMES, HEIGHT, WIDTH, 3) and batch.frames_BTHWC.dtype == torch.uint8
    assert batch.label_B.tolist() == batch.sample_B.tolist() == [spec.sample for spec in specs]
    assert batch.seed_B.tolist() == [spec.clip_seed for spec in specs]
    assert batch.valid_B.tolist() == [True] * 6 and batch.valid_B.dtype == torch.bool
    assert batch.label_B.dtype == batch.sample_B.dtype == batch.seed_B.dtype == torch.int64
    assert batch.paths == tuple(spec.path for spec in specs) and batch.bad == ()
    assert batch.frames_BTHWC.float().std() > 10


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 1, "prefetch": 1}, {"num_workers": 5, "prefetch": 4}])
def test_processes_and_prefetching_change_no_bit(videos, options):
    for one, other in zip(take(loader_of(videos), 5), take(loader_of(videos, **options), 5), strict=True):
        assert_equal(one, other)


def test_augmented_clips_are_the_same_in_any_processes_after_a_restart_and_with_their_video_decoded_once(videos):
    through = take(loader_of(videos, augments=True), 4)
    assert not through[0].frames_BTHWC.equal(take(loader_of(videos), 1)[0].frames_BTHWC)
    for options in ({"num_workers": 0}, {"num_workers": 5, "prefetch": 4}):
        for one, other in zip(through[2:], take(loader_of(videos, augments=True, **options), 2, first_step=2), strict=True):
            assert_equal(one, other)
    halves = [take(loader_of(videos, augments=True, world_size=2, rank=rank), 1) for rank in range(2)]
    whole, parts = concatenate(through[:1]), concatenate([half[0] for half in halves])
    assert parts.keys() == whole.keys() and all(torch.equal(parts[key], whole[key]) for key in whole)
    with loader_of(videos, augments=True, repeats=2) as loader:
        (together,) = islice(loader.micro_batches(0), 1)
        for position, frames_THWC in enumerate(together.frames_BTHWC):
            alone = reader.read_decoded(loader.sampler.spec(position), size=(HEIGHT, WIDTH)).frames_THWC
            assert np.array_equal(frames_THWC.numpy(), alone), position
    assert together.paths[0] == together.paths[1] and not together.frames_BTHWC[0].equal(together.frames_BTHWC[1])


def test_chunks_change_no_bit(videos, monkeypatch):
    whole = take(loader_of(videos), 3)
    monkeypatch.setattr(batching, "MAX_CHUNK_CLIPS", 4)
    for one, other in zip(whole, take(loader_of(videos), 3), strict=True):
        assert_equal(one, other)
    monkeypatch.setattr(batching, "MAX_CHUNK_BYTES", 1)
    for one, other in zip(whole, take(loader_of(videos), 3), strict=True):
        assert_equal(one, other)


def test_a_run_that_resumes_in_mid_epoch_sees_the_same(videos):
    through = take(loader_of(videos, global_batch=2, accumulation=2), 12)
    for one, other in zip(through[6:], take(loader_of(videos, global_batch=2, accumulation=2), 6, first_step=3), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("split", [(2, 1), (1, 3), (3, 2)])
def test_any_split_over_ranks_and_micro_steps_sees_the_same_clips_in_a_step(videos, split):
    world_size, accumulation = split
    whole = concatenate(take(loader_of(videos), 1, first_step=1))
    parts = {}
    for rank in range(world_size):
        loader = loader_of(videos, world_size=world_size, rank=rank, accumulation=accumulation)
        parts |= concatenate(take(loader, accumulation, first_step=1))
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def test_batches_keep_their_content_while_later_ones_are_made(videos):
    with loader_of(videos, prefetch=1) as loader:
        kept, copies = [], []
        for batch in islice(loader.micro_batches(0), 12):
            kept.append(batch.frames_BTHWC)
            copies.append(batch.frames_BTHWC.clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


# --- Bad files


@pytest.fixture
def faulty(monkeypatch):
    """`faulty(...)`: readers have these faults, see FaultyReader."""
    return lambda **faults: monkeypatch.setattr(batching, "ClipReader", functools.partial(FaultyReader, **faults))


@pytest.mark.parametrize("kind", ["empty", "text", "garbage", "truncated", "audio", "vanished", "folder"])
def test_a_bad_file_is_named_once_an_epoch_and_replaced(videos, write_broken, kind):
    bad_path = str(write_broken(kind))
    paths = [bad_path, *videos[:5]]
    loader = loader_of(paths, global_batch=3)
    batches = take(loader, 6)  # three epochs of two steps
    for epoch in range(3):
        both = batches[2 * epoch : 2 * epoch + 2]
        named = [bad for batch in both for bad in batch.bad]
        assert [(bad.path, bad.sample) for bad in named] == [(bad_path, 0)]
        assert named[0].reason and "\n" not in named[0].reason
        assert sum(int((~batch.valid_B).sum()) for batch in both) == 1
    for batch in batches:
        assert bad_path not in batch.paths
        assert batch.sample_B.tolist() == [paths.index(path) for path in batch.paths]
        assert (batch.frames_BTHWC.float().flatten(1).std(1) > 10).all()
    for one, other in zip(batches, take(loader_of(paths, global_batch=3, num_workers=4), 6), strict=True):
        assert_equal(one, other)


def test_where_nothing_can_be_read_clips_are_blank_and_the_run_goes_on(tmp_path):
    paths = [str(tmp_path / f"gone{number}.mp4") for number in range(3)]
    first, second = take(loader_of(paths, global_batch=3), 2)
    assert not first.frames_BTHWC.any() and not first.valid_B.any()
    assert first.paths == ("",) * 3 and sorted(first.sample_B.tolist()) == [0, 1, 2]
    assert sorted(bad.path for bad in first.bad) == sorted(paths)
    assert len(second.bad) == 3  # another epoch


def test_the_same_bad_files_in_every_run_on_every_split(videos, write_broken):
    paths = [str(write_broken("text")), *videos, str(write_broken("empty"))]
    whole = take(loader_of(paths, global_batch=8), 2)
    halves = [take(loader_of(paths, global_batch=8, world_size=2, rank=rank), 2) for rank in range(2)]
    for step in range(2):
        merged = concatenate([half[step] for half in halves])
        assert all(torch.equal(merged[key], frames) for key, frames in concatenate([whole[step]]).items())
        assert {bad.path for half in halves for bad in half[step].bad} == {bad.path for bad in whole[step].bad}


def test_a_clip_that_hangs_becomes_a_bad_clip(videos, faulty):
    faulty(hangs=(videos[2],))
    batches = take(loader_of(videos, clip_timeout_seconds=2.0), 2)
    named = [bad for batch in batches for bad in batch.bad]
    assert [(bad.path, bad.reason) for bad in named if bad.path == videos[2]][0][1] == "not read within 2 s"
    assert all(videos[2] not in batch.paths for batch in batches)


def test_a_disk_that_is_gone_ends_the_run_with_the_files_that_hang(videos, faulty, monkeypatch):
    monkeypatch.setattr(given_up, "MAX_HANGING", 2)
    faulty(hangs=tuple(videos))
    with pytest.raises(given_up.ReadingStuck, match="3 videos not read within 0.2 s") as caught:
        take(loader_of(videos, clip_timeout_seconds=0.2), 2)
    assert sum(path in str(caught.value) for path in videos) == 3


def test_a_fault_of_the_program_reaches_the_training_loop(videos, faulty):
    faulty(has_bug=True)
    with pytest.raises(ZeroDivisionError):
        take(loader_of(videos), 1)


def test_a_graph_that_hangs_is_told_instead_of_waited_for(vp9_videos, device_decodes_vp9, monkeypatch):
    monkeypatch.setattr(session, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(session, "JOIN_SECONDS", 0.1)
    released = threading.Event()
    monkeypatch.setattr(GpuDecoder, "finish", lambda self: released.wait(20))
    with pytest.raises(RuntimeError, match="DALI has not delivered a chunk"):
        take(loader_of(vp9_videos, global_batch=4, clip_timeout_seconds=1.0), 1)
    released.set()


@pytest.mark.slow
def test_every_broken_real_file_is_named_and_none_stops_the_run(real_videos):
    manifest = read_manifest(real_videos / "real" / "edge")
    num_videos = len(manifest)
    clip = ClipSection(num_frames=NUM_FRAMES, stride=2, height=HEIGHT, width=WIDTH)
    sampler = ClipSampler(manifest, recipe_clip=clip, num_frames=NUM_FRAMES, global_batch=num_videos, seed=0)
    (batch,) = take(ClipLoader(sampler, BatchSplit(0, 1, num_videos), size=(HEIGHT, WIDTH), device=CPU), 1)
    named = {Path(bad.path).name for bad in batch.bad}
    assert {"audio_only.mp4", "encrypted.webm", "invalid_bitstream.webm"} <= named
    # The tail of one file is corrupt: whether the clip meets it depends on the draw.
    assert named <= {"audio_only.mp4", "encrypted.webm", "invalid_bitstream.webm", "corrupted_tail.mp4"}
    assert int((~batch.valid_B).sum()) == len(named)


# --- The route of encoded files, here with the codecs that DALI decodes on a CPU


@pytest.fixture
def vp9_videos(write_video, tmp_path) -> list[str]:
    sizes = [(144, 160), (128, 176), (160, 128), (144, 160)]
    return [
        str(write_video(tmp_path / f"{number}.webm", codec="libvpx-vp9", num_frames=24, height=height, width=width))
        for number, (height, width) in enumerate(sizes)
    ]


@pytest.fixture
def device_decodes_vp9(monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "device_codecs", lambda device: VP9)


def test_files_that_dali_decodes_give_the_frames_that_pyav_decodes(vp9_videos, write_video, tmp_path, monkeypatch):
    # one of them stays with PyAV
    paths = [*vp9_videos, str(write_video(tmp_path / "other.mp4", num_frames=24))]
    by_pyav = take(loader_of(paths, global_batch=5), 2)
    monkeypatch.setattr(pipeline, "device_codecs", lambda device: VP9)
    asked = []
    start = GpuDecoder.start
    monkeypatch.setattr(GpuDecoder, "start", lambda self, clips: (asked.append(clips), start(self, clips))[1])
    by_dali = take(loader_of(paths, global_batch=5), 2)
    assert {clip.codec for clips in asked for clip in clips} == {"vp9"}
    for one, other in zip(by_pyav, by_dali, strict=True):
        assert_alike(one, other)
    assert "NVDEC decodes" in loader_of(paths, global_batch=5).describe()


def test_whole_frames_that_dali_decodes_are_augmented_as_those_that_pyav_decodes(vp9_videos, write_video, tmp_path, monkeypatch):
    """Frames of different sizes in one chunk; one file stays with PyAV."""
    paths = [*vp9_videos, str(write_video(tmp_path / "other.mp4", num_frames=24))]
    options = dict(global_batch=5, augments=True)
    by_pyav = take(loader_of(paths, **options), 6)
    monkeypatch.setattr(pipeline, "device_codecs", lambda device: VP9)
    asked = []
    start = GpuDecoder.start
    monkeypatch.setattr(GpuDecoder, "start", lambda self, clips: (asked.extend(clips), start(self, clips))[1])
    by_dali = take(loader_of(paths, **options), 6)
    used = {operation.name for clip in asked for operation in clip.augmentation.operations}
    assert len(used) > 8 and any(not clip.augmentation.operations for clip in asked)
    assert len({clip.augmentation.frame for clip in asked}) == 3
    differences = []
    for one, other in zip(by_pyav, by_dali, strict=True):
        assert one.paths == other.paths and torch.equal(one.seed_B, other.seed_B)
        difference_BT = (one.frames_BTHWC.float() - other.frames_BTHWC.float()).abs().flatten(2).mean(2)
        differences.append(difference_BT.flatten())
    # Colours that differ by a level or two before a threshold or an equalization differ by more
    # after it.
    differences = torch.cat(differences)
    assert differences.median() < 3 and differences.max() < 40 and (differences > 12).float().mean() < 0.1, differences


def test_a_chunk_that_the_device_refuses_goes_through_pyav(vp9_videos, device_decodes_vp9, faulty, monkeypatch, caplog):
    by_dali = take(loader_of(vp9_videos, global_batch=4), 5)
    # DALI gets rubbish while PyAV reads the sound file; with chunks of one clip, many are in flight
    # when the first fails.
    monkeypatch.setattr(batching, "MAX_CHUNK_CLIPS", 1)
    faulty(backwards=tuple(vp9_videos))
    by_pyav = take(loader_of(vp9_videos, global_batch=4), 5)
    for one, other in zip(by_dali, by_pyav, strict=True):
        assert_alike(one, other)
    refused = {record.args[0] for record in caplog.records if "refused %s" in record.msg}
    assert refused and refused <= set(vp9_videos)
    assert "vp9 goes to PyAV from now on" in caplog.text


def test_a_file_that_neither_can_decode_is_named(vp9_videos, device_decodes_vp9, faulty):
    faulty(backwards=(vp9_videos[1],), unreadable=(vp9_videos[1],))
    (batch,) = take(loader_of(vp9_videos, global_batch=4), 1)
    assert [(bad.path, bad.reason) for bad in batch.bad] == [(vp9_videos[1], "no decoder can do it")]
    assert int((~batch.valid_B).sum()) == 1 and vp9_videos[1] not in batch.paths


def test_the_decoder_fails_rather_than_make_frames_up(vp9_videos):
    graph = GpuDecoder(size=(HEIGHT, WIDTH), device=CPU)
    encoded = np.fromfile(vp9_videos[0], np.uint8)
    region = Region((0, 0, 144, 160), False)
    graph.start([EncodedClip(encoded, np.int32([0, 24]), region, "vp9")])
    with pytest.raises(RuntimeError):
        graph.finish()
    graph.start([EncodedClip(encoded, np.int32([0, 23]), region, "vp9")])  # and lives on
    assert graph.finish().shape == (1, 2, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("whole_frames", [False, True])
def test_a_decoder_keeps_nothing_of_the_memory_of_the_clips_that_it_took_over(vp9_videos, whole_frames):
    """It is written again as soon as they are released."""
    operations = (ImageOperation("rotate", 20.0), ImageOperation("shear_x", 0.2))

    def decode(spoils):
        graph = GpuDecoder(size=(HEIGHT, WIDTH), device=CPU, whole_frames=whole_frames)
        augmentation = AugmentedCrop(operations, CropSpec(0.8, 0.9), frame=(144, 160), size=(HEIGHT, WIDTH))
        clip = EncodedClip(
            np.fromfile(vp9_videos[0], np.uint8), np.int32([0, 9]), Region((0, 0, 144, 160), False), "vp9", augmentation
        )
        pickled, large = pack(clip)
        memory = [bytearray(buffer.raw()) for buffer in large]
        graph.start([pickle.loads(pickled, buffers=memory)])
        for buffer in memory if spoils else ():
            buffer[:] = bytes(len(buffer))
        return torch.stack(list(graph.finish()))

    assert len(pack(AugmentedCrop(operations, CropSpec(), frame=(144, 160), size=(HEIGHT, WIDTH)))[1]) > 1
    assert torch.equal(decode(spoils=False), decode(spoils=True))


@pytest.mark.parametrize("decoder", ["mixed", "cpu"])
def test_both_graphs_can_be_described_without_a_gpu(decoder):
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import Pipeline

    graphs = {}
    for name in ("files", "crops"):
        graph = Pipeline(batch_size=2, num_threads=1, device_id=None, exec_dynamic=True)
        with graph:
            video = dali.decode_files(decoder) if name == "files" else dali.decode_crops(decoder, size=(32, 48))
            graph.set_outputs(video)
        graphs[name] = graph.serialize()
    assert (b"start" in graphs["crops"], b"start" in graphs["files"]) == (True, False)
    assert all(b"pad_mode" in text and decoder.encode() in text for text in graphs.values())


def test_only_plain_upright_video_goes_to_the_device(vp9_videos, videos, write_video, tmp_path):
    def decodable(path) -> bool:
        return nvdec_support.device_can_decode(reader.index_video(str(path)))

    assert decodable(vp9_videos[0])
    assert not decodable(videos[1])  # VP9 below the smallest picture
    assert decodable(write_video(tmp_path / "a.mp4"))
    # time stamps that cannot be trusted
    assert not decodable(write_video(tmp_path / "b.avi", b_frames=2))
    assert not decodable(write_video(tmp_path / "c.mp4", pixel_format="yuv444p"))


# --- Beginning and ending


def test_sizes_that_do_not_fit_are_refused_at_once(videos):
    with pytest.raises(ValueError, match="the global batch is 6"):
        loader_of(videos, world_size=4)
    with pytest.raises(ValueError, match="DALI pipelines is between 1 and 16"):
        loader_of(videos, num_graphs=99)


def test_describe_says_in_one_line_what_decodes_where(videos):
    assert loader_of(videos).describe() == "PyAV decodes, crops and scales to 32x48 on 2 processes; DALI is not used on a CPU"


def count_helpers() -> tuple[int, int]:
    """Threads of loaders in this process, and reading processes."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("mats-")]
    forks_them = template.get_template()._process.pid
    parents = [path.read_text().rpartition(")")[2].split()[1] for path in Path("/proc").glob("[0-9]*/stat")]
    return len(threads), parents.count(str(forks_them))


def assert_helpers(num_threads: int, num_processes: int) -> None:
    """A process that was killed may be listed until it is waited for."""
    deadline = time.monotonic() + 60
    while count_helpers() != (num_threads, num_processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert count_helpers() == (num_threads, num_processes)


def test_threads_and_processes_end_with_the_loader_or_the_iterator(videos):
    with loader_of(videos) as loader:
        batches = loader.micro_batches(0)
        next(batches)
        assert_helpers(2, 2)
        restarted = loader.micro_batches(5)  # a new iterator ends the one before
        next(restarted)
        assert_helpers(2, 2)
        restarted.close()
        assert_helpers(0, 0)
        next(loader.micro_batches(0))
    assert_helpers(0, 0)


def test_reading_uses_little_of_the_training_process(write_video, tmp_path):
    """Its Python is what training must not wait for: a fifth of a clip's time when threads read."""
    paths = [str(write_video(tmp_path / f"{number}.mp4", num_frames=40, height=240, width=320)) for number in range(4)]
    clip = ClipSection(num_frames=16, stride=2, height=224, width=224)
    sampler = ClipSampler(manifest_of(paths), recipe_clip=clip, num_frames=16, global_batch=4, seed=3)
    ahead = ClipPrefetcher(reader.ClipReader((224, 224)).read, spec_of=sampler.spec, num_workers=1, timeout_seconds=60.0)
    try:
        for request in ahead.ask_all(range(4)):  # processes start, files are indexed
            ahead.wait(request)
            ahead.release(request)
        clock = time.pthread_getcpuclockid(ahead._thread.ident)
        here, there = time.clock_gettime(clock), cpu_ticks(ahead._pool.readers[0].process)
        for request in ahead.ask_all(range(4, 64)):
            ahead.wait(request)
            ahead.release(request)
        here, there = time.clock_gettime(clock) - here, cpu_ticks(ahead._pool.readers[0].process) - there
    finally:
        ahead.close()
    # 1 to 3% for ordinary clips, all that is done without the interpreter's lock included
    assert here < 0.12 * there / os.sysconf("SC_CLK_TCK"), (here, there)


def cpu_ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_closing_lets_go_of_the_graphs_at_once(vp9_videos, device_decodes_vp9, monkeypatch, num_workers):
    graphs = []
    real = GpuDecoder.__init__
    monkeypatch.setattr(GpuDecoder, "__init__", lambda self, **sizes: (graphs.append(weakref.ref(self)), real(self, **sizes))[1])
    gc.disable()
    try:
        with loader_of(vp9_videos, global_batch=4, num_workers=num_workers) as loader:
            batches = loader.micro_batches(0)
            next(batches)
            assert any(graph() is not None for graph in graphs)
        assert all(graph() is None for graph in graphs)
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("closes", [True, False])
def test_the_interpreter_ends_without_waiting(videos, closes):
    """Also when nobody closed the loader and a read hangs."""
    code = f"""
        import sys, time
        from itertools import islice
        sys.path[:0] = {[str(Path(__file__).parents[3])]!r}
        import functools
        import tests.data.loading.test_loader as t
        if not {closes}:
            t.batching.ClipReader = functools.partial(t.FaultyReader, hangs=({videos!r}[0],))
        loader = t.loader_of({videos!r}, global_batch=1)
        iterator = loader.micro_batches(0)
        next(iterator)
        if {closes}:
            loader.close()
        print("done", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "done\n", run.stderr.read()
        try:
            assert run.wait(30) == 0  # what comes before depends on the machine: it imports torch
        finally:
            run.kill()
        assert run.stderr.read() == ""


def test_a_cpu_needs_no_dali(videos, monkeypatch):
    """Neither to import the pipeline nor to run it."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # whoever imports it gets an ImportError
    with pytest.raises(ImportError):
        import nvidia.dali  # noqa: F401
    spec = importlib.util.spec_from_file_location("pipeline_without_dali", pipeline.__file__)
    without_dali = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, without_dali)
    spec.loader.exec_module(without_dali)
    monkeypatch.setattr(sys.modules[__name__], "ClipLoader", without_dali.ClipLoader)
    batches = take(loader_of(videos), 2)
    assert [int(batch.valid_B.sum()) for batch in batches] == [6, 6]
