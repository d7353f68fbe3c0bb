"""NVDEC through DALI: are its frames PyAV's, what does it do with broken files, and how many clips
a second does it bring?

Frames are compared without scaling, index by index (compare.py). On a CPU the same comparison runs
with a stand-in for the device's decoder (stand_in.py): its frames must be equal, and each fault
that it is given must be seen; what DALI's own CPU decoder knows, VP9, goes through the real graph.
The loader's rates are of clips from end to end: reading, decoding, cropping, scaling to 224 x 224.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.card import describe_decoders  # noqa: E402
from benchmarks.gpu.part import MISSED, OK, Part, begin_part  # noqa: E402

MIB = 2**20
NUM_READERS = 16  # processes, on a GPU
MIXED = ("h264", "vp9", "av1", "352 x 256", "340 x 256", "BT.709", "vp9, odd", "odd size")


def main() -> int:
    part = begin_part("decode")
    if absent := part.lacks("torch", "numpy", "av", "pydantic", "yaml"):
        part.add_line("decoding", f"not measured without {', '.join(absent)}")
        return part.finish()
    has_dali = not part.lacks("nvidia.dali")
    if part.on_gpu and not has_dali:
        part.add_line("decoding", "not measured without nvidia.dali")
        return part.finish()
    with tempfile.TemporaryDirectory() as folder:
        describe_decoders(part)
        check_frames(part, Path(folder), has_dali=has_dali)
        check_broken(part, Path(folder))
        check_loader(part, Path(folder))
        time_loader(part, Path(folder))
    return part.finish()


def new_decoder(part: Part, size: tuple[int, int], **faults):
    """A decoder of the device; on a CPU, which has none, the stand-in."""
    import torch

    if part.on_gpu:
        from mats_ds.data.loading.dali import GpuDecoder

        return GpuDecoder(size=size, device=torch.device(part.device))
    from benchmarks.gpu.stand_in import StandIn

    return StandIn(size=size, **faults)


def check_frames(part: Part, folder: Path, *, has_dali: bool) -> None:
    """The worst frame of every case. On a CPU: whether the comparison sees each fault."""
    from benchmarks.gpu.compare import CASES, Case, compare_case

    wrong, compared = [], 0
    for case in CASES:
        try:
            seen = compare_case(case, folder, partial(new_decoder, part))
        except Exception as error:  # an encoder that this PyAV does not have
            part.add_line(f"frames, {case.name}", f"cannot be written here ({type(error).__name__})")
            continue
        for one in seen:
            part.add(case=case.name, format=one.format, reason=one.reason, psnr=one.psnr, error=one.error)
        to_device = [one for one in seen if not one.reason]
        compared += len(to_device)
        wrong += [f"{case.name}: {one.format}" for one in to_device if not one.is_equal]
        figure = "; ".join(one.describe() for one in seen)
        if to_device or all(one.is_equal for one in seen):
            part.judge(f"frames, {case.name}", figure, holds=all(one.is_equal for one in to_device))
        else:
            part.add_line(f"frames, {case.name}", figure)  # for this reason it does not go there
    part.judge(
        "files that NVDEC gets and shows otherwise", f"{len(wrong)} of {compared} {', '.join(wrong)}".strip(), holds=not wrong
    )
    if part.on_gpu:
        return
    part.add_line("the stand-in shows PyAV's frames", f"{compared - len(wrong)} of {compared}", MISSED if wrong else OK)
    blind = []
    for case in (case for case in CASES if case.fault):
        seen = compare_case(case, folder, partial(new_decoder, part, faults=frozenset([case.fault])))
        part.add(case=case.name, fault=case.fault, psnr=[one.psnr for one in seen])
        if all(one.is_equal for one in seen):
            blind.append(case.name)
    part.add_line("faults that the comparison does not see", ", ".join(blind) or "none", MISSED if blind else OK)
    if has_dali:
        import torch

        from mats_ds.data.loading.dali import GpuDecoder

        (seen,) = compare_case(Case("vp9", ("vp9",)), folder, lambda size: GpuDecoder(size=size, device=torch.device("cpu")))
        part.add_line("DALI's CPU decoder", seen.describe(), OK if seen.is_equal else MISSED)


def check_broken(part: Part, folder: Path) -> None:
    """A broken file fails its chunk with an error and no more, or goes to PyAV; the next good file
    comes through the same graph."""
    from benchmarks.gpu.compare import compare_broken
    from benchmarks.gpu.video_files import BROKEN, FORMATS, write_broken, write_format

    good, size = folder / "good.mp4", (176, 208)
    write_format(good, FORMATS["h264"])
    decoder = new_decoder(part, size, **({} if part.on_gpu else {"faults": frozenset(["end"])}))
    seen = [compare_broken(kind, write_broken(folder / f"broken-{kind}.mp4", kind, good), good, decoder, size) for kind in BROKEN]
    part.add(broken={one.kind: one.describe() for one in seen})
    for one in seen:
        part.add_line(f"broken file, {one.describe()}", "wrong frames without an error" if one.is_silent else "no wrong frame")
    stopped = [one.kind for one in seen if not one.goes_on]
    part.add_line("the graph goes on after", f"{len(seen) - len(stopped)} of {len(seen)}", MISSED if stopped else OK)
    silent = [one.kind for one in seen if one.is_silent]
    part.judge("broken files of which wrong frames come without an error", ", ".join(silent) or "none", holds=not silent)


def check_loader(part: Part, folder: Path) -> None:
    """All kinds of files in one list, through the loader: its clips on the device against those on
    a CPU, and what is said of their route."""
    from benchmarks.gpu.stand_in import StandIn
    from benchmarks.gpu.video_files import FORMATS, write_format
    from mats_ds.data.loading import loader as loading
    from mats_ds.data.loading.nvdec.route import survey_route
    from mats_ds.data.video.nvdec_support import NVDEC_LIMITS

    mixed = folder / "mixed"
    mixed.mkdir()
    for name in MIXED:
        try:
            write_format(mixed / FORMATS[name].file, FORMATS[name])
        except Exception as error:
            part.add_line(f"loader, {name}", f"cannot be written here ({type(error).__name__})")
    codecs = loading.device_codecs(torch_device(part)) if part.on_gpu else NVDEC_LIMITS
    route = survey_route([str(path) for path in sorted(mixed.iterdir())], codecs)
    part.add(route=route.as_json())
    part.add_line("route of a mixed list", route.describe())
    micro = 2 * len(list(mixed.iterdir()))
    on_cpu = take(part, mixed, micro=micro, device="cpu")
    with mock.patch.multiple(loading, **({} if part.on_gpu else {"device_codecs": lambda device: codecs, "GpuDecoder": StandIn})):
        on_device = take(part, mixed, micro=micro, device=part.device)
    worst = max(
        (one.frames_BTHWC.float() - other.frames_BTHWC.cpu().float()).abs().flatten(1).mean(1).max().item()
        for one, other in zip(on_cpu, on_device, strict=True)
    )
    part.add(loader_difference=worst)
    part.judge(
        "clips of a mixed list, device against CPU", f"at most {worst:.2f} levels of 255 apart on average", holds=worst < 4
    )
    if not part.on_gpu and worst >= 4:
        part.add_line("the stand-in's clips", "differ from PyAV's", MISSED)


def torch_device(part: Part):
    import torch

    return torch.device(part.device)


def take(part: Part, folder: Path, *, micro: int, device: str) -> list:
    import torch

    with make_loader(part, folder, side=96, micro=micro, num_graphs=2, device=torch.device(device)) as loader:
        return list(islice(loader.micro_batches(0), 2))


def time_loader(part: Part, folder: Path) -> None:
    """Clips a second of the loader: with a keyframe every 16 frames and more and more pipelines, of
    PyAV's processes on the same files, and with a keyframe every 250 frames."""
    from benchmarks.gpu.video_files import write_many

    count, frames = (24, 300) if part.on_gpu else (4, 40)
    ways = [(16, 4), (16, 0), (16, 1), (16, 7), (250, 4)] if part.on_gpu else [(16, 1)]
    rates: dict[tuple[int, int], float] = {}
    for gop, graphs in ways:  # 0 pipelines: PyAV
        who = f"{graphs} pipeline{'s' * (graphs > 1)}" if graphs else f"{NUM_READERS} processes of PyAV"
        if part.seconds_left() < 4:
            part.add_line("loader", f"GOP {gop} with {who} was not reached in time")
            continue
        videos = folder / f"gop{gop}"
        if not videos.exists():
            write_many(videos, count=count, num_frames=frames, gop=gop, in_hd=part.on_gpu)
        rate, memory = time_batches(part, videos, num_graphs=graphs)
        rates[gop, graphs] = rate
        part.add(gop=gop, pipelines=graphs, clips_per_second=rate, resident_bytes=resident_bytes())
        part.add_line(f"loader, GOP {gop}, {who}", f"{rate:.4g} clips/s{memory}")
    if (16, 1) in rates and (16, 7) in rates:
        times = rates[16, 7] / rates[16, 1]
        part.add_line("7 pipelines against 1", f"{times:.1f} x (6.1 x was measured at 1080p with 7 engines)")


