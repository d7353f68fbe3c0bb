"""Frozen features of videos: arrays of a shard for extract.py, a set in memory for the probes.

Legend: B clips of a batch, T tubelets, K tokens of a clip, D width of the encoder, S videos, V
views of a video.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mats_ds.core.clips import BadClip
from mats_ds.core.format import format_count
from mats_ds.core.token_grid import count_tokens
from mats_ds.data.manifest import Manifest
from mats_ds.data.view_sampler import View
from mats_ds.evaluation.features.feature_store import FrozenSet
from mats_ds.evaluation.options import ViewPlan
from mats_ds.evaluation.probes import normalise_tokens
from mats_ds.evaluation.results import SHOWN_BAD
from mats_ds.models.feature_extractor import VideoEncoder, VideoTokens, average_tubelets
from mats_ds.models.weights.load import load_encoder
from mats_ds.models.weights.model_weights import Weights

logger = logging.getLogger("mats_ds")

# of the features that equal settings give; 1 (mats_ds 0.1) rounded position tables under bf16
VERSION = 2


@dataclass(frozen=True)
class EncodedViews:
    """The encoded clips of a batch. `rows`: (row of the batch, its view) for each readable view."""

    tokens: VideoTokens
    rows: list[tuple[int, View]]
    bad: tuple[BadClip, ...]


def open_encoder(weights: Weights, *, keep_ratio: float | None) -> VideoEncoder:
    """The encoder of the weights; keep_ratio None: a classifier's own, else all tokens.

    Raises ValueError for a fraction of the tokens that cannot be.
    """
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise ValueError(f"--keep_ratio is above 0 and at most 1, got {keep_ratio:g}")
    changes = {} if keep_ratio is None else {"keep_ratio": keep_ratio, "visible_ratio": keep_ratio}
    encoder = load_encoder(weights, **changes)
    if count_tokens(encoder.trunk.keep_ratio, encoder.grid.num_tokens) < 1:
        raise ValueError(f"--keep_ratio {keep_ratio} of {format_count(encoder.grid.num_tokens, 'token')} is no token at all")
    return encoder


def encode_views(encoder: VideoEncoder, manifest: Manifest, views: ViewPlan, *, label: str) -> Iterator[EncodedViews]:
    """All views of all videos, encoded once, batch by batch. `label`: of the progress display."""
    for batch in views.read(manifest, label=label):
        readable = zip(batch.views, batch.readable, strict=True)
        rows = [(row, view) for row, (view, is_readable) in enumerate(readable) if view is not None and is_readable]
        yield EncodedViews(encoder.tokens(batch.clips.frames_BTHWC), rows, batch.clips.bad)


def extract_shard(
    encoder: VideoEncoder, manifest: Manifest, views: ViewPlan, *, first: int, pool: str, store: str, label: str
) -> tuple[dict[str, np.ndarray], list[BadClip]]:
    """The arrays of a shard, one row per readable view, and its unreadable videos.

    manifest: the videos of the shard; `first` is the row of the first one in the full manifest.
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("features", "sample", "clip", "crop", "tubelets")}
    bad: dict[int, BadClip] = {}
    for batch in encode_views(encoder, manifest, views, label=label):
        bad |= {clip.sample: BadClip(clip.path, first + clip.sample, clip.reason) for clip in batch.bad}
        arrays = pool_tokens(batch.tokens, encoder, pool=pool, store=store)
        for row, view in batch.rows:
            for name, number in (("sample", first + view.sample), ("clip", view.clip), ("crop", view.crop)):
                rows[name].append(np.int64(number))
            for name, array in arrays.items():
                rows.setdefault(name, []).append(array[row])
    # a shard without a single readable video still has its arrays
    empty = {"features": (0, encoder.width)}
    stacked = {name: np.stack(values) if values else np.zeros(empty.get(name, (0,)), store) for name, values in rows.items()}
    return stacked, [bad[sample] for sample in sorted(bad)]


def pool_tokens(tokens: VideoTokens, encoder: VideoEncoder, *, pool: str, store: str) -> dict[str, np.ndarray]:
    """The arrays of a batch, first dimension B.

    pool: one feature per clip ("mean"), per tubelet ("tubelet") or per token ("none").
    """
    arrays = {"tubelets": tokens.tubelets_BT}
    if pool == "mean":
        features = tokens.features_BD
    elif pool == "tubelet":
        means = average_tubelets(tokens, encoder.grid)
        features, arrays["count"] = means.mean_BTD, means.count_BT
    else:
        features, arrays["position"] = tokens.tokens_BKD, tokens.position_BK3.to(torch.int16)
    on_host = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
    return {"features": features.float().cpu().numpy().astype(store), **on_host}


def extract_set(encoder: VideoEncoder, manifest: Manifest, views: ViewPlan, *, needs_tokens: bool, label: str) -> FrozenSet:
    """Features of the videos of which every view can be read; the others are logged.

    Raises ValueError if there are none.
    """
    num_tokens = count_tokens(encoder.trunk.keep_ratio, encoder.grid.num_tokens)
    pooled_SD = torch.zeros(len(manifest), encoder.width)
    shape = (len(manifest), views.num_views, num_tokens, encoder.width) if needs_tokens else (0,)
    tokens_SVKD = torch.empty(shape, dtype=torch.float16)
    num_read_S = torch.zeros(len(manifest), dtype=torch.int64)
    bad: dict[str, str] = {}
    for batch in encode_views(encoder, manifest, views, label=label):
        bad |= {clip.path: clip.reason for clip in batch.bad}
        features_BD = batch.tokens.features_BD.float().cpu()
        tokens_BKD = normalise_tokens(batch.tokens.tokens_BKD).half().cpu() if needs_tokens else None
        for row, view in batch.rows:
            pooled_SD[view.sample] += features_BD[row] / views.num_views
            num_read_S[view.sample] += 1
            if needs_tokens:
                tokens_SVKD[view.sample, view.clip * views.num_crops + view.crop] = tokens_BKD[row]
    for path, reason in list(bad.items())[:SHOWN_BAD]:
        logger.warning("left out: %s: %s", path, reason)
    if len(bad) > SHOWN_BAD:
        logger.warning("left out: %d more", len(bad) - SHOWN_BAD)
    sample_S = (num_read_S == views.num_views).nonzero()[:, 0]
    if len(sample_S) == 0:
        raise ValueError(
            f"of {format_count(len(manifest), 'video')} of {manifest.name} none can be read: {next(iter(bad.values()), '')}"
        )
    return FrozenSet(
        pooled_SD[sample_S],
        torch.from_numpy(manifest.label_S)[sample_S],
        sample_S,
        tokens_SVKD[sample_S].flatten(1, 2) if needs_tokens else None,
    )
