"""Reading clips on a CPU, side by side: this project, decord, torchcodec, and PyAV used plainly, on the same clips in one run.

    python benchmarks/loader.py [--videos DIR] [--clips 5] [--rounds 5] [--out benchmarks/results]

From up to eight videos it makes four sets of files (H.264 with a keyframe every 250 and every 12 frames, MPEG-4 as UCF101 has
it, and this project's training copies), draws the same clips of 16 frames at stride 4, with the same crops, for all readers, and
measures the CPU time of each clip on one thread, readers in turn, the best of the rounds: from the file to RGB frames, and from
the file to 224 x 224 crops, which the others' users make with torchvision's antialiased resize of uint8. Then whole loaders by
the clock, with one and two workers, and how long a training loop waits for the loader. Medians; trust the ratios, which come
from one run. Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from importlib import metadata
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import numpy as np
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import CropSpec
from mats_ds.core.storage.files import replace_file, write_text
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import VIDEO_EXTENSIONS, Manifest, read_manifest
from mats_ds.data.prepare.copying.transcode import transcode_file
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.video.clip_frames import ClipCropper
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import decode_frames, visit_frames
from mats_ds.data.video.indexing import index_video

NUM_FRAMES, STRIDE, SIDE = 16, 4, 224
MAX_VIDEOS, MIN_FRAMES, MAX_SIDE = 8, 100, 1280
HEIGHT, WIDTH = 256, 340
MODEL_SHARE = 0.8  # of the loader's measured rate: what the model of the waiting test takes
GOAL_SAME_FILES, GOAL_COPIES, GOAL_WAITING = 1.8, 5.8, 0.05
Reader = Callable[[str, list[int]], np.ndarray]


def read_with_mats(path: str, numbers: list[int]) -> np.ndarray:
    return decode_frames(path, np.array(numbers))


def read_crop_with_mats(path: str, numbers: list[int], crop: CropSpec) -> np.ndarray:
    """What the reading threads of the loader do for a clip."""
    index, numbers_T = index_video(path), np.array(numbers)
    cropper = ClipCropper(numbers_T, crop, index=index, size=(SIDE, SIDE))
    visit_frames(path, numbers_T, index=index, take=cropper.take)
    return cropper.frames()


def crop_with_torchvision(frames_THWC: np.ndarray, crop: CropSpec) -> np.ndarray:
    """Crop, scale and flip as users of the other readers do best on a CPU: uint8, antialiased, all frames at once."""
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
    found: dict[str, Reader] = {}
    missing = []
    try:
        import decord

        found["decord"] = lambda path, numbers: decord.VideoReader(path, num_threads=1).get_batch(numbers).asnumpy()
    except (ImportError, OSError) as error:
        missing.append(f"decord ({type(error).__name__}: {str(error).splitlines()[0]})")
    try:
        from torchcodec.decoders import VideoDecoder

        found["torchcodec"] = lambda path, numbers: (
            VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC").get_frames_at(numbers).data.numpy()
        )
    except (ImportError, OSError, RuntimeError) as error:
        missing.append(f"torchcodec ({type(error).__name__}: {str(error).strip().splitlines()[0]})")
    return found, missing


def choose_videos(folder: Path | None, scratch: Path) -> list[str]:
    """Up to eight readable videos that are long enough and of ordinary size; synthetic ones without a folder."""
    if folder is None:
        source = write_synthetic_set(scratch / "synthetic", num_videos=6, num_frames=320, height=HEIGHT, width=WIDTH)
        return read_manifest(source).paths
    chosen = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS):
        try:
            index = index_video(str(path))
        except UnreadableVideo:
            continue
        if index.num_frames >= MIN_FRAMES and max(index.upright_size) <= MAX_SIDE and index.orientation.is_plain:
            chosen.append(str(path))
    if not chosen:
        raise SystemExit(f"no video of at least {MIN_FRAMES} frames below {folder}")
    random.Random(0).shuffle(chosen)
    return sorted(chosen[:MAX_VIDEOS])


def encode(source: str, target: Path, *, codec: str, options: dict[str, str], gop: int) -> None:
    """`source` at 340 x 256, as data sets of this field are kept."""
    with av.open(source) as container, av.open(str(target), "w") as output:
        stream = output.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = gop
        if codec == "mpeg4":
            stream.codec_context.bit_rate = 900_000
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame.reformat(width=WIDTH, height=HEIGHT, format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())


ORIGINALS, COPIES = "H.264, GOP 250", "prepare.py transcode"


def make_sets(videos: list[str], scratch: Path) -> dict[str, list[str]]:
    """The four sets, by name."""
    kinds = {
        ORIGINALS: ("libx264", {"crf": "23", "preset": "medium"}, 250, "mp4"),
        "H.264, GOP 12": ("libx264", {"crf": "23", "preset": "medium", "x264-params": "open-gop=0"}, 12, "mp4"),
        "MPEG-4, GOP 12 (.avi)": ("mpeg4", {"bf": "2"}, 12, "avi"),
    }
    sets: dict[str, list[str]] = {}
    for place, (name, (codec, options, gop, suffix)) in enumerate(kinds.items()):
        sets[name] = []
        for number, video in enumerate(videos):
            target = scratch / f"{place}-{number}.{suffix}"
            encode(video, target, codec=codec, options=options, gop=gop)
            sets[name].append(str(target))
    copies = [scratch / f"copy-{number}.mp4" for number in range(len(videos))]
    for source, target in zip(sets[ORIGINALS], copies, strict=True):
        transcode_file(source, target)
    sets[COPIES] = [str(target) for target in copies]
    return sets


def draw_clips(paths: list[str], clips: int, seed: int) -> list[tuple[str, list[int], CropSpec]]:
    """The same relative places and crops in every set, since the sets hold the same videos."""
    draw = random.Random(seed)
    scales = ClipSection().crop_scales
    drawn = []
    for path in paths:
        length = index_video(path).num_frames
        stride = min(STRIDE, max(1, length // NUM_FRAMES))
        for _ in range(clips):
            begin = int(draw.random() * max(1, length - NUM_FRAMES * stride))
            numbers = [min(length - 1, begin + step * stride) for step in range(NUM_FRAMES)]
            crop = CropSpec(draw.choice(scales), draw.choice(scales), draw.random(), draw.random(), draw.random() < 0.5)
            drawn.append((path, numbers, crop))
    return drawn


def measure_readers(
    sets: dict[str, list[str]], readers: dict[str, Reader], *, clips: int, rounds: int
) -> tuple[dict[str, dict], dict[str, dict]]:
    """{set: {reader: CPU milliseconds of each clip, the best of the rounds}}, decoded only and down to the crop.

    Readers take turns clip by clip, so that whatever else the machine does meets all of them.
    """
    decoded: dict[str, dict] = {}
    cropped: dict[str, dict] = {}
    for name, paths in sets.items():
        drawn = draw_clips(paths, clips, seed=1)
        decoded[name] = {reader: [float("inf")] * len(drawn) for reader in readers}
        cropped[name] = {reader: [float("inf")] * len(drawn) for reader in readers}
        for _ in range(rounds):
            for place, (path, numbers, crop) in enumerate(drawn):
                for reader, read in readers.items():
                    begin = time.process_time()
                    frames_THWC = read(path, numbers)
                    middle = time.process_time()
                    assert frames_THWC.shape == (NUM_FRAMES, *frames_THWC.shape[1:3], 3), (reader, frames_THWC.shape)
                    if reader == "mats_ds":
                        restart = time.process_time()
                        read_crop_with_mats(path, numbers, crop)
                        whole = time.process_time() - restart
                    else:
                        crop_with_torchvision(frames_THWC, crop)
                        whole = time.process_time() - begin
                    decoded[name][reader][place] = min(decoded[name][reader][place], 1e3 * (middle - begin))
                    cropped[name][reader][place] = min(cropped[name][reader][place], 1e3 * whole)
    return decoded, cropped


class PeerClips(torch.utils.data.Dataset):
    """Clips as VideoMAE's data set reads them: a peer's reader, then a random resized crop and a flip of all frames."""

    def __init__(self, paths: list[str], read: Reader, num_clips: int) -> None:
        self.paths, self.read, self.num_clips = paths, read, num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, number: int) -> torch.Tensor:
        torch.set_num_threads(1)
        [(path, numbers, crop)] = draw_clips([self.paths[number % len(self.paths)]], 1, seed=number)
        return crop_with_torchvision(self.read(path, numbers), crop)


def loader_of(paths: list[str], *, workers: int, batch: int) -> ClipLoader:
    """This project's loader over a list of videos, for one rank on the CPU."""
    nan_S = np.full(len(paths), np.nan)
    manifest = Manifest(paths, np.zeros(len(paths), np.int64), nan_S, nan_S.copy(), "benchmark")
    section = ClipSection(num_frames=NUM_FRAMES, stride=STRIDE, height=SIDE, width=SIDE)
    sampler = ClipSampler(manifest, recipe_clip=section, num_frames=NUM_FRAMES, global_batch=batch, seed=0)
    options = dict(size=(SIDE, SIDE), device=torch.device("cpu"), options=ReadOptions(workers))
    return ClipLoader(sampler, BatchSplit(0, 1, batch), **options)


