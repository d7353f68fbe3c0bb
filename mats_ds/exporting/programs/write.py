"""Weights -> a program of fixed shapes in one file: torch.export (.pt2) or ONNX (.onnx).

Input `frames`: uint8 RGB [B, T, H, W, 3], as decoders give them: a quarter of the bytes of floats,
and no normalisation that a user could get wrong. Outputs: `logits` [B, classes] of a classifier or
`features` [B, D], and `kept_tokens` [B, K] int64. What a program is, is in its metadata under
`mats_ds`, as JSON; of an ONNX file by `session.get_modelmeta()`, of a torch.export program as the
extra file `mats_ds.json`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mats_ds.core.events import RunInfo
from mats_ds.core.storage.files import replace_file
from mats_ds.core.token_grid import count_tokens
from mats_ds.exporting.network import open_network
from mats_ds.exporting.programs.network_program import INPUT, KEPT, NetworkProgram, example_frames
from mats_ds.exporting.programs.onnx_program import OPSET, save_onnx
from mats_ds.models.feature_extractor import VideoEncoder
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD
from mats_ds.models.weights.load import load_model
from mats_ds.models.weights.model_weights import Weights

METADATA = "mats_ds"  # the key in an ONNX file; with .json the extra file of a torch.export program
LOGITS, FEATURES = "logits", "features"


def export_program(
    path: Path, weights: Weights, *, target: str, keep_ratio: float | None, batch: int, run: RunInfo | None = None
) -> list[str]:
    """Write the file; returns lines that describe it. target: "export" or "onnx". run: of the
    weights, if it is known.

    Raises ValueError for a fraction that keeps no token and for what the format cannot hold.
    """
    network, module = make_program(weights, keep_ratio=keep_ratio)
    frames_BTHWC = example_frames(network, batch=batch)
    with torch.no_grad():
        program = torch.export.export(module, (frames_BTHWC,), strict=False)
    about = describe_program(weights, network, batch=batch, run=run)
    text = json.dumps(about)
    with replace_file(path) as aside:
        if target == "onnx":
            save_onnx(program, aside, inputs=[INPUT], outputs=about["outputs"], metadata={METADATA: text})
        else:
            with aside.open("wb") as file:
                torch.export.save(program, file, extra_files={f"{METADATA}.json": text})
    shape = " x ".join(map(str, about["input_shape"]))
    return [
        f"input {INPUT}: uint8 RGB, {shape} (batch, frames, height, width, colours)",
        f"outputs {' and '.join(about['outputs'])}; {about['num_kept_tokens']:,} of {about['num_tokens']:,} tokens are kept",
    ]


def make_program(weights: Weights, *, keep_ratio: float | None) -> tuple[VideoEncoder, NetworkProgram]:
    """The network and the module that is traced, both in evaluation mode, in float32."""
    network = open_network(weights, keep_ratio=keep_ratio)
    head: nn.Module | None = None
    if weights.spec.kind == "classifier":
        head = copy.deepcopy(load_model(weights).class_head)
    return network, NetworkProgram(network, head).eval().requires_grad_(False)


def describe_program(weights: Weights, network: VideoEncoder, *, batch: int, run: RunInfo | None) -> dict[str, Any]:
    """The metadata of a program; no path of a file."""
    grid, candidates, pruning = network.grid, network.trunk.candidate_grid, network.trunk.pruning
    is_classifier = weights.spec.kind == "classifier"
    return {
        "version": 1,
        "input": INPUT,
        "input_shape": [batch, candidates.num_frames, grid.height, grid.width, 3],
        "input_type": "uint8 RGB, 0 to 255, [batch, frames, height, width, colours]",
        "outputs": [LOGITS if is_classifier else FEATURES, KEPT],
        "normalisation": {"inside": True, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "strategy": pruning.strategy,
        "keep_ratio": pruning.keep_ratio,
        "num_tokens": grid.num_tokens,
        "num_kept_tokens": count_tokens(pruning.keep_ratio, grid.num_tokens),
        "sampling": dict(weights.origin.clip),
        "classes": list(weights.spec.class_names),
        "num_classes": weights.spec.num_classes,
        "recipe": None if run is None else run.recipe_name,
        "step": weights.origin.step,
        "averaged": weights.origin.averaged,
        "onnx_opset": OPSET,
        "torch": torch.__version__,
    }
