"""Sliding-window features in a folder, as ActionFormer and OpenTAD read them: one array a video.

    OUT/VIDEO.npy          float32 [W, D]: W windows, features of D numbers
    OUT/VIDEO.json         its file, frame rate, windows, and times in seconds and in its frames
    OUT/features.json      settings, and what to put into the configs of both programs
    OUT/index.csv          path,label,video,windows,fps,duration of all videos
    OUT/unreadable.csv     the videos that have no features, and why; their ids in missing_files.txt

VIDEO is the file's name without its extension, the id of annotations; with its folders where two
files have one name (window_files.py). The same command continues an earlier extraction: finished
arrays are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mats_ds.core.clips import BadClip
from mats_ds.core.format import format_count
from mats_ds.core.progress import show_progress
from mats_ds.core.storage.files import replace_file, write_json, write_text
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import end_writing
from mats_ds.core.storage.output_folder import check_output_folder
from mats_ds.core.text import say
from mats_ds.core.workers import default_workers
from mats_ds.data.clip_sampler import present_seconds
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.faults import explain
from mats_ds.distributed.collectives import do_on_all, do_on_first, gather_on_all
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.features.feature_folder import (
    ADVICE,
    COMMAND,
    SETTINGS,
    UNREADABLE,
    Extraction,
    ShardOptions,
    begin_folder,
    is_features_folder,
    plan_extraction,
)
from mats_ds.evaluation.features.window_files import (
    MISSING,
    describe_video,
    is_whole,
    make_configs,
    name_videos,
    read_about,
    with_ending,
)
from mats_ds.evaluation.features.windows import VideoPart, VideoStream, WindowTimes, stream_windows
from mats_ds.evaluation.options import ModelRequest
from mats_ds.evaluation.results import UNREADABLE_COLUMNS, write_table, write_unreadable
from mats_ds.models.weights.origin import CLIP_KEYS

logger = logging.getLogger("mats_ds")

INDEX = "index.csv"
INDEX_COLUMNS = ("path", "label", "sample", "video", "windows", "fps", "duration_seconds", "first_seconds")
TABLES = {INDEX: INDEX_COLUMNS, UNREADABLE: UNREADABLE_COLUMNS}


def extract_windows(
    request: ModelRequest,
    source: str,
    *,
    root: str | None,
    out: Path,
    keep_ratio: float | None,
    times: WindowTimes,
    ranks: RankInfo,
) -> None:
    """Write the missing arrays, every rank its own; rank 0 holds the folder and writes the tables.

    Raises ValueError, on all ranks, for a folder, weights or numbers that cannot be used.
    """
    advice = f"{ADVICE} in {out}"
    do_on_first(partial(check_output_folder, out, command=COMMAND, is_ours=is_features_folder), ranks, advice=advice)
    manifest = read_manifest(source, root=root)
    names = name_videos(manifest)
    shards = ShardOptions("mean", "float32", "npy", 1)
    extraction = plan_extraction(request, manifest, keep_ratio=keep_ratio, shards=shards, ranks=ranks)
    extraction = describe_windows(extraction, times, out)
    try:
        begin = partial(begin_folder, out, extraction, inputs=(source, request.path), tables=TABLES, is_part=lambda name: True)
        do_on_first(begin, ranks, advice=advice)
        mine = range(ranks.rank, len(manifest), ranks.world_size)
        width = extraction.encoder.width
        find = partial(find_missing, [(row, out / names[row]) for row in mine], width)
        missing = sorted(row for part in gather_on_all(do_on_all(find, ranks, advice=advice), ranks) for row in part)
        if len(missing) < len(manifest):
            done = f"{len(manifest) - len(missing):,}"
            logger.info("%s of %s are there and complete", done, format_count(len(manifest), "video"))
        rows = missing[ranks.rank :: ranks.world_size]
        write = partial(write_arrays, rows, names, manifest, extraction, times, out=out, logs=ranks.rank == 0)
        bad = [clip for part in gather_on_all(do_on_all(write, ranks, advice=advice), ranks) for clip in part]
        summary = do_on_first(partial(write_tables, out, manifest, names, bad), ranks, advice=advice)
    finally:
        if ranks.rank == 0:
            release_folder(out)
    if ranks.rank == 0:
        say(summary)


def describe_windows(extraction: Extraction, times: WindowTimes, out: Path) -> Extraction:
    """The extraction with the settings of its windows, and the configs of other programs; says how
    far frames lie apart."""
    section, num_frames = extraction.views.section, extraction.views.num_frames
    spacing = times.window_seconds / num_frames
    trained = (
        f"{section.stride_seconds:g} s"
        if section.stride_seconds is not None
        else f"{format_count(section.stride, 'frame')} of the video"
    )
    if section.sampling == "uniform":
        trained = "spread over the whole video"
    logger.info(
        "windows of %g s every %g s: %s, %.3g s apart (in training: %s)",
        times.window_seconds,
        times.hop_seconds,
        format_count(num_frames, "frame"),
        spacing,
        trained,
    )
    if times.hop_seconds > times.window_seconds:
        logger.info("note: --hop is longer than --window, so that what lies between two windows is not looked at")
    settings = {name: value for name, value in extraction.settings.items() if name not in CLIP_KEYS}
    settings |= {"window_seconds": times.window_seconds, "hop_seconds": times.hop_seconds}
    details = {**extraction.details, "configs": make_configs(times, width=extraction.encoder.width, out=out)}
    return replace(extraction, settings=settings, details=details)


def find_missing(rows: Sequence[tuple[int, Path]], width: int) -> list[int]:
    """The rows whose array is not there, or not whole."""
    return [row for row, path in rows if not is_whole(path, width)]


def write_arrays(
    rows: Sequence[int],
    names: Sequence[str],
    manifest: Manifest,
    extraction: Extraction,
    times: WindowTimes,
    *,
    out: Path,
    logs: bool,
) -> list[BadClip]:
    """Write the arrays of these rows; returns the videos that cannot be read. An array is written
    last, so that what is there is whole."""
    views, section, bad = extraction.views, extraction.views.section, []
    streams = stream_windows(
        [part_of(manifest, row) for row in rows],
        times,
        num_frames=views.num_frames,
        size=(section.height, section.width),
        micro_batch=views.micro_batch,
        num_threads=default_workers() if views.num_workers is None else views.num_workers,
    )
    for stream in show_progress(streams, total=len(rows), label="windows" if logs else "", unit="video"):
        row = stream.part.row
        try:
            features_WD = encode_video(extraction, stream)
        except UnreadableVideo as unreadable:
            reason = explain(stream.part.path, unreadable.reason)
            logger.warning("left out: %s: %s", stream.part.path, reason)
            bad.append(BadClip(stream.part.path, row, reason))
            continue
        write_json(with_ending(out / names[row], ".json"), describe_video(stream, times, names[row]), indent=1)
        with replace_file(with_ending(out / names[row], ".npy")) as aside, aside.open("wb") as file:
            np.save(file, features_WD)
    return bad


def part_of(manifest: Manifest, row: int) -> VideoPart:
    """The file and the times of a row."""
    times = (present_seconds(column[row]) for column in (manifest.first_seconds_S, manifest.last_seconds_S))
    return VideoPart(row, manifest.paths[row], *times)


def encode_video(extraction: Extraction, stream: VideoStream) -> np.ndarray:
    """float32 [W, D]: one feature a window. Raises UnreadableVideo."""
    encoder = extraction.encoder
    features = [encoder(torch.from_numpy(batch)).float().cpu().numpy() for batch in stream.batches()]
    features_WD = np.concatenate(features).astype(np.float32)
    assert len(features_WD) == len(stream.windows().numbers_WT), "a window is missing"
    return features_WD


def write_tables(out: Path, manifest: Manifest, names: Sequence[str], bad: Sequence[BadClip]) -> str:
    """Write index.csv, unreadable.csv and missing_files.txt. Returns a summary."""
    left_out = {clip.sample for clip in bad}
    rows, num_windows = [], 0
    for row, name in enumerate(names):
        if row not in left_out:
            about = read_about(out / name)
            num_windows += about["num_windows"]
            times = [about[key] for key in ("num_windows", "fps", "duration_seconds", "first_seconds")]
            rows.append([manifest.paths[row], int(manifest.label_S[row]), row, name, *times])
    write_table(out / INDEX, INDEX_COLUMNS, rows)
    write_unreadable(out / UNREADABLE, sorted(bad, key=lambda clip: clip.sample))
    write_text(out / MISSING, "".join(f"{names[row]}\n" for row in sorted(left_out)))
    end_writing(out, (SETTINGS, *TABLES))
    note = f"; {len(bad):,} unreadable: see {UNREADABLE}" if bad else ""
    configs = f"what ActionFormer and OpenTAD need of them is in {out / SETTINGS}, under `configs`"
    windows, videos = format_count(num_windows, "window"), format_count(len(rows), "video")
    return f"{windows} of {videos} (of {len(manifest):,}) below {out}{note}; {configs}"
