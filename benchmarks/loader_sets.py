"""The files that `loader.py` reads: up to eight videos, encoded in four ways."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av

from benchmarks.loader_page import COPIES, ORIGINALS
from mats_ds.data.manifest import VIDEO_EXTENSIONS, read_manifest
from mats_ds.data.prepare.copying.transcode import transcode_file
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.indexing import index_video

MAX_VIDEOS, MIN_FRAMES, MAX_SIDE = 8, 100, 1280
HEIGHT, WIDTH = 256, 340


def choose_videos(folder: Path | None, scratch: Path) -> list[str]:
    """Up to eight readable videos that are long enough and of ordinary size; synthetic ones without
    a folder."""
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


def make_sets(videos: list[str], scratch: Path) -> dict[str, list[str]]:
    """The four sets, by name."""
    kinds = {
        ORIGINALS: ("libx264", {"crf": "23", "preset": "medium"}, 250, "mp4"),
        "H.264, GOP 12": ("libx264", {"crf": "23", "preset": "medium", "x264-params": "open-gop=0"}, 12, "mp4"),
        "MPEG-4, GOP 12 (.avi)": ("mpeg4", {"bf": "2"}, 12, "avi"),
    }
    sets: dict[str, list[str]] = {}
    for index, (name, (codec, options, gop, suffix)) in enumerate(kinds.items()):
        sets[name] = []
        for number, video in enumerate(videos):
            target = scratch / f"{index}-{number}.{suffix}"
            encode(video, target, codec=codec, options=options, gop=gop)
            sets[name].append(str(target))
    copies = [scratch / f"copy-{number}.mp4" for number in range(len(videos))]
    for source, target in zip(sets[ORIGINALS], copies, strict=True):
        transcode_file(source, target)
    sets[COPIES] = [str(target) for target in copies]
    return sets
