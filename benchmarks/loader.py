"""Reading clips on a CPU, side by side: this project, decord, torchcodec, and PyAV used plainly, on
the same clips in one run.

    python benchmarks/loader.py [--videos DIR] [--clips 5] [--rounds 5] [--workers 1 2] [--out DIR]

From up to eight videos it makes four sets of files (H.264 with a keyframe every 250 and every 12
frames, MPEG-4 as UCF101 has it, and this project's training copies), takes the same clips of 16
frames at stride 4, with the same crops, for all readers, and measures the CPU time of each clip on
one thread, readers in turn, the best of the rounds: from the file to RGB frames, and from the file
to 224 x 224 crops, which the others' users make with torchvision's antialiased resize of uint8.
Then loaders by the clock, with one and two worker processes (the others' under torch's DataLoader),
what they cost the training process, and how long a training loop waits for the loader. Medians;
trust the ratios, which come from one run. Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import numpy as np
import torch

from benchmarks.loader_page import COPIES, MODEL_FRACTION, Measured, Speed, write_results
from benchmarks.loader_sets import choose_videos, make_sets
from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import CropSpec
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.clip_frames import ClipCropper
from mats_ds.data.video.decode import decode_frames, visit_frames
from mats_ds.data.video.indexing import index_video

NUM_FRAMES, STRIDE, SIDE = 16, 4, 224
Reader = Callable[[str, list[int]], np.ndarray]


def read_with_mats(path: str, numbers: list[int]) -> np.ndarray:
    return decode_frames(path, np.array(numbers))


def read_crop_with_mats(path: str, numbers: list[int], crop: CropSpec) -> np.ndarray:
    """What the reading processes of the loader do for a clip."""
    index, numbers_T = index_video(path), np.array(numbers)
    cropper = ClipCropper(numbers_T, crop, index=index, size=(SIDE, SIDE))
    visit_frames(path, numbers_T, index=index, take=cropper.take)
    return cropper.frames()


def crop_with_torchvision(frames_THWC: np.ndarray, crop: CropSpec) -> np.ndarray:
    """Crop, scale and flip as users of the other readers do best on a CPU: uint8, antialiased, all
    frames at once."""
    from torchvision.transforms.v2 import functional as transforms

    frames = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)
    frames = transforms.resized_crop(frames, *crop.box(*frames.shape[-2:]), [SIDE, SIDE], antialias=True)
    return transforms.horizontal_flip(frames) if crop.flip else frames


def read_plainly(path: str, numbers: list[int]) -> np.ndarray:
    """PyAV as its documentation shows it: seek to the keyframe before, decode, `to_ndarray`."""
    wanted, frames = set(numbers), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rate = stream.average_rate
        begin = stream.start_time or 0
        if not path.endswith(".avi"):  # their time stamps cannot be trusted
            container.seek(begin + int(numbers[0] / rate / stream.time_base), stream=stream, backward=True)
        number = -1
        for frame in container.decode(stream):
            number = number + 1 if path.endswith(".avi") else round((frame.pts - begin) * stream.time_base * rate)
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number >= numbers[-1]:
                break
    return np.stack(frames)


def peers() -> tuple[dict[str, Reader], list[str]]:
    """Readers of the packages that are installed, and which ones are missing and why."""
    installed: dict[str, Reader] = {}
    missing = []
    try:
        import decord

        installed["decord"] = lambda path, numbers: decord.VideoReader(path, num_threads=1).get_batch(numbers).asnumpy()
    except (ImportError, OSError) as error:
        missing.append(f"decord ({type(error).__name__}: {str(error).splitlines()[0]})")
    try:
        from torchcodec.decoders import VideoDecoder

        installed["torchcodec"] = lambda path, numbers: (
            VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC").get_frames_at(numbers).data.numpy()
        )
    except (ImportError, OSError, RuntimeError) as error:
        missing.append(f"torchcodec ({type(error).__name__}: {str(error).strip().splitlines()[0]})")
    return installed, missing


def sample_clips(paths: list[str], clips: int, seed: int) -> list[tuple[str, list[int], CropSpec]]:
    """The same relative beginnings and crops in every set, since the sets hold the same videos."""
    rng = random.Random(seed)
    scales = ClipSection().crop_scales
    clips_of_set = []
    for path in paths:
        length = index_video(path).num_frames
        stride = min(STRIDE, max(1, length // NUM_FRAMES))
        for _ in range(clips):
            begin = int(rng.random() * max(1, length - NUM_FRAMES * stride))
            numbers = [min(length - 1, begin + step * stride) for step in range(NUM_FRAMES)]
            crop = CropSpec(rng.choice(scales), rng.choice(scales), rng.random(), rng.random(), rng.random() < 0.5)
            clips_of_set.append((path, numbers, crop))
    return clips_of_set


def measure_readers(
    sets: dict[str, list[str]], readers: dict[str, Reader], *, clips: int, rounds: int
) -> tuple[dict[str, dict], dict[str, dict]]:
    """{set: {reader: CPU milliseconds of each clip, the best of the rounds}}, decoded only and down
    to the crop.

    Readers take turns clip by clip, so that whatever else the machine does meets all of them.
    """
    decoded: dict[str, dict] = {}
    cropped: dict[str, dict] = {}
    for name, paths in sets.items():
        clips_of_set = sample_clips(paths, clips, seed=1)
        decoded[name] = {reader: [float("inf")] * len(clips_of_set) for reader in readers}
        cropped[name] = {reader: [float("inf")] * len(clips_of_set) for reader in readers}
        for _ in range(rounds):
            for index, (path, numbers, crop) in enumerate(clips_of_set):
                for reader, read in readers.items():
                    begin = time.process_time()
                    frames_THWC = read(path, numbers)
                    middle = time.process_time()
                    assert frames_THWC.shape == (NUM_FRAMES, *frames_THWC.shape[1:3], 3), (reader, frames_THWC.shape)
                    if reader == "mats_ds":
                        restart = time.process_time()
                        read_crop_with_mats(path, numbers, crop)
                        total = time.process_time() - restart
                    else:
                        crop_with_torchvision(frames_THWC, crop)
                        total = time.process_time() - begin
                    decoded[name][reader][index] = min(decoded[name][reader][index], 1e3 * (middle - begin))
                    cropped[name][reader][index] = min(cropped[name][reader][index], 1e3 * total)
    return decoded, cropped


class PeerClips(torch.utils.data.Dataset):
    """Clips as VideoMAE's data set reads them: a peer's reader, then a random resized crop and a
    flip of all frames."""

    def __init__(self, paths: list[str], read: Reader, num_clips: int) -> None:
        self.paths, self.read, self.num_clips = paths, read, num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, number: int) -> torch.Tensor:
        torch.set_num_threads(1)
        [(path, numbers, crop)] = sample_clips([self.paths[number % len(self.paths)]], 1, seed=number)
        return crop_with_torchvision(self.read(path, numbers), crop)


def loader_of(paths: list[str], *, workers: int, batch: int) -> ClipLoader:
    """This project's loader over a list of videos, for one rank on the CPU."""
    nan_S = np.full(len(paths), np.nan)
    manifest = Manifest(paths, np.zeros(len(paths), np.int64), nan_S, nan_S.copy(), "benchmark")
    section = ClipSection(num_frames=NUM_FRAMES, stride=STRIDE, height=SIDE, width=SIDE)
    sampler = ClipSampler(manifest, recipe_clip=section, num_frames=NUM_FRAMES, global_batch=batch, seed=0)
    options = dict(size=(SIDE, SIDE), device=torch.device("cpu"), options=ReadOptions(workers))
    return ClipLoader(sampler, BatchSplit(0, 1, batch), **options)