def time_batches(part: Part, videos: Path, *, num_graphs: int) -> tuple[float, str]:
    """Clips a second over some batches after the first, and the memory by then, in words."""
    import torch

    side, micro = (224, 32) if part.on_gpu else (64, 4)
    device = torch.device(part.device if num_graphs else "cpu")
    with make_loader(part, videos, side=side, micro=micro, num_graphs=num_graphs or None, device=device) as loader:
        batches = loader.micro_batches(0)
        next(batches)  # graphs are built, files indexed
        begin, taken = time.perf_counter(), 0
        for batch in islice(batches, 8 if part.on_gpu else 2):
            taken += batch.frames_BTHWC.shape[0]
        if part.on_gpu:
            torch.cuda.synchronize()
        rate = taken / (time.perf_counter() - begin)
        memory = f", host {resident_bytes() / MIB:.0f} MiB"
        if part.on_gpu:
            free_bytes, total_bytes = torch.cuda.mem_get_info()
            memory += f", GPU {(total_bytes - free_bytes) / MIB:.0f} MiB"
    return rate, memory


def make_loader(part: Part, videos: Path, *, side: int, micro: int, num_graphs: int | None, device=None):
    import torch

    from mats_ds.config.recipe import ClipSection
    from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
    from mats_ds.data.loading.loader import ClipLoader
    from mats_ds.data.loading.prefetch import ReadOptions
    from mats_ds.data.manifest import read_manifest

    section = ClipSection(num_frames=16, stride=2 if not part.on_gpu else 4, height=side, width=side)
    sampler = ClipSampler(read_manifest(videos), recipe_clip=section, num_frames=16, global_batch=micro, seed=0)
    device = device or torch.device(part.device)
    reading = ReadOptions(num_workers=NUM_READERS if part.on_gpu else None, num_graphs=num_graphs)
    options = dict(size=(side, side), device=device, options=reading)
    return ClipLoader(sampler, BatchSplit(0, 1, micro), **options)


def resident_bytes() -> int:
    """Host memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
