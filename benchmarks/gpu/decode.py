"""NVDEC through DALI: are its frames PyAV's, what does it do with broken files, and how many clips
a second does it bring?

Frames are compared without scaling, index by index. On a CPU the same graph decodes what DALI's CPU
decoder knows (VP9), which rehearses the way. The loader's rates are of clips from end to end:
reading, decoding, cropping, scaling to 224 x 224.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.part import MISSED, NEEDS_GPU, OK, Part, begin_part  # noqa: E402

MIB = 2**20
NUM_COMPARED, STRIDE = 16, 3
GOAL_PSNR = 38.0
EXACT_FORMATS = ("h264", "h264, open GOP", "hevc", "mpeg4 (XviD AVI)", "vp9", "av1", "odd size")


def main() -> int:
    part = begin_part("decode")
    if absent := part.lacks("torch", "numpy", "av", "nvidia.dali", "pydantic", "yaml"):
        part.add_line("decoding", f"not measured without {', '.join(absent)}")
        return part.finish()
    with tempfile.TemporaryDirectory() as folder:
        check_frames(part, Path(folder))
        check_broken(part, Path(folder))
        time_loader(part, Path(folder))
    return part.finish()


def check_frames(part: Part, folder: Path) -> None:
    """PSNR of the device's frames against PyAV's, the worst frame of every format."""

    from benchmarks.gpu.video_files import FORMATS, write_format
    from mats_ds.data.video.decode import decode_frames
    from mats_ds.data.video.indexing import index_video
    from mats_ds.data.video.nvdec_support import device_can_decode

    worst = {}
    for name in FORMATS:
        path = folder / FORMATS[name].file
        try:
            write_format(path, FORMATS[name])
        except Exception as error:  # an encoder that this PyAV does not have
            part.add_line(f"frames, {name}", f"cannot be written here ({type(error).__name__})")
            continue
        index = index_video(str(path))
        numbers = list(range(0, index.num_frames, STRIDE))[:NUM_COMPARED]
        expected = decode_frames(str(path), numbers)
        route = "device" if device_can_decode(index) else "PyAV"
        try:
            ours = decode_on_device(part, path, numbers, (index.height, index.width))
        except RuntimeError as error:
            part.add(format=name, route=route, error=str(error)[-300:])
            part.add_line(f"frames, {name}", f"refused by DALI; the loader would give it to {route}")
            continue
        if not index.orientation.is_plain:
            turned = index.orientation.apply(ours, axes=(1, 2))
            part.add_line(
                "DALI ignores rotation", str(bool(psnr(expected, turned).min() > GOAL_PSNR)), "" if part.on_gpu else NEEDS_GPU
            )
            continue
        worst[name] = float(psnr(expected, ours).min()) if ours.shape == expected.shape else 0.0
        part.add(format=name, route=route, psnr=worst[name], shape=list(ours.shape))
        text = f"worst PSNR {worst[name]:.1f} dB; the loader gives it to {route}"
        if route == "device" or worst[name] >= GOAL_PSNR:
            part.judge(f"frames, {name}", text, holds=worst[name] >= GOAL_PSNR)
        else:
            part.add_line(f"frames, {name}", text)  # for this reason it does not go there
    exact = [name for name in EXACT_FORMATS if worst.get(name, 0.0) >= GOAL_PSNR]
    part.add_line("frame numbers are exact for", ", ".join(exact) or "none", "" if part.on_gpu else NEEDS_GPU)


def decode_on_device(part: Part, path: Path, numbers: list[int], size: tuple[int, int]):
    """uint8 [T, H, W, 3] from a fresh DALI graph, without scaling. Raises RuntimeError where DALI
    does not decode the file."""
    import numpy as np
    import torch

    from mats_ds.data.loading.dali import GpuDecoder
    from mats_ds.data.loading.reader import EncodedClip, Region

    graph = GpuDecoder(size=size, device=torch.device(part.device))
    region = Region((0, 0, *size), flip=False)
    graph.start([EncodedClip(np.fromfile(path, np.uint8), np.asarray(numbers, np.int32), region, "")])
    return graph.finish()[0].cpu().numpy()


def psnr(one, other):
    """psnr_T in dB, of every frame."""
    import numpy as np

    squared = np.square(one.astype(np.float32) - other.astype(np.float32)).reshape(len(one), -1).mean(1)
    return 10 * np.log10(255.0**2 / np.maximum(squared, 1e-4))


def check_broken(part: Part, folder: Path) -> None:
    """A broken file fails its chunk with an error and no more; the next good file comes through the
    same graph."""
    import numpy as np
    import torch

    from benchmarks.gpu.video_files import BROKEN, FORMATS, write_broken
    from mats_ds.data.loading.dali import GpuDecoder
    from mats_ds.data.loading.reader import EncodedClip, Region

    good = folder / FORMATS["h264" if part.on_gpu else "vp9"].file
    region, numbers = Region((0, 0, 176, 208), flip=False), np.arange(4, dtype=np.int32)
    graph = GpuDecoder(size=(176, 208), device=torch.device(part.device))
    outcomes = {}
    for kind in BROKEN:
        path = write_broken(folder / f"broken-{kind}.mp4", kind, good)
        for name, file in (("broken", path), ("good after it", good)):
            content = np.fromfile(file, np.uint8)
            try:
                graph.start([EncodedClip(content if len(content) else np.zeros(1, np.uint8), numbers, region, "")])
                outcomes[kind, name] = tuple(graph.finish().shape)
            except RuntimeError as error:
                outcomes[kind, name] = f"RuntimeError: {str(error).strip().splitlines()[-1][:120]}"
    part.add(broken={f"{kind}: {name}": what for (kind, name), what in outcomes.items()})
    survived = [kind for kind in BROKEN if not isinstance(outcomes[kind, "good after it"], str)]
    silent = [kind for kind in BROKEN if not isinstance(outcomes[kind, "broken"], str)]
    part.add_line(
        "broken files",
        f"{len(BROKEN) - len(silent)} of {len(BROKEN)} refused" + (f", {' and '.join(silent)} decoded" if silent else "")
        + f"; the graph goes on after {len(survived)}",
        OK if len(survived) == len(BROKEN) else MISSED,
    )  # fmt: skip


def time_loader(part: Part, folder: Path) -> None:
    """Clips a second of the loader, for keyframes every 250 and every 12 frames, with more and more
    pipelines."""
    import torch

    from benchmarks.gpu.video_files import write_many

    count, frames, side, micro = (24, 300, 224, 32) if part.on_gpu else (4, 40, 64, 4)
    rates: dict[int, float] = {}
    for gop in (250, 12):
        videos = write_many(folder / f"gop{gop}", count=count, num_frames=frames, gop=gop, in_hd=part.on_gpu)
        for graphs in (1, 2, 4, 7) if part.on_gpu else (1,):
            if part.seconds_left() < 4:
                part.add_line("loader", f"GOP {gop} with {graphs} pipelines was not reached in time")
                return
            with make_loader(part, videos, side=side, micro=micro, num_graphs=graphs) as loader:
                batches = loader.micro_batches(0)
                next(batches)  # graphs are built, files indexed
                begin, taken = time.perf_counter(), 0
                for batch in islice(batches, 6 if part.on_gpu else 2):
                    taken += batch.frames_BTHWC.shape[0]
                if part.on_gpu:
                    torch.cuda.synchronize()
                rate = taken / (time.perf_counter() - begin)
                memory = f", host {resident_bytes() / MIB:.0f} MiB"
                if part.on_gpu:
                    free_bytes, total_bytes = torch.cuda.mem_get_info()
                    memory += f", GPU {(total_bytes - free_bytes) / MIB:.0f} MiB"
            rates[graphs] = rate
            part.add(gop=gop, pipelines=graphs, clips_per_second=rate, resident_bytes=resident_bytes())
            part.add_line(f"loader, GOP {gop}, {graphs} pipeline{'s' * (graphs > 1)}", f"{rate:.4g} clips/s{memory}")
    if 1 in rates and 7 in rates:
        part.add_line("7 pipelines against 1", f"{rates[7] / rates[1]:.1f} x (6.1 x was measured at 1080p with 7 engines)")


def make_loader(part: Part, videos: Path, *, side: int, micro: int, num_graphs: int):
    import torch

    from mats_ds.config.recipe import ClipSection
    from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
    from mats_ds.data.loading.loader import ClipLoader
    from mats_ds.data.loading.prefetch import ReadOptions
    from mats_ds.data.manifest import read_manifest

    section = ClipSection(num_frames=16, stride=2 if not part.on_gpu else 4, height=side, width=side)
    sampler = ClipSampler(read_manifest(videos), recipe_clip=section, num_frames=16, global_batch=micro, seed=0)
    options = dict(size=(side, side), device=torch.device(part.device), options=ReadOptions(num_graphs=num_graphs))
    return ClipLoader(sampler, BatchSplit(0, 1, micro), **options)


def resident_bytes() -> int:
    """Host memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