def measure_loaders(
    sets: dict[str, list[str]], readers: dict[str, Reader], *, workers: list[int], num_clips: int, rounds: int
) -> dict[str, dict[str, list[Speed]]]:
    """{set: {loader: its best Speed with each number of workers}}, from file to crop by the clock,
    all of them in turn in each round."""
    batch = 8
    speeds: dict[str, dict[str, list[Speed]]] = {}
    for name, paths in sets.items():
        best: dict[str, dict[int, Speed]] = {}
        for _ in range(rounds):
            for number in workers:
                with loader_of(paths, workers=number, batch=batch) as loader:
                    _note(best, "mats_ds", number, _speed(loader.micro_batches(0), num_clips // batch, batch))
                for peer in ("decord", "torchcodec"):
                    if peer in readers:
                        clips = PeerClips(paths, readers[peer], num_clips + 2 * batch)
                        loader = torch.utils.data.DataLoader(clips, batch_size=batch, num_workers=number, prefetch_factor=2)
                        _note(best, f"{peer} + DataLoader", number, _speed(iter(loader), num_clips // batch, batch))
        speeds[name] = {loader: [row[number] for number in workers] for loader, row in best.items()}
    return speeds


def _note(best: dict[str, dict[int, Speed]], loader: str, workers: int, speed: Speed) -> None:
    row = best.setdefault(loader, {})
    row[workers] = max(speed, row.get(workers, speed), key=lambda one: one.clips_per_second)


def _speed(batches, num_batches: int, batch: int) -> Speed:
    """Clips a second, after a first batch that is not counted (what was read ahead by then is taken
    first), and what this process itself computed for a clip."""
    next(batches)
    begin, computed = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(batches)
    clips = num_batches * batch
    return Speed(clips / (time.perf_counter() - begin), 1e3 * (time.process_time() - computed) / clips)


def measure_waiting(paths: list[str], *, workers: int, num_batches: int) -> dict[str, float]:
    """How long a loop waits for the loader whose model takes clips at MODEL_FRACTION of the rate
    that the loader can deliver.

    The model is a pause of fixed length: it uses no core, as a model on a GPU.
    """
    batch = 8
    with loader_of(paths, workers=workers, batch=batch) as loader:
        rate = _speed(loader.micro_batches(0), num_batches, batch).clips_per_second
        step_seconds = batch / (MODEL_FRACTION * rate)
        batches = loader.micro_batches(0)
        next(batches)
        waited_seconds, begin = 0.0, time.perf_counter()
        for _ in range(num_batches):
            time.sleep(step_seconds)
            before = time.perf_counter()
            next(batches)
            waited_seconds += time.perf_counter() - before
        fraction = waited_seconds / (time.perf_counter() - begin)
    return {"loader clips/s": rate, "model clips/s": MODEL_FRACTION * rate, "share of time spent waiting": fraction}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos to make the sets from (default: synthetic ones)")
    parser.add_argument("--clips", type=int, default=5, help="clips of each video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes of the loaders (default: 1 2)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    installed, missing = peers()
    readers: dict[str, Reader] = {"mats_ds": read_with_mats, "PyAV plainly": read_plainly, **installed}
    with tempfile.TemporaryDirectory() as folder:
        videos = choose_videos(arguments.videos, Path(folder))
        print(f"{len(videos)} videos; making four sets of them", flush=True)
        sets = make_sets(videos, Path(folder))
        num_bytes = {name: sum(Path(path).stat().st_size for path in paths) for name, paths in sets.items()}
        print("reading clips", flush=True)
        decoded, cropped = measure_readers(sets, readers, clips=arguments.clips, rounds=arguments.rounds)
        print("running loaders", flush=True)
        speeds = measure_loaders(sets, readers, workers=arguments.workers, num_clips=64, rounds=2)
        waiting = measure_waiting(sets[COPIES], workers=2, num_batches=40)
    source = f"--videos {arguments.videos.name}" if arguments.videos else "synthetic videos"
    options = f"{source}, {arguments.clips} clips a video, best of {arguments.rounds} rounds in turn"
    measured = Measured(decoded, cropped, arguments.workers, speeds, waiting, num_bytes, missing)
    page = write_results(arguments.out, measured, options=options)
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
