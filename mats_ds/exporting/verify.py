"""Compare an export with our own model: random clips through both -> the largest difference of
logits or features.

A clip that keeps other tokens counts: its outputs differ by more than rounding.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from mats_ds.exporting.network import open_network
from mats_ds.exporting.programs.network_program import INPUT, example_frames
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD, UINT8_MAX
from mats_ds.models.weights.load import load_model
from mats_ds.models.weights.model_weights import Weights
from mats_ds.models.weights.verify import Difference, measure_difference

# the package that runs an export
RUNNERS = {"hub": "transformers", "onnx": "onnxruntime", "export": "torch"}


@torch.no_grad()
def compare_export(path: Path, weights: Weights, *, target: str, keep_ratio: float | None, batch: int) -> Difference | None:
    """None where the package that runs it is not installed."""
    if find_spec(RUNNERS[target]) is None:
        return None
    network = open_network(weights, keep_ratio=keep_ratio)
    frames_BTHWC = example_frames(network, batch=batch)
    ours = network(frames_BTHWC)
    if weights.spec.kind == "classifier":
        ours = load_model(weights).class_head(ours)
    runner = {"hub": run_hub, "onnx": run_onnx, "export": run_program}[target]
    return measure_difference(ours, runner(path, frames_BTHWC, keep_ratio))


def run_program(path: Path, frames_BTHWC: torch.Tensor, keep_ratio: float | None) -> torch.Tensor:
    with path.open("rb") as file:
        return torch.export.load(file).module()(frames_BTHWC)[0]


def run_onnx(path: Path, frames_BTHWC: torch.Tensor, keep_ratio: float | None) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {INPUT: frames_BTHWC.numpy()})[0])


def run_hub(folder: Path, frames_BTHWC: torch.Tensor, keep_ratio: float | None) -> torch.Tensor:
    """The folder's own code, which is the code of this package."""
    from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pixels = (frames_BTHWC / UINT8_MAX - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    is_classifier = "AutoModelForVideoClassification" in AutoConfig.from_pretrained(folder).auto_map
    auto = AutoModelForVideoClassification if is_classifier else AutoModel
    output = auto.from_pretrained(folder, trust_remote_code=True).eval()(pixels.movedim(-1, 2))
    return output.logits if is_classifier else output.pooler_output
