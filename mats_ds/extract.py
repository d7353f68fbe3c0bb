"""Write the features of every video of a manifest: shards of arrays and an index.

    bash launch.sh extract --model runs/k400 --manifest videos.csv --out features                 # all GPUs
    python mats_ds/extract.py --model MODEL --manifest videos.csv --out features --pool none      # every token and its place

Reads top to bottom: settle what is asked for, write the shards that are missing, write the index. The same command goes on
where an earlier one ended; shards are the same on any number of ranks. Labels are not needed.
Exit status: 0 done, 1 stopped by a fault (no room), 2 unusable input or arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.clips import BadClip
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import end_writing
from mats_ds.core.storage.output_folder import check_output_folder
from mats_ds.core.text import say
from mats_ds.core.token_grid import count_tokens
from mats_ds.data.loading.build import read_views
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.distributed.collectives import do_on_all, do_on_first, gather_on_all
from mats_ds.distributed.ranks import RankInfo, find_dtype, join_ranks
from mats_ds.evaluation.feature_folder import COMMAND, SETTINGS, SHARD, begin_folder, is_features_folder
from mats_ds.evaluation.feature_store import SUFFIXES, Shard, digest, digest_weights, is_finished, read_shard, write_shard
from mats_ds.evaluation.options import (
    SAMPLING,
    add_model_options,
    choose_batch,
    describe_clips,
    describe_weights,
    find_clip_section,
    read_model_weights,
)
from mats_ds.evaluation.results import UNREADABLE_COLUMNS, write_table, write_unreadable
from mats_ds.models.feature_extractor import VideoEncoder, average_tubelets
from mats_ds.models.weights.load import load_encoder

logger = logging.getLogger("mats_ds")

VERSION = 2  # of what the same settings give; 1 (version 0.1 of mats_ds) rounded position tables under bf16
INDEX, UNREADABLE = "index.csv", "unreadable.csv"
INDEX_COLUMNS = ("path", "label", "sample", "clip", "crop", "shard", "row", "tubelets", "rows", "columns")
TABLES = {INDEX: INDEX_COLUMNS, UNREADABLE: UNREADABLE_COLUMNS}
ADVICE = "make room or mend that, then start the same command again: the shards that are whole are kept"
SHARD_VIDEOS = {"mean": 1000, "tubelet": 1000, "none": 32}  # all tokens of a ViT-B clip are 5 MB


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Write the features of every video of a manifest, in shards with an index; call it again to go on.",
        epilog="Example: bash launch.sh extract --model runs/k400 --manifest videos.csv --out features --pool tubelet",
    )
    add_model_options(parser, num_clips=1, num_crops=1)
    parser.add_argument("--manifest", required=True, help="a .csv, a list of `path label` lines, or a folder of videos")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards, index.csv and unreadable.csv")
    parser.add_argument(
        "--pool",
        choices=("mean", "tubelet", "none"),
        default="mean",
        help="one vector a view (default), one a tubelet (time step), or every token with its place",
    )
    parser.add_argument("--keep_ratio", type=float, metavar="R", help="share of tokens to keep (a classifier's own; else all)")
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="safetensors", help="of the shards (default: %(default)s)")
    parser.add_argument("--store", choices=("float32", "float16"), default="float32", help="type of the features (%(default)s)")
    parser.add_argument("--shard_videos", type=int, metavar="N", help="videos of a shard (1000; 32 with --pool none)")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Extraction:
    """All that a shard depends on but its videos: `asked`. `told`: what else features.json says, in words."""

    encoder: VideoEncoder
    section: ClipSection
    asked: Mapping[str, object]
    told: Mapping[str, object]
    options: argparse.Namespace

    @property
    def settings(self) -> str:
        """The digest of what is asked for."""
        return digest([json.dumps(self.asked, sort_keys=True).encode()])


def settle(options: argparse.Namespace, manifest: Manifest, *, device: torch.device) -> Extraction:
    """Load the encoder and say what is asked for. Raises ValueError when the weights or numbers cannot be used."""
    weights = read_model_weights(options)
    for line in describe_weights(options.model, weights):
        logger.info("%s", line)
    encoder = load_encoder(weights, **({} if options.keep_ratio is None else {"keep_ratio": options.keep_ratio}))
    keep_ratio = encoder.trunk.keep_ratio
    if count_tokens(keep_ratio, encoder.grid.num_tokens) < 1:
        raise ValueError(f"--keep_ratio {keep_ratio} of {encoder.grid.num_tokens} tokens is no token at all")
    section = find_clip_section(options, encoder.grid, weights)
    if options.shard_videos is None:
        options.shard_videos = SHARD_VIDEOS[options.pool]
    if options.shard_videos < 1:
        raise ValueError(f"--shard_videos is at least 1, got {options.shard_videos}")
    dtype = find_dtype(options.precision, device)
    logger.info("%d x %d views of a video; %s", options.clips, options.crops, describe_clips(options, section, weights))
    listed = [
        [os.path.abspath(path) for path in manifest.paths],
        manifest.first_seconds_S.tolist(),
        manifest.last_seconds_S.tolist(),
    ]
    asked = {
        "version": VERSION,
        "weights_sha256": digest_weights(weights),
        "manifest_sha256": digest([json.dumps(listed).encode()]),
        "num_videos": len(manifest),
        "grid": {
            "tubelets": encoder.grid.tau,
            "rows": encoder.grid.rows,
            "columns": encoder.grid.columns,
            "tubelet": list(encoder.grid.tubelet),
        },
        "width": encoder.width,
        "num_frames_read": encoder.num_frames,
        "keep_ratio": keep_ratio,
        "strategy": encoder.trunk.pruning.strategy,
        "clips": options.clips,
        "crops": options.crops,
        **section.model_dump(include=set(SAMPLING)),
        "pool": options.pool,
        "format": options.format,
        "store": options.store,
        "precision": str(dtype).removeprefix("torch."),
        "shard_videos": options.shard_videos,
    }
    told = {"weights": str(options.model), "source": weights.source, "origin": weights.origin.as_json()}
    return Extraction(encoder.to(device, dtype), section, asked, {**told, "manifest": manifest.name}, options)


def extract_shard(
    extraction: Extraction, manifest: Manifest, *, first: int, device: torch.device, label: str
) -> tuple[dict[str, np.ndarray], list[BadClip]]:
    """The arrays of the shard that begins with video `first`, and its unreadable videos."""
    options, encoder = extraction.options, extraction.encoder
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("features", "sample", "clip", "crop", "tubelets")}
    bad: dict[int, BadClip] = {}
    for batch in read_views(
        part_of(manifest, first, options.shard_videos),
        recipe_clip=extraction.section,
        num_clips=options.clips,
        num_crops=options.crops,
        num_frames=encoder.num_frames,
        micro_batch=choose_batch(options, on_gpu=device.type == "cuda"),
        device=device,
        num_workers=options.workers,
        label=label,
    ):
        bad |= {clip.sample: BadClip(clip.path, first + clip.sample, clip.reason) for clip in batch.clips.bad}
        arrays = encode(encoder, batch.clips.frames_BTHWC, pool=options.pool, store=options.store)
        for place, (view, is_readable) in enumerate(zip(batch.views, batch.readable, strict=True)):
            if view is None or not is_readable:
                continue
            for name, number in (("sample", first + view.sample), ("clip", view.clip), ("crop", view.crop)):
                rows[name].append(np.int64(number))
            for name, array in arrays.items():
                rows.setdefault(name, []).append(array[place])
    width = {"features": (0, encoder.width)}  # a shard without a single readable video still has its arrays
    stacked = {name: np.stack(found) if found else np.zeros(width.get(name, (0,)), options.store) for name, found in rows.items()}
    return stacked, [bad[sample] for sample in sorted(bad)]


def part_of(manifest: Manifest, first: int, count: int) -> Manifest:
    """`count` videos from number `first` on."""
    here = slice(first, first + count)
    spans = manifest.first_seconds_S[here], manifest.last_seconds_S[here]
    return Manifest(manifest.paths[here], manifest.label_S[here], *spans, manifest.name)


def encode(encoder: VideoEncoder, frames_BTHWC: torch.Tensor, *, pool: str, store: str) -> dict[str, np.ndarray]:
    """The arrays of a batch, first dimension B."""
    tokens = encoder.tokens(frames_BTHWC)
    arrays = {"tubelets": tokens.tubelets_BT}
    if pool == "mean":
        features = tokens.features_BD
    elif pool == "tubelet":
        means = average_tubelets(tokens, encoder.grid)
        features, arrays["count"] = means.mean_BTD, means.count_BT
    else:
        features, arrays["position"] = tokens.tokens_BKD, tokens.position_BK3.to(torch.int16)
    found = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    return {"features": features.float().cpu().numpy().astype(store), **found}


def shard_paths(out: Path, num_videos: int, options: argparse.Namespace) -> list[Path]:
    """The files of the shards, in their order."""
    num_shards = -(-num_videos // options.shard_videos)
    return [out / f"{SHARD}{number:05d}{SUFFIXES[options.format]}" for number in range(num_shards)]


def write_index(out: Path, manifest: Manifest, shards: list[Path], encoder: VideoEncoder) -> str:
    """index.csv: where the features of each view are; unreadable.csv. Returns what they hold, in words."""
    rows, bad, grid = [], [], encoder.grid
    for path in shards:
        shard = read_shard(path)
        bad += shard.bad
        places = zip(*(shard.arrays[name].tolist() for name in ("sample", "clip", "crop")), strict=True)
        for row, (sample, clip, crop) in enumerate(places):
            labelled = [manifest.paths[sample], int(manifest.label_S[sample]), sample, clip, crop]
            rows.append([*labelled, path.name, row, grid.tau, grid.rows, grid.columns])
    write_table(out / INDEX, INDEX_COLUMNS, rows)
    write_unreadable(out / UNREADABLE, bad)
    end_writing(out, (SETTINGS, *TABLES))
    note = f"; {len(bad)} unreadable, in whole or in part: see {UNREADABLE}" if bad else ""
    num_read = len({row[2] for row in rows})
    return f"{len(rows)} views of {num_read} videos (of {len(manifest)}) in {len(shards)} shards below {out}{note}"


def extract(options: argparse.Namespace) -> None:
    """Everything on this rank; rank 0 alone takes the folder and writes the index."""
    place = join_ranks(options.device)
    out = Path(options.out)
    advice = f"{ADVICE} in {out}"
    do_on_first(partial(check_output_folder, out, command=COMMAND, is_ours=is_features_folder), place, advice=advice)
    manifest = read_manifest(options.manifest, root=options.root)
    extraction = settle(options, manifest, device=place.device)
    try:
        inputs = (options.manifest, options.model)
        begin = partial(begin_folder, out, asked=extraction.asked, told=extraction.told, tables=TABLES, inputs=inputs)
        do_on_first(begin, place, advice=advice)
        shards = shard_paths(out, len(manifest), options)
        find = partial(find_missing, shards[place.rank :: place.world_size], extraction.settings)
        found = gather_on_all(do_on_all(find, place, advice=advice), place)
        missing = sorted(path for paths in found for path in paths)
        if len(missing) < len(shards):
            logger.info("%d of %d shards are there and whole", len(shards) - len(missing), len(shards))
        mine = [shards.index(path) for path in missing[place.rank :: place.world_size]]
        do_on_all(partial(write_shards, shards, mine, manifest, extraction, place), place, advice=advice)
        told = do_on_first(partial(write_index, out, manifest, shards, extraction.encoder), place, advice=advice)
    finally:
        if place.rank == 0:
            release_folder(out)
    if place.rank == 0:
        say(told)


def find_missing(shards: list[Path], settings: str) -> list[Path]:
    """Those that are not there, torn, or made otherwise."""
    return [path for path in shards if not is_finished(path, settings)]


def write_shards(shards: list[Path], numbers: list[int], manifest: Manifest, extraction: Extraction, place: RankInfo) -> None:
    """Make the shards with these numbers."""
    for number in numbers:
        arrays, bad = extract_shard(
            extraction,
            manifest,
            first=number * extraction.options.shard_videos,
            device=place.device,
            label=f"shard {number + 1} of {len(shards)}" if place.rank == 0 else "",
        )
        write_shard(shards[number], Shard(arrays, extraction.settings, tuple(bad)))


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 done, 1 stopped by a fault, 2 unusable input or arguments."""
    options = parse_arguments(arguments)
    return run_script(lambda: extract(options), advice=ADVICE)


if __name__ == "__main__":
    leave(main())
