"""Reading clips on a CPU, side by side: this project, decord, torchcodec, and PyAV used plainly, on the same clips in one run.

    python benchmarks/loader.py [--videos DIR] [--clips 5] [--rounds 3] [--out benchmarks/results]

From up to eight videos it makes four sets of files (H.264 with a keyframe every 250 and every 12 frames, MPEG-4 as UCF101 has
it, and this project's training copies), draws the same clips of 16 frames at stride 4 for all readers, and measures the CPU time
of each clip, readers in turn, on one thread. The second part measures whole loaders, from file to 224 x 224 crops, with one and
with two workers. Medians; trust the ratios, which come from one run. Peers that are not installed are left out and named.
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

from mats_ds.config import ClipSection
from mats_ds.data.decode import decode_frames
from mats_ds.data.manifest import VIDEO_EXTENSIONS, Manifest, read_manifest
from mats_ds.data.pipeline import ClipLoader
from mats_ds.data.probe import UnreadableVideo, index_video
from mats_ds.data.sampler import ClipSampler
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.transcode import transcode_file

NUM_FRAMES, STRIDE, SIDE = 16, 4, 224
MAX_VIDEOS, MIN_FRAMES, MAX_SIDE = 8, 100, 1280
HEIGHT, WIDTH = 256, 340
Reader = Callable[[str, list[int]], np.ndarray]


def read_with_mats(path: str, numbers: list[int]) -> np.ndarray:
    return decode_frames(path, np.array(numbers))


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
        if index.num_frames >= MIN_FRAMES and max(index.upright_size) <= MAX_SIDE and index.rotation == 0:
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


def make_sets(videos: list[str], scratch: Path) -> dict[str, list[str]]:
    """The four sets, by name."""
    kinds = {
        "H.264, GOP 250": ("libx264", {"crf": "23", "preset": "medium"}, 250, "mp4"),
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
    for source, target in zip(sets["H.264, GOP 250"], copies, strict=True):
        transcode_file(source, target)
    sets["prepare.py transcode"] = [str(target) for target in copies]
    return sets


def draw_clips(paths: list[str], clips: int, seed: int) -> list[tuple[str, list[int]]]:
    """The same relative places in every set, since the sets hold the same videos."""
    draw = random.Random(seed)
    drawn = []
    for path in paths:
        length = index_video(path).num_frames
        stride = min(STRIDE, max(1, length // NUM_FRAMES))
        for _ in range(clips):
            begin = int(draw.random() * max(1, length - NUM_FRAMES * stride))
            drawn.append((path, [min(length - 1, begin + step * stride) for step in range(NUM_FRAMES)]))
    return drawn


def measure_readers(sets: dict[str, list[str]], readers: dict[str, Reader], *, clips: int, rounds: int) -> dict[str, dict]:
    """{set: {reader: CPU milliseconds of each clip, the best of the rounds}}; readers take turns clip by clip."""
    times: dict[str, dict] = {}
    for name, paths in sets.items():
        drawn = draw_clips(paths, clips, seed=1)
        best = {reader: [float("inf")] * len(drawn) for reader in readers}
        for _ in range(rounds):
            for place, (path, numbers) in enumerate(drawn):
                for reader, read in readers.items():
                    begin = time.process_time()
                    frames_THWC = read(path, numbers)
                    best[reader][place] = min(best[reader][place], 1e3 * (time.process_time() - begin))
                    assert frames_THWC.shape == (NUM_FRAMES, *frames_THWC.shape[1:3], 3), (reader, frames_THWC.shape)
        times[name] = best
    return times


class PeerClips(torch.utils.data.Dataset):
    """Clips as VideoMAE's data set reads them: decord, then a random resized crop and a flip of all frames."""

    def __init__(self, paths: list[str], read: Reader, num_clips: int) -> None:
        self.paths, self.read, self.num_clips = paths, read, num_clips

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, number: int) -> torch.Tensor:
        from torchvision.transforms.v2 import functional as transforms

        torch.set_num_threads(1)
        [(_, numbers)] = draw_clips([self.paths[number % len(self.paths)]], 1, seed=number)
        frames = torch.from_numpy(self.read(self.paths[number % len(self.paths)], numbers)).permute(0, 3, 1, 2)
        scale = random.Random(number).choice(ClipSection().crop_scales)
        side = int(min(frames.shape[-2:]) * scale)
        frames = transforms.resized_crop(frames, 0, 0, side, side, [SIDE, SIDE], antialias=True)
        return transforms.horizontal_flip(frames) if number % 2 else frames


