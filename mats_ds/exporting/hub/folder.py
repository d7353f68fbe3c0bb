"""Write a Hugging Face folder whose `AutoModel` selects tokens, and whose weights transformers' own
VideoMAE classes load as a model of all tokens.

One set of weights serves both: config.json is VideoMAE's, with the options of the selection beside
(`keep_ratio`, `token_selection`), and names our code for `AutoModel` in its `auto_map`. Without
`trust_remote_code` transformers ignores that and takes its own classes. Weights of pre-training
keep their decoder, for `VideoMAEForPreTraining`. As with `--to hf`, `mats` reads such a folder
again.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mats_ds.exporting.hub.card import CARD, CardFacts, check_card, write_card
from mats_ds.exporting.hub.remote_code import CODE_FILES
from mats_ds.models.model_spec import ModelSpec
from mats_ds.models.weights.export_folder import CONFIG, PREPROCESSOR, write_export
from mats_ds.models.weights.hugging_face import LAST_NORM_EPS, rename_tensors
from mats_ds.models.weights.hugging_face_config import make_config, make_preprocessor
from mats_ds.models.weights.model_weights import Weights
from mats_ds.models.weights.native import copy_tensors

REMOTE_CODE = "mats_ds.exporting.hub.remote_code"
BASE = "videomae."  # transformers' prefix of the encoder's tensors
DEFAULT_STRIDE = 4  # VideoMAE's and MATS's on Kinetics (arXiv 2211.10636)
SELECTION_NAMES = ("strategy", "distance", "feature", "compensate_camera", "run_threshold", "merge_dropped")


def write_hub(folder: Path, weights: Weights, *, network: ModelSpec, facts: CardFacts) -> list[str]:
    """Write the folder; returns notes for the user. network: the encoder with its selection, as
    `describe_network` gives it.

    Raises ValueError for a model that transformers' VideoMAE cannot be, and for a folder that holds
    something else than an export of ours.
    """
    check_card(folder)
    tensors = rename_tensors(weights)
    if weights.spec.kind == "encoder":
        tensors = {f"{BASE}{name}": tensor for name, tensor in tensors.items()}
    has_norm = f"{BASE}layernorm.weight" in tensors
    config = make_hub_config(weights.spec, network, has_norm=has_norm)
    trees = {CONFIG: config, PREPROCESSOR: make_hub_preprocessor(network, weights.origin.clip)}
    code = {name: (resources.files(REMOTE_CODE) / name).read_text(encoding="utf-8") for name in CODE_FILES}
    texts = {**code, CARD: write_card(facts), **{name: json.dumps(tree, indent=2) + "\n" for name, tree in trees.items()}}
    write_export(folder, texts=texts, save=lambda path, metadata: save_file(copy_tensors(tensors), path, metadata=metadata))
    notes = []
    if weights.spec.kind == "classifier" and weights.spec.last_norm_eps != LAST_NORM_EPS:
        notes.append(
            f"VideoMAEForVideoClassification has an eps of {LAST_NORM_EPS:g} in its last LayerNorm, AutoModel's classes the "
            f"{weights.spec.last_norm_eps:g} of the training"
        )
    if network.num_candidate_frames > network.grid.num_frames:
        notes.append(
            f"AutoModel's classes read {network.num_candidate_frames} frames and select {network.grid.num_frames} of them; "
            f"VideoMAE's read {network.grid.num_frames}"
        )
    return notes


def make_hub_config(spec: ModelSpec, network: ModelSpec, *, has_norm: bool) -> dict[str, Any]:
    """config.json: VideoMAE's, the options of the selection, and where the code is."""
    is_classifier = spec.kind == "classifier"
    # an encoder that was saved without its last norm has none, and transformers calls that so
    config = {**make_config(spec), "use_mean_pooling": is_classifier or not has_norm}
    code = CODE_FILES[0].removesuffix(".py")
    config["auto_map"] = {"AutoModel": f"{code}.MatsModel"}
    if is_classifier:
        config["auto_map"]["AutoModelForVideoClassification"] = f"{code}.MatsForVideoClassification"
    config["keep_ratio"] = network.pruning.keep_ratio
    config["token_selection"] = {
        **{name: getattr(network.pruning, name) for name in SELECTION_NAMES},
        "num_candidate_frames": max(network.num_candidate_frames, network.grid.num_frames),
        "fc_norm_eps": spec.last_norm_eps if is_classifier else None,
    }
    return config


def make_hub_preprocessor(network: ModelSpec, clip: Any) -> dict[str, Any]:
    """preprocessor_config.json: VideoMAE's, what our processor needs beside, and where it is. clip:
    the sampling of the training, as far as it is known."""
    code = f"{CODE_FILES[1].removesuffix('.py')}.MatsImageProcessor"
    return {
        **make_preprocessor(network.grid),
        "auto_map": {"AutoImageProcessor": code, "AutoVideoProcessor": code},
        "num_frames": max(network.num_candidate_frames, network.grid.num_frames),
        "span": network.grid.num_frames * clip.get("stride", DEFAULT_STRIDE),
        "span_seconds": None if clip.get("stride_seconds") is None else network.grid.num_frames * clip["stride_seconds"],
        "sampling": clip.get("sampling", "dense"),
    }
