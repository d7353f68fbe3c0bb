"""Extraction into a folder: shards of features, index.csv, unreadable.csv and features.json.

The same command continues an earlier extraction: finished shards are kept, unfinished files
removed. Shards are equal on any number of ranks.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mats_ds.core.format import format_count, format_views
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import open_regular, read_bytes, write_json
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import begin_writing, end_writing, refuse_losses
from mats_ds.core.storage.output_folder import check_output_folder, hold_output_folder, remove_parts
from mats_ds.core.text import say
from mats_ds.core.token_grid import TokenGrid
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.distributed.collectives import do_on_all, do_on_first, gather_on_all
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.features.extract_options import SUFFIXES, ShardOptions
from mats_ds.evaluation.features.feature_store import (
    Shard,
    digest,
    digest_weights,
    is_finished,
    read_shard,
    write_shard,
)
from mats_ds.evaluation.options import ModelRequest, ViewPlan, plan_views, read_model_weights
from mats_ds.evaluation.results import UNREADABLE_COLUMNS, write_table, write_unreadable

if TYPE_CHECKING:  # imported where it is used: to know a folder of features needs no torch
    from mats_ds.models.feature_extractor import VideoEncoder

logger = logging.getLogger("mats_ds")

COMMAND = "extract"
SETTINGS, SHARD = "features.json", "features-"
MAX_SETTINGS_BYTES = 10_000_000
INDEX, UNREADABLE = "index.csv", "unreadable.csv"
INDEX_COLUMNS = ("path", "label", "sample", "clip", "crop", "shard", "row", "tubelets", "rows", "columns")
TABLES = {INDEX: INDEX_COLUMNS, UNREADABLE: UNREADABLE_COLUMNS}
ADVICE = "make room or mend that, then start the same command again: finished shards are kept"


@dataclass(frozen=True)
class Extraction:
    """An encoder and all settings of its features; `details`: other entries of features.json."""

    encoder: VideoEncoder
    views: ViewPlan
    shards: ShardOptions
    settings: Mapping[str, object]
    details: Mapping[str, object]

    @property
    def digest(self) -> str:
        """The digest of the settings, which every shard carries."""
        return digest([json.dumps(self.settings, sort_keys=True).encode()])


def extract(
    request: ModelRequest,
    source: str,
    *,
    root: str | None,
    out: Path,
    keep_ratio: float | None,
    shards: ShardOptions,
    ranks: RankInfo,
) -> None:
    """Write the missing shards, every rank its own; rank 0 holds the folder and writes the index.

    Raises ValueError, on all ranks, for a folder, weights or numbers that cannot be used.
    """
    advice = f"{ADVICE} in {out}"
    check = partial(check_output_folder, out, command=COMMAND, is_ours=is_features_folder)
    do_on_first(check, ranks, advice=advice)  # before the weights are read
    manifest = read_manifest(source, root=root)
    extraction = plan_extraction(request, manifest, keep_ratio=keep_ratio, shards=shards, ranks=ranks)
    views = extraction.views
    logger.info("%s of a video; %s", format_views(views.num_clips, views.num_crops), views.describe_clips())
    try:
        begin = partial(begin_folder, out, extraction, inputs=(source, request.path))
        do_on_first(begin, ranks, advice=advice)
        num_shards = -(-len(manifest) // shards.num_videos)
        paths = [out / f"{SHARD}{number:05d}{SUFFIXES[shards.format]}" for number in range(num_shards)]
        find = partial(find_missing, paths[ranks.rank :: ranks.world_size], extraction.digest)
        missing = sorted(path for part in gather_on_all(do_on_all(find, ranks, advice=advice), ranks) for path in part)
        if len(missing) < num_shards:
            logger.info("%s of %s are there and complete", f"{num_shards - len(missing):,}", format_count(num_shards, "shard"))
        numbers = [paths.index(path) for path in missing[ranks.rank :: ranks.world_size]]
        do_on_all(partial(write_shards, paths, numbers, manifest, extraction, ranks), ranks, advice=advice)
        summary = do_on_first(partial(write_index, out, manifest, paths, extraction.encoder.grid), ranks, advice=advice)
    finally:
        if ranks.rank == 0:
            release_folder(out)
    if ranks.rank == 0:
        say(summary)


def plan_extraction(
    request: ModelRequest, manifest: Manifest, *, keep_ratio: float | None, shards: ShardOptions, ranks: RankInfo
) -> Extraction:
    """Load the encoder and collect all settings. Raises ValueError if they cannot be used."""
    from mats_ds.evaluation.features.features import VERSION, open_encoder
    from mats_ds.models.weights.load import describe_weights

    weights = read_model_weights(request)
    for line in describe_weights(request.path, weights):
        logger.info("%s", line)
    encoder = open_encoder(weights, keep_ratio=keep_ratio)
    grid = encoder.grid
    views = plan_views(request, weights, grid=grid, num_frames=encoder.num_frames, device=ranks.device)
    listed = [
        [os.path.abspath(path) for path in manifest.paths],
        manifest.first_seconds_S.tolist(),
        manifest.last_seconds_S.tolist(),
    ]
    settings = {
        "version": VERSION,
        "weights_sha256": digest_weights(weights),
        "manifest_sha256": digest([json.dumps(listed).encode()]),
        "num_videos": len(manifest),
        "grid": {"tubelets": grid.tau, "rows": grid.rows, "columns": grid.columns, "tubelet": list(grid.tubelet)},
        "width": encoder.width,
        "num_frames_read": encoder.num_frames,
        "keep_ratio": encoder.trunk.keep_ratio,
        "strategy": encoder.trunk.pruning.strategy,
        **views.as_json(),
        "pool": shards.pool,
        "format": shards.format,
        "store": shards.store,
        "precision": views.precision,
        "shard_videos": shards.num_videos,
    }
    details = {
        "weights": request.path,
        "source": weights.source,
        "weights_used": weights.used(),
        "origin": weights.origin.as_json(),
        "manifest": manifest.name,
    }
    return Extraction(encoder.to(views.device, views.dtype), views, shards, settings, details)


def begin_folder(
    out: Path,
    extraction: Extraction,
    *,
    inputs: Sequence[str | Path | None] = (),
    tables: Mapping[str, Sequence[str]] = TABLES,
    is_part: Callable[[str], bool] = lambda name: name.startswith(SHARD),
) -> None:
    """Hold the folder, write the settings and remove unfinished files of a killed start.

    inputs: files that are read. tables: their columns, by name. is_part: of what else an unfinished
    file may be left, by the beginning of its name. Raises ValueError, and changes nothing, if `out`
    holds something else or features of other settings, is in use, or a file of the user's would be
    lost in it.
    """
    written = (SETTINGS, *tables)
    # before the folder is held, so that a foreign one stays as it is, and after, when nobody else
    # writes
    for _ in range(2):
        refuse_other_settings(out / SETTINGS, extraction.settings)
        refuse_other_tables(out, tables)
        refuse_losses(out, written, inputs=inputs)
        hold_output_folder(out, command=COMMAND, is_ours=is_features_folder)
    begin_writing(out, written)
    write_json(out / SETTINGS, {**extraction.settings, **extraction.details}, indent=2)
    if num_removed := remove_parts(out, of=lambda name: name in written or is_part(name)):
        logger.info("removed %s of an earlier start", format_count(num_removed, "unfinished file"))


def refuse_other_settings(path: Path, settings: Mapping[str, object]) -> None:
    """Raise ValueError if the folder holds features of other settings, and name them."""
    if not os.path.lexists(path):
        return
    stored = read_settings(path)
    if stored is None:
        raise ValueError(f"{path} does not hold the settings of features: use another --out")
    other = [
        f"{name} is {stored.get(name)!r} there and {value!r} here"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if other:
        raise ValueError(f"{path.parent} holds features of other settings ({'; '.join(other)}): use another --out")


def refuse_other_tables(out: Path, tables: Mapping[str, Sequence[str]] = TABLES) -> None:
    """Raise ValueError if a file with the name of one of our tables has another header."""
    for name, columns in tables.items():
        if not os.path.lexists(out / name):
            continue
        with open_regular(out / name) as stream:
            begins = stream.readline(MAX_SETTINGS_BYTES).decode(errors="replace").strip()
        if begins != ",".join(columns):
            raise ValueError(f"{out / name} is another table than the one that would be written there: rename it")


def read_settings(path: Path) -> dict[str, Any] | None:
    """The content of features.json; None if it is of another program."""
    try:
        tree = parse_json(read_bytes(path, max_bytes=MAX_SETTINGS_BYTES))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) and {"weights_sha256", "manifest_sha256"} <= tree.keys() else None


def is_features_folder(folder: Path) -> bool:
    """Whether an extraction of version 0.1, which left no marker, made the folder."""
    return read_settings(folder / SETTINGS) is not None


def find_missing(paths: list[Path], settings_digest: str) -> list[Path]:
    """The shards that are missing, damaged or of other settings."""
    return [path for path in paths if not is_finished(path, settings_digest)]


def write_shards(paths: list[Path], numbers: list[int], manifest: Manifest, extraction: Extraction, ranks: RankInfo) -> None:
    """Extract and write the shards with these numbers."""
    from mats_ds.evaluation.features.features import extract_shard

    options = extraction.shards
    for number in numbers:
        first = number * options.num_videos
        arrays, bad = extract_shard(
            extraction.encoder,
            slice_manifest(manifest, first, options.num_videos),
            extraction.views,
            first=first,
            pool=options.pool,
            store=options.store,
            label=f"shard {number + 1:,} of {len(paths):,}" if ranks.rank == 0 else "",
        )
        write_shard(paths[number], Shard(arrays, extraction.digest, tuple(bad)))


def slice_manifest(manifest: Manifest, first: int, count: int) -> Manifest:
    """`count` videos, starting with row `first`."""
    rows = slice(first, first + count)
    spans = manifest.first_seconds_S[rows], manifest.last_seconds_S[rows]
    return Manifest(manifest.paths[rows], manifest.label_S[rows], *spans, manifest.name)


def write_index(out: Path, manifest: Manifest, paths: list[Path], grid: TokenGrid) -> str:
    """Write index.csv (the shard and row of each view) and unreadable.csv. Returns a summary."""
    rows, bad = [], []
    for path in paths:
        shard = read_shard(path)
        bad += shard.bad
        views = zip(*(shard.arrays[name].tolist() for name in ("sample", "clip", "crop")), strict=True)
        for row, (sample, clip, crop) in enumerate(views):
            labelled = [manifest.paths[sample], int(manifest.label_S[sample]), sample, clip, crop]
            rows.append([*labelled, path.name, row, grid.tau, grid.rows, grid.columns])
    write_table(out / INDEX, INDEX_COLUMNS, rows)
    write_unreadable(out / UNREADABLE, bad)
    end_writing(out, (SETTINGS, *TABLES))
    note = f"; {len(bad):,} unreadable, at least in part: see {UNREADABLE}" if bad else ""
    num_read = len({row[2] for row in rows})
    read = f"{format_count(len(rows), 'view')} of {format_count(num_read, 'video')} (of {len(manifest):,})"
    return f"{read} in {format_count(len(paths), 'shard')} below {out}{note}"