def clips_per_second(sets: dict[str, list[str]], readers: dict[str, Reader], *, num_clips: int) -> dict[str, dict[str, float]]:
    """{set: {loader: clips/s}} from file to crop, with 1 and 2 workers."""
    batch = 8
    speeds: dict[str, dict[str, float]] = {}
    for name, paths in sets.items():
        speeds[name] = {}
        nan_S = np.full(len(paths), np.nan)
        manifest = Manifest(paths, np.zeros(len(paths), np.int64), nan_S, nan_S.copy(), name)
        section = ClipSection(num_frames=NUM_FRAMES, stride=STRIDE, height=SIDE, width=SIDE)
        for workers in (1, 2):
            sampler = ClipSampler(manifest, recipe_clip=section, num_frames=NUM_FRAMES, global_batch=batch, seed=0)
            place = dict(rank=0, world_size=1, micro_batch=batch, accumulation=1, device=torch.device("cpu"))
            with ClipLoader(sampler, **place, height=SIDE, width=SIDE, num_workers=workers) as loader:
                batches = loader.micro_batches(0)
                next(batches)
                begin = time.perf_counter()
                for _ in range(num_clips // batch):
                    next(batches)
                speeds[name][f"mats_ds, {workers}"] = num_clips // batch * batch / (time.perf_counter() - begin)
            if "decord" in readers:
                clips = PeerClips(paths, readers["decord"], num_clips + batch)
                loader = torch.utils.data.DataLoader(clips, batch_size=batch, num_workers=workers, prefetch_factor=2)
                batches = iter(loader)
                next(batches)
                begin = time.perf_counter()
                taken = sum(len(clip_batch) for clip_batch in batches)
                speeds[name][f"decord + DataLoader, {workers}"] = taken / (time.perf_counter() - begin)
    return speeds


def write_results(out: Path, times: dict, speeds: dict, missing: list[str], arguments: argparse.Namespace) -> Path:
    """A Markdown page, the figures as JSON, and a plot."""
    out.mkdir(parents=True, exist_ok=True)
    stem = f"loader-{time.strftime('%Y-%m-%d')}"
    medians = {name: {reader: statistics.median(row) for reader, row in by.items()} for name, by in times.items()}
    readers = list(next(iter(medians.values())))
    source = f"--videos {arguments.videos.name}" if arguments.videos else "synthetic videos"
    lines = [
        f"# Reading clips on a CPU, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/loader.py` ({source}, {arguments.clips} clips a video, best of {arguments.rounds} rounds, medians "
        f"over clips); {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {_version(name)}" for name in ("av", "nvidia-dali-cuda130", "decord", "torchcodec", "torch")),
        "",
        "## CPU milliseconds to read a clip of 16 frames at stride 4 (one thread; RGB frames of 340 x 256)",
        "",
        "| files | " + " | ".join(readers) + " | decord / mats_ds |",
        "|---" * (len(readers) + 2) + "|",
    ]
    for name, row in medians.items():
        ratio = f"{row['decord'] / row['mats_ds']:.2f}" if "decord" in row else "-"
        lines.append(f"| {name} | " + " | ".join(f"{row[reader]:.1f}" for reader in readers) + f" | {ratio} |")
    if "decord" in readers:
        ratio = medians["H.264, GOP 250"]["decord"] / medians["prepare.py transcode"]["mats_ds"]
        lines += [
            "",
            f"decord on the originals (GOP 250) against mats_ds on its training copies: {ratio:.2f} times the CPU time.",
        ]
    loaders = list(next(iter(speeds.values())))
    lines += ["", "## Clips per second from file to 224 x 224 crops, by number of workers (wall clock)", ""]
    lines += ["| files | " + " | ".join(loaders) + " |", "|---" * (len(loaders) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[loader]:.1f}" for loader in loaders) + " |" for name, row in speeds.items()]
    if missing:
        lines += ["", "Left out: " + "; ".join(missing) + "."]
    lines += ["", f"![CPU time of a clip]({stem}.svg)", ""]
    page = out / f"{stem}.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    (out / f"{stem}.json").write_text(
        json.dumps({"cpu_ms": medians, "clips_per_second": speeds}, indent=1) + "\n", encoding="utf-8"
    )
    draw_plot(medians, out / f"{stem}.svg")
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
    axis.set_ylabel("CPU ms a clip (less is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos to make the sets from (default: synthetic ones)")
    parser.add_argument("--clips", type=int, default=5, help="clips of each video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found, missing = peers()
    readers: dict[str, Reader] = {"mats_ds": read_with_mats, "PyAV plainly": read_plainly, **found}
    with tempfile.TemporaryDirectory() as folder:
        videos = choose_videos(arguments.videos, Path(folder))
        print(f"{len(videos)} videos; making four sets of them", flush=True)
        sets = make_sets(videos, Path(folder))
        print("reading clips", flush=True)
        times = measure_readers(sets, readers, clips=arguments.clips, rounds=arguments.rounds)
        print("running whole loaders", flush=True)
        speeds = clips_per_second(sets, readers, num_clips=48)
    page = write_results(arguments.out, times, speeds, missing, arguments)
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
