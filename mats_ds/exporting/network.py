"""The model that is exported, of any weights: what `evaluate` and `extract` would run.

A classifier keeps the fraction of the tokens that it was trained with. Pre-trained weights become
an encoder that keeps their run's `keep_ratio` of the tokens by motion, as `extract --keep_ratio`
does; those of a mask that does not drop tokens (tube, random, running_cell) encode all.
"""

from __future__ import annotations

from dataclasses import replace

from mats_ds.core.format import format_count
from mats_ds.core.token_grid import KEEPING_STRATEGIES, count_tokens
from mats_ds.models.feature_extractor import VideoEncoder
from mats_ds.models.model_spec import ModelSpec
from mats_ds.models.sizes import MODEL_SIZES
from mats_ds.models.weights.load import load_encoder
from mats_ds.models.weights.model_weights import Weights
from mats_ds.planning.flops import step_flops

COMPARED_RATIOS = (0.3, 0.5, 0.6, 1.0)  # of the tables of costs: the paper's, and all


def open_network(weights: Weights, *, keep_ratio: float | None) -> VideoEncoder:
    """The encoder with the selection of the exported model; keep_ratio None: the training's.

    Raises ValueError for a fraction that keeps no token.
    """
    spec = weights.spec
    if keep_ratio is None:
        keep_ratio = spec.pruning.keep_ratio if spec.kind != "encoder" and spec.pruning.strategy in KEEPING_STRATEGIES else 1.0
    elif not 0 < keep_ratio <= 1:
        raise ValueError(f"--keep-ratio is above 0 and at most 1, got {keep_ratio:g}")
    if count_tokens(keep_ratio, spec.grid.num_tokens) < 1:
        raise ValueError(
            f"--keep-ratio {keep_ratio:g} of {format_count(spec.grid.num_tokens, 'token')} is no token at all: raise it"
        )
    changes = {"keep_ratio": keep_ratio, "visible_ratio": keep_ratio}
    if keep_ratio == 1:  # frames are selected by their kept tokens
        changes["num_candidate_frames"] = 0
    return load_encoder(weights, **changes)


def describe_network(network: VideoEncoder, spec: ModelSpec) -> ModelSpec:
    """The spec of the exported model: `spec` of the weights with the selection of the network; a
    classifier, or an encoder."""
    trunk = network.trunk
    kind = "classifier" if spec.kind == "classifier" else "encoder"
    return replace(spec, kind=kind, pruning=trunk.pruning, num_candidate_frames=trunk.candidate_grid.num_frames)


def list_costs(spec: ModelSpec) -> dict[float, float]:
    """GMACs of a clip by the fraction of tokens kept, from the planner; none for a size that it
    does not know."""
    if spec.size_name is None or spec.depth != MODEL_SIZES[spec.size_name].depth:
        return {}
    candidates = spec.num_candidate_frames // spec.grid.tubelet[0]
    candidate_grid = spec.grid.with_tau(candidates) if candidates > spec.grid.tau else None
    costs = {}
    for ratio in sorted({*COMPARED_RATIOS, spec.pruning.keep_ratio}):
        flops = step_flops(
            spec.size_name,
            spec.grid,
            pruning=spec.pruning.keeping(ratio),
            task="finetune",
            candidate_grid=candidate_grid if ratio < 1 else None,
            num_classes=spec.num_classes,
        )
        costs[ratio] = flops.forward_macs / 1e9
    return costs
