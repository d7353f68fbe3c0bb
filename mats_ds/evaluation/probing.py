"""Probe an encoder: fit classifiers to its features of one manifest, test them on another.

Features are extracted once and kept in the output folder. Nothing is chosen with the validation
set.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mats_ds.core.format import format_bytes, format_count, format_seconds, format_views
from mats_ds.core.run_dir import collect_versions
from mats_ds.core.storage.files import write_json
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import begin_writing, end_writing, refuse_losses
from mats_ds.core.storage.output_folder import check_output_folder, hold_output_folder, remove_parts
from mats_ds.core.text import say
from mats_ds.core.token_grid import count_tokens
from mats_ds.data.classes import count_shared_classes
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.shared_videos import refuse_shared
from mats_ds.evaluation.accuracy import measure_accuracy
from mats_ds.evaluation.features.feature_store import (
    FEATURES,
    RESULTS,
    FrozenSet,
    is_probe_folder,
    load_features,
    make_key,
    refuse_foreign_features,
    save_features,
)
from mats_ds.evaluation.features.features import VERSION, extract_set, open_encoder
from mats_ds.evaluation.options import ModelRequest, ViewPlan, plan_views, read_model_weights
from mats_ds.evaluation.probe_options import COMMAND, ProbeOptions
from mats_ds.evaluation.probes import (
    TEMPERATURE,
    apply_attentive_probe,
    fit_attentive_probe,
    fit_linear_probe,
    vote_of_neighbours,
)
from mats_ds.evaluation.results import ChanceLevel, ProbeResult
from mats_ds.models.feature_extractor import VideoEncoder
from mats_ds.models.model_spec import as_classifier, build_model
from mats_ds.models.weights.load import describe_weights
from mats_ds.models.weights.model_weights import Weights

logger = logging.getLogger("mats_ds")

TOKEN_BYTES, GIB = 2, 2**30


def probe(
    request: ModelRequest,
    *,
    train: str,
    val: str,
    root: str | None,
    out: Path | None,
    options: ProbeOptions,
    device: torch.device,
) -> None:
    """Run the probes, print the results and write them into `out`.

    Raises ValueError for videos, weights, options or a folder that cannot be used.
    """
    with ExitStack() as at_end:
        if out is not None:
            at_end.callback(release_folder, out)
            check_output_folder(out, command=COMMAND, is_ours=is_probe_folder)
            refuse_losses(out, [RESULTS], inputs=(train, val, request.path))
            refuse_foreign_features(out)
        train_set, val_set = read_manifest(train, root=root), read_manifest(val, root=root)
        num_classes = count_shared_classes(train_set, val_set)
        num_shared = refuse_shared(val_set, train_set, allowed=options.allow_overlap, fix="give --allow_overlap")
        weights = read_model_weights(request)
        fresh = {"fresh": with_fresh_weights(weights, seed=options.seed)} if options.baseline else {}
        say(*describe_weights(request.path, weights))
        if out is not None:
            hold_output_folder(out, command=COMMAND, is_ours=is_probe_folder)
            remove_parts(out, of=(*FEATURES, RESULTS).__contains__)
        results: list[ProbeResult] = []
        for name, subject in {"trained": weights, **fresh}.items():
            began = time.monotonic()
            encoder = open_encoder(subject, keep_ratio=options.keep_ratio)
            views = plan_views(request, weights, grid=encoder.grid, num_frames=encoder.num_frames, device=device)
            encoder.to(device, views.dtype)
            train_features, val_features = (
                get_features(encoder, subject, manifest, views, options, out=out, name=f"{part}-{name}")
                for part, manifest in (("train", train_set), ("val", val_set))
            )
            seconds, num_videos = time.monotonic() - began, len(val_features.label_S)
            counts = f"{len(train_features.label_S):,} train and {format_count(num_videos, 'val video')}"
            say(f"{name} weights: {encoder.width} features of {counts} in {format_seconds(seconds)}")
            sizes = dict(num_classes=num_classes, heads=subject.spec.heads)
            results += fit_probes(train_features, val_features, options, **sizes, weights_name=name, device=device)
        chance = ChanceLevel(num_classes, float(torch.bincount(val_features.label_S).max()) / num_videos)
        shown = f"{format_views(views.num_clips, views.num_crops)}, {views.describe_clips()}"
        say(f"measured on {format_count(num_videos, 'video')} of {val_set.name}: {shown}")
        say(chance.describe(), *(result.describe() for result in results))
        if out is None:
            return
        tree = {
            "model": request.path,
            "weights": weights.source,
            "weights_used": weights.used(),
            "origin": weights.origin.as_json(),
            "train": train,
            "val": val,
            "num_classes": num_classes,
            "chance": chance.as_json(),
            "views": {"clips": views.num_clips, "crops": views.num_crops, **views.section.model_dump(mode="json")},
            "keep_ratio": options.keep_ratio,
            "seed": options.seed,
            "results": [result.as_json() for result in results],
            "versions": collect_versions(),
            "also_trained_on": num_shared,
        }
        begin_writing(out, [RESULTS])
        write_json(out / RESULTS, tree, indent=2)
        end_writing(out, [RESULTS])
        say(f"written: {out / RESULTS}")


def with_fresh_weights(weights: Weights, *, seed: int) -> Weights:
    """The same model with newly initialised weights."""
    spec = as_classifier(weights.spec, num_classes=1) if weights.spec.kind == "encoder" else weights.spec
    torch.manual_seed(seed)
    return replace(weights, spec=spec, state=build_model(spec).state_dict(), source="fresh weights")


def get_features(
    encoder: VideoEncoder,
    weights: Weights,
    manifest: Manifest,
    views: ViewPlan,
    options: ProbeOptions,
    *,
    out: Path | None,
    name: str,
) -> FrozenSet:
    """The features kept in `out` if they are of the same weights, videos and views; else new
    ones."""
    needs_tokens = "attentive" in options.probes
    num_tokens = views.num_views * count_tokens(encoder.trunk.keep_ratio, encoder.grid.num_tokens)
    gib = len(manifest) * num_tokens * encoder.width * TOKEN_BYTES / GIB
    if needs_tokens and gib > options.token_gib:
        raise ValueError(
            f"the tokens of {manifest.name} take {format_bytes(gib * GIB)}, and --token_gib allows {options.token_gib:g} GiB: "
            "raise it, lower --keep_ratio or the number of views, or leave the attentive probe out (--probes knn linear)"
        )
    if out is None:
        return extract_set(encoder, manifest, views, needs_tokens=needs_tokens, label=name)
    path = out / f"{name}.safetensors"
    key = make_key(weights.state, manifest.paths, describe_settings(encoder, manifest, views))
    features = load_features(path, key=key, needs_tokens=needs_tokens)
    if features is None:
        features = extract_set(encoder, manifest, views, needs_tokens=needs_tokens, label=name)
        try:
            save_features(path, features, key=key)
        except OSError as error:  # the probes need no file
            logger.warning("the features are not kept for the next time: %s", error)
    return features


def describe_settings(encoder: VideoEncoder, manifest: Manifest, views: ViewPlan) -> Mapping[str, object]:
    """All that the features depend on beside the weights and the files of the videos."""
    return dict(
        version=VERSION,
        clips=views.section.model_dump(),
        views=[views.num_clips, views.num_crops],
        keep_ratio=encoder.trunk.keep_ratio,
        num_frames=encoder.num_frames,
        dtype=str(views.dtype),
        ranges=np.stack([manifest.first_seconds_S, manifest.last_seconds_S]).astype(str).tolist(),
        labels=manifest.label_S.tolist(),
    )


def fit_probes(
    train: FrozenSet,
    val: FrozenSet,
    options: ProbeOptions,
    *,
    num_classes: int,
    heads: int,
    weights_name: str,
    device: torch.device,
) -> Iterator[ProbeResult]:
    """Results of the probes, in the order of `options.probes`."""
    train_SD, val_QD, label_S = train.pooled_SD.to(device), val.pooled_SD.to(device), train.label_S.to(device)
    for kind in options.probes:
        began = time.monotonic()
        if kind == "knn":
            neighbours = dict(num_neighbours=options.neighbours, temperature=TEMPERATURE)
            scores_QC = vote_of_neighbours(val_QD, bank_SD=train_SD, label_S=label_S, num_classes=num_classes, **neighbours)
            settings = f"k {options.neighbours}, cosine, temperature {TEMPERATURE:g}"
        elif kind == "linear":
            linear = fit_linear_probe(train_SD, label_S, num_classes=num_classes)
            scores_QC, settings = linear(val_QD), f"weight decay {linear.decay:g}"
        else:
            fitted = fit_attentive_probe(train.tokens_SKD, label_S, heads=heads, num_classes=num_classes, seed=options.seed)
            scores_QC = apply_attentive_probe(fitted, val.tokens_SKD)
            settings = f"{train.tokens_SKD.shape[1]} tokens a video"
        accuracy = measure_accuracy(scores_QC.detach().cpu().numpy(), val.label_S.numpy())
        yield ProbeResult(kind, weights_name, accuracy.top1, settings, time.monotonic() - began)