def clips_per_second(sets: dict[str, list[str]], readers: dict[str, Reader], *, num_clips: int) -> dict[str, dict[str, float]]:
    """{set: {loader: clips/s}} from file to crop by the clock, with 1 and 2 workers; the best of two runs in turn."""
    batch = 8
    speeds: dict[str, dict[str, float]] = {}
    for name, paths in sets.items():
        speeds[name] = {}
        for workers in (1, 2):
            for _ in range(2):
                with loader_of(paths, workers=workers, batch=batch) as loader:
                    _note(speeds[name], f"mats_ds, {workers}", _rate(loader.micro_batches(0), num_clips // batch, batch))
                for peer in ("decord", "torchcodec"):
                    if peer in readers:
                        clips = PeerClips(paths, readers[peer], num_clips + 2 * batch)
                        loader = torch.utils.data.DataLoader(clips, batch_size=batch, num_workers=workers, prefetch_factor=2)
                        _note(speeds[name], f"{peer} + DataLoader, {workers}", _rate(iter(loader), num_clips // batch, batch))
    return speeds


def _note(row: dict[str, float], name: str, speed: float) -> None:
    row[name] = max(speed, row.get(name, 0.0))


def _rate(batches, num_batches: int, batch: int) -> float:
    """Clips a second, after a first batch that is not counted; what was read ahead by then is taken first."""
    next(batches)
    begin = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    return num_batches * batch / (time.perf_counter() - begin)


def measure_waiting(paths: list[str], *, workers: int, num_batches: int) -> dict[str, float]:
    """How long a loop waits for the loader whose model takes clips at MODEL_SHARE of the rate that the loader can deliver.

    The model is a pause of fixed length: it uses no core, as a model on a GPU.
    """
    batch = 8
    with loader_of(paths, workers=workers, batch=batch) as loader:
        rate = _rate(loader.micro_batches(0), num_batches, batch)
        step_seconds = batch / (MODEL_SHARE * rate)
        batches = loader.micro_batches(0)
        next(batches)
        waited_seconds, begin = 0.0, time.perf_counter()
        for _ in range(num_batches):
            time.sleep(step_seconds)
            before = time.perf_counter()
            next(batches)
            waited_seconds += time.perf_counter() - before
        share = waited_seconds / (time.perf_counter() - begin)
    return {"loader clips/s": rate, "model clips/s": MODEL_SHARE * rate, "share of time spent waiting": share}


def medians_of(times: dict[str, dict]) -> dict[str, dict[str, float]]:
    return {name: {reader: statistics.median(row) for reader, row in by.items()} for name, by in times.items()}


def table_of(times: dict[str, dict]) -> list[str]:
    """Medians by set and reader; decord's time divided by ours: of the medians, of all clips together, median clip by clip."""
    readers = list(next(iter(times.values())))
    lines = [
        "| files | " + " | ".join(readers) + " | decord / mats_ds | all clips | clip by clip |",
        "|---" * (len(readers) + 4) + "|",
    ]
    for (name, row), by in zip(medians_of(times).items(), times.values(), strict=True):
        ratios = ["-"] * 3
        if "decord" in row:
            single = statistics.median(peer / ours for peer, ours in zip(by["decord"], by["mats_ds"], strict=True))
            together = sum(by["decord"]) / sum(by["mats_ds"])
            ratios = [f"{ratio:.2f}" for ratio in (row["decord"] / row["mats_ds"], together, single)]
        lines.append(f"| {name} | " + " | ".join([*(f"{row[reader]:.1f}" for reader in readers), *ratios]) + " |")
    return lines


def judge(decoded: dict, cropped: dict, waiting: dict[str, float]) -> list[str]:
    """The goals, and what was measured for all clips together, as an epoch meets them."""
    lines = []
    if "decord" in next(iter(cropped.values())):
        for title, times in (("to crops", cropped), ("decoding alone", decoded)):
            for name, by in times.items():
                if name != COPIES:
                    ratio = sum(by["decord"]) / sum(by["mats_ds"])
                    lines.append(_verdict(f"{name}, same files, {title}", ratio, GOAL_SAME_FILES))
            ratio = sum(times[ORIGINALS]["decord"]) / sum(times[COPIES]["mats_ds"])
            lines.append(_verdict(f"decord on the originals (GOP 250), mats_ds on training copies, {title}", ratio, GOAL_COPIES))
    share = waiting["share of time spent waiting"]
    met = "met" if share < GOAL_WAITING else "missed"
    lines.append(
        f"- loop waits for data: {100 * share:.1f}% of the time with a model that takes {MODEL_SHARE:.0%} of the "
        f"{waiting['loader clips/s']:.0f} clips/s that the loader delivers (goal: less than {GOAL_WAITING:.0%}): {met}"
    )
    return lines


def _verdict(what: str, ratio: float, goal: float) -> str:
    return f"- {what}: {ratio:.2f} x less CPU time than decord (goal: {goal} x): {'met' if ratio >= goal else 'missed'}"


def write_results(
    out: Path,
    *,
    decoded: dict,
    cropped: dict,
    speeds: dict,
    waiting: dict[str, float],
    num_bytes: dict[str, int],
    missing: list[str],
    arguments: argparse.Namespace,
) -> Path:
    """A Markdown page, the figures as JSON, and a plot."""
    out.mkdir(parents=True, exist_ok=True)
    stem = f"loader-{time.strftime('%Y-%m-%d')}"
    source = f"--videos {arguments.videos.name}" if arguments.videos else "synthetic videos"
    packages = ("av", "decord", "torchcodec", "torch", "torchvision")
    lines = [
        f"# Reading clips on a CPU, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/loader.py` ({source}, {arguments.clips} clips a video, best of {arguments.rounds} rounds in turn, "
        f"medians over clips); {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in packages)
        + ". Clips of 16 frames at stride 4, the same clips and crops for all readers. The page is written by the program.",
        "",
        "## Goals",
        "",
        *judge(decoded, cropped, waiting),
        "",
        "## CPU milliseconds from the file to 224 x 224 crops (one thread; clips/s per core are 1000 divided by it)",
        "",
        *table_of(cropped),
        "",
        "## CPU milliseconds from the file to RGB frames of 340 x 256 (one thread)",
        "",
        *table_of(decoded),
        "",
        "Bytes of the sets, divided by those of the originals: "
        + ", ".join(f"{name} {count / num_bytes[ORIGINALS]:.2f}" for name, count in num_bytes.items())
        + ".",
        "",
        "## Clips per second from file to 224 x 224 crops, by number of workers (wall clock)",
        "",
    ]
    loaders = list(next(iter(speeds.values())))
    lines += ["| files | " + " | ".join(loaders) + " |", "|---" * (len(loaders) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[loader]:.1f}" for loader in loaders) + " |" for name, row in speeds.items()]
    if missing:
        lines += ["", "Left out: " + "; ".join(missing) + "."]
    lines += ["", f"![CPU time of a clip]({stem}.svg)", ""]
    page = out / f"{stem}.md"
    write_text(page, "\n".join(lines))
    figures = {
        "cpu_ms_to_crops": medians_of(cropped),
        "cpu_ms_to_frames": medians_of(decoded),
        "clips_per_second": speeds,
        "waiting": waiting,
        "bytes": num_bytes,
    }
    write_text(out / f"{stem}.json", json.dumps(figures, indent=1) + "\n")
    draw_plot(medians_of(cropped), out / f"{stem}.svg")
    return page


def draw_plot(medians: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    readers = list(next(iter(medians.values())))
    width = 0.8 / len(readers)
    for place, reader in enumerate(readers):
        heights = [row[reader] for row in medians.values()]
        axis.bar(
            [number + (place - (len(readers) - 1) / 2) * width for number in range(len(medians))], heights, width, label=reader
        )
    axis.set_xticks(range(len(medians)), list(medians))
    axis.set_ylabel("CPU ms from file to crops (less is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    with replace_file(path) as aside:
        figure.savefig(aside, format="svg")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos to make the sets from (default: synthetic ones)")
    parser.add_argument("--clips", type=int, default=5, help="clips of each video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, missing = peers()
    readers: dict[str, Reader] = {"mats_ds": read_with_mats, "PyAV plainly": read_plainly, **found}
    with tempfile.TemporaryDirectory() as folder:
        videos = choose_videos(arguments.videos, Path(folder))
        print(f"{len(videos)} videos; making four sets of them", flush=True)
        sets = make_sets(videos, Path(folder))
        num_bytes = {name: sum(Path(path).stat().st_size for path in paths) for name, paths in sets.items()}
        print("reading clips", flush=True)
        decoded, cropped = measure_readers(sets, readers, clips=arguments.clips, rounds=arguments.rounds)
        print("running whole loaders", flush=True)
        speeds = clips_per_second(sets, readers, num_clips=64)
        waiting = measure_waiting(sets[COPIES], workers=2, num_batches=40)
    figures = dict(decoded=decoded, cropped=cropped, speeds=speeds, waiting=waiting, num_bytes=num_bytes)
    page = write_results(arguments.out, **figures, missing=missing, arguments=arguments)
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
