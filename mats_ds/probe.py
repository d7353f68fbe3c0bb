"""How good are frozen features? k-NN, linear and attentive probe of one encoder on labelled videos, in one command.

    python mats_ds/probe.py --model RUN_OR_FILE --train train.csv --val val.csv --out DIR [--baseline]

Reads top to bottom: open videos and encoder, extract features (once: they are kept in --out), probe, write. Nothing is chosen
with the validation set. Exit status: 0 done, 2 unusable input or arguments.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.proportion import Proportion
from mats_ds.core.run_dir import collect_versions
from mats_ds.core.storage.files import write_json
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import begin_writing, describe_fault, end_writing, refuse_losses
from mats_ds.core.storage.output_folder import check_output_folder, hold_output_folder, remove_parts
from mats_ds.core.text import log_to_stderr, say, tell_error
from mats_ds.core.token_grid import count_tokens
from mats_ds.data.classes import count_shared_classes
from mats_ds.data.loading.build import read_views
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.shared_videos import refuse_shared
from mats_ds.distributed.ranks import find_device, find_dtype
from mats_ds.evaluation.feature_store import (
    FEATURES,
    RESULTS,
    FrozenSet,
    is_probe_folder,
    load_features,
    make_key,
    refuse_foreign_features,
    save_features,
)
from mats_ds.evaluation.options import (
    add_model_options,
    choose_batch,
    describe_clips,
    describe_weights,
    find_clip_section,
    read_model_weights,
)
from mats_ds.evaluation.probes import (
    NUM_NEIGHBOURS,
    TEMPERATURE,
    apply_attentive_probe,
    fit_attentive_probe,
    fit_linear_probe,
    normalise_tokens,
    vote_of_neighbours,
)
from mats_ds.evaluation.results import ChanceLevel, ProbeResult
from mats_ds.models.feature_extractor import VideoEncoder
from mats_ds.models.model_spec import as_classifier, build_model
from mats_ds.models.weights.load import load_encoder
from mats_ds.models.weights.model_weights import Weights

logger = logging.getLogger("mats_ds")

DONE, UNUSABLE = 0, 2
COMMAND = "probe"
PROBES = ("knn", "linear", "attentive")
VERSION = 2  # of what the same settings give; 1 (version 0.1 of mats_ds) rounded position tables under bf16
TOKEN_BYTES, GIB = 2, 2**30
SHOWN_BAD = 5


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Probe frozen features of an encoder: k nearest neighbours, a linear and an attentive classifier.",
        epilog="Example: python mats_ds/probe.py --model runs/k400 --train train.csv --val val.csv --out probes/k400 --baseline",
    )
    parser.add_argument("--train", required=True, metavar="CSV", help="labelled videos to fit to: manifest or class folders")
    parser.add_argument("--val", required=True, metavar="CSV", help="labelled videos to test on")
    parser.add_argument("--out", metavar="DIR", help="keep features here for the next time, and write probe.json")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=list(PROBES), help="which ones (all)")
    parser.add_argument("--baseline", action="store_true", help="also probe the same model with fresh weights, to compare")
    parser.add_argument("--keep_ratio", type=float, metavar="R", help="share of tokens to encode (all; a classifier's own)")
    parser.add_argument("--neighbours", type=int, default=NUM_NEIGHBOURS, metavar="K", help="of k-NN (%(default)s)")
    parser.add_argument("--allow_overlap", action="store_true", help="only warn of videos that are in both manifests")
    parser.add_argument("--seed", type=int, default=0, help="of the attentive probe and of fresh weights (0)")
    parser.add_argument("--token_gib", type=float, default=8.0, metavar="GIB", help="memory that tokens may take (%(default)s)")
    add_model_options(parser, num_clips=1, num_crops=1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    log_to_stderr(logging.WARNING)
    logger.setLevel(logging.INFO)
    try:
        try:
            probe(options)
        finally:
            if options.out:
                release_folder(Path(options.out))
    except (ValueError, OSError) as error:  # OSError: --out cannot be written
        tell_error(describe_fault(error, options.out))
        return UNUSABLE
    return DONE


def probe(options: argparse.Namespace) -> None:
    """A whole run: every probe that was asked for, told in words and written into --out."""
    device = find_device(options.device)
    out = Path(options.out) if options.out else None
    if out is not None:
        check_output_folder(out, command=COMMAND, is_ours=is_probe_folder)
        refuse_losses(out, [RESULTS], inputs=(options.train, options.val, options.model))
        refuse_foreign_features(out)
    if options.neighbours < 1:
        raise ValueError(f"--neighbours is at least 1, got {options.neighbours}")
    train, val = read_manifest(options.train, root=options.root), read_manifest(options.val, root=options.root)
    num_classes = count_shared_classes(train, val)
    num_shared = refuse_shared(val, train, allowed=options.allow_overlap, fix="give --allow_overlap")
    weights = read_model_weights(options)
    subjects = {"trained": weights}
    if options.baseline:
        subjects["fresh"] = sample_fresh(weights, seed=options.seed)
    say(*describe_weights(options.model, weights))
    if out is not None:
        hold_output_folder(out, command=COMMAND, is_ours=is_probe_folder)
        remove_parts(out, of=(*FEATURES, RESULTS).__contains__)
    results: list[ProbeResult] = []
    for name, subject in subjects.items():
        encoder = open_encoder(subject, options, device)
        clips = find_clip_section(options, encoder.grid, weights)
        began = time.monotonic()
        fit_to, test_on = (
            get_features(encoder, subject, manifest, clips, options, name=f"{part}-{name}")
            for part, manifest in (("train", train), ("val", val))
        )
        say(
            f"{name} weights: {encoder.width} features of {len(fit_to.label_S)} train and {len(test_on.label_S)} val videos "
            f"in {time.monotonic() - began:.1f} s"
        )
        heads = subject.spec.heads
        results += run_probes(fit_to, test_on, options, num_classes=num_classes, heads=heads, name=name, device=device)
    chance = ChanceLevel(num_classes, float(torch.bincount(test_on.label_S).max()) / len(test_on.label_S))
    views = f"{options.clips} x {options.crops} views, {describe_clips(options, clips, weights)}"
    say(f"measured on {len(test_on.label_S)} videos of {val.name}: {views}")
    say(chance.describe(), *(result.describe() for result in results))
    if out is not None:
        told = as_json(options, weights, clips, results, chance) | {"also_trained_on": num_shared}
        begin_writing(out, [RESULTS])
        write_json(out / RESULTS, told, indent=2)
        end_writing(out, [RESULTS])
        say(f"written: {out / RESULTS}")


def sample_fresh(weights: Weights, *, seed: int) -> Weights:
    """The same model with fresh weights."""
    spec = as_classifier(weights.spec, num_classes=1) if weights.spec.kind == "encoder" else weights.spec
    torch.manual_seed(seed)
    return replace(weights, spec=spec, state=build_model(spec).state_dict(), source="fresh weights")


def open_encoder(weights: Weights, options: argparse.Namespace, device: torch.device) -> VideoEncoder:
    """The encoder on its device. Raises ValueError for a share of tokens that cannot be."""
    ratio = options.keep_ratio
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"--keep_ratio is above 0 and at most 1, got {ratio:g}")
    changes = {} if ratio is None else {"keep_ratio": ratio, "visible_ratio": ratio}
    encoder = load_encoder(weights, **changes)
    return encoder.to(device, find_dtype(options.precision, device))


def get_features(
    encoder: VideoEncoder, weights: Weights, manifest: Manifest, clips: ClipSection, options: argparse.Namespace, *, name: str
) -> FrozenSet:
    """The features that --out holds if they are of the same weights, videos and clips; else they are extracted, and kept."""
    needs_tokens = "attentive" in options.probes
    num_views = options.clips * options.crops
    num_tokens = num_views * count_tokens(encoder.trunk.keep_ratio, encoder.grid.num_tokens)
    gib = len(manifest) * num_tokens * encoder.width * TOKEN_BYTES / GIB
    if needs_tokens and gib > options.token_gib:
        raise ValueError(
            f"the tokens of {manifest.name} take {gib:.1f} GiB, and --token_gib allows {options.token_gib:g}: raise it, lower "
            "--keep_ratio or the number of views, or leave the attentive probe out (--probes knn linear)"
        )
    settings = dict(
        version=VERSION,
        clips=clips.model_dump(),
        views=[options.clips, options.crops],
        keep_ratio=encoder.trunk.keep_ratio,
        num_frames=encoder.num_frames,
        dtype=str(encoder.trunk.patch_embed.proj.weight.dtype),
        ranges=np.stack([manifest.first_seconds_S, manifest.last_seconds_S]).astype(str).tolist(),
        labels=manifest.label_S.tolist(),
    )
    path = Path(options.out) / f"{name}.safetensors" if options.out else None
    if path is None:
        return extract(encoder, manifest, clips, options, num_tokens=num_tokens, needs_tokens=needs_tokens, label=name)
    key = make_key(weights.state, manifest.paths, settings)
    found = load_features(path, key=key, needs_tokens=needs_tokens)
    if found is None:
        found = extract(encoder, manifest, clips, options, num_tokens=num_tokens, needs_tokens=needs_tokens, label=name)
        try:
            save_features(path, found, key=key)
        except OSError as error:  # the probes need no file
            logger.warning("the features are not kept for the next time: %s", error)
    return found


def extract(
    encoder: VideoEncoder,
    manifest: Manifest,
    clips: ClipSection,
    options: argparse.Namespace,
    *,
    num_tokens: int,
    needs_tokens: bool,
    label: str,
) -> FrozenSet:
    """Encode every view once. A video with a view that cannot be read is named and left out; ValueError if none is left."""
    num_views = options.clips * options.crops
    pooled_SD = torch.zeros(len(manifest), encoder.width)
    shape = (len(manifest), num_views, num_tokens // num_views, encoder.width)
    tokens_SVKD = torch.empty(shape if needs_tokens else (0,), dtype=torch.float16)
    num_read_S = torch.zeros(len(manifest), dtype=torch.int64)
    bad = {}
    for batch in read_views(
        manifest,
        recipe_clip=clips,
        num_clips=options.clips,
        num_crops=options.crops,
        num_frames=encoder.num_frames,
        micro_batch=choose_batch(options, on_gpu=encoder.device.type == "cuda"),
        device=encoder.device,
        num_workers=options.workers,
        label=label,
    ):
        bad |= {clip.path: clip.reason for clip in batch.clips.bad}
        encoded = encoder.tokens(batch.clips.frames_BTHWC)
        features_BD = encoded.features_BD.float().cpu()
        tokens_BKD = normalise_tokens(encoded.tokens_BKD).half().cpu() if needs_tokens else None
        for row, view in enumerate(batch.views):
            if view is None or not batch.readable[row]:
                continue
            pooled_SD[view.sample] += features_BD[row] / num_views
            num_read_S[view.sample] += 1
            if needs_tokens:
                tokens_SVKD[view.sample, view.clip * options.crops + view.crop] = tokens_BKD[row]
    for path, reason in list(bad.items())[:SHOWN_BAD]:
        logger.warning("left out: %s: %s", path, reason)
    if len(bad) > SHOWN_BAD:
        logger.warning("left out: %d more", len(bad) - SHOWN_BAD)
    whole_S = (num_read_S == num_views).nonzero()[:, 0]
    if len(whole_S) == 0:
        raise ValueError(f"not one of {len(manifest)} videos of {manifest.name} can be read: {next(iter(bad.values()), '')}")
    return FrozenSet(
        pooled_SD[whole_S],
        torch.from_numpy(manifest.label_S)[whole_S],
        whole_S,
        tokens_SVKD[whole_S].flatten(1, 2) if needs_tokens else None,
    )


def run_probes(
    train: FrozenSet,
    val: FrozenSet,
    options: argparse.Namespace,
    *,
    num_classes: int,
    heads: int,
    name: str,
    device: torch.device,
) -> Iterator[ProbeResult]:
    """Every probe that was asked for, in their order."""
    train_SD, val_QD, label_S = train.pooled_SD.to(device), val.pooled_SD.to(device), train.label_S.to(device)
    for kind in (kind for kind in PROBES if kind in options.probes):
        began = time.monotonic()
        if kind == "knn":
            neighbours = dict(num_neighbours=options.neighbours, temperature=TEMPERATURE)
            scores_QC = vote_of_neighbours(val_QD, bank_SD=train_SD, label_S=label_S, num_classes=num_classes, **neighbours)
            told = f"k {options.neighbours}, cosine, temperature {TEMPERATURE:g}"
        elif kind == "linear":
            linear = fit_linear_probe(train_SD, label_S, num_classes=num_classes)
            scores_QC, told = linear(val_QD), f"weight decay {linear.decay:g}"
        else:
            fitted = fit_attentive_probe(train.tokens_SKD, label_S, heads=heads, num_classes=num_classes, seed=options.seed)
            scores_QC = apply_attentive_probe(fitted, val.tokens_SKD)
            told = f"{train.tokens_SKD.shape[1]} tokens a video"
        hits = int((scores_QC.argmax(dim=1).cpu() == val.label_S).sum())
        yield ProbeResult(kind, name, Proportion(hits, len(val.label_S)), told, time.monotonic() - began)


def as_json(
    options: argparse.Namespace, weights: Weights, clips: ClipSection, results: list[ProbeResult], chance: ChanceLevel
) -> dict[str, object]:
    """What probe.json says."""
    return {
        "model": str(options.model),
        "weights": weights.source,
        "origin": weights.origin.as_json(),
        "train": str(options.train),
        "val": str(options.val),
        "num_classes": chance.num_classes,
        "chance": chance.as_json(),
        "views": {"clips": options.clips, "crops": options.crops, **clips.model_dump(mode="json")},
        "keep_ratio": options.keep_ratio,
        "seed": options.seed,
        "results": [result.as_json() for result in results],
        "versions": collect_versions(),
    }


if __name__ == "__main__":
    leave(run_script(main))
