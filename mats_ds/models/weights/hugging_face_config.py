"""config.json of a Hugging Face folder of VideoMAE <-> ModelSpec: sizes, options that ours does not
have, names of classes.

Both versions 4 and 5 of transformers read the config that is written (checked with 5.23).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mats_ds.core.format import format_count
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.text import Lines
from mats_ds.core.token_grid import RGB_CHANNELS, TokenGrid
from mats_ds.models.model_spec import ModelSpec, dump_spec
from mats_ds.models.sizes import MLP_RATIO
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD, UINT8_MAX
from mats_ds.models.weights.export_folder import CONFIG, SPEC_KEY
from mats_ds.models.weights.file_content import MAX_JSON_BYTES, check_content
from mats_ds.models.weights.native import is_videomae_file

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ARCHITECTURES = {"pretrain": "VideoMAEForPreTraining", "classifier": "VideoMAEForVideoClassification", "encoder": "VideoMAEModel"}


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}: this is no Hugging Face model")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, expected {MAX_JSON_BYTES:,} at most: download it again")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = parse_json(text)
    except ValueError:
        check_content(path)  # raises for a Git LFS pointer or a web page
        raise ValueError(f"{path} is no JSON: download it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    if config.get("model_type") != "videomae":
        file = folder / WEIGHT_FILES[0]
        hint = f": its weights may have VideoMAE's own names, give {file}" if file.is_file() and is_videomae_file(file) else ""
        raise ValueError(f"{path} describes a {config.get('model_type')!r}, only videomae can be read{hint}")
    return config


def check_config(config: Mapping[str, Any], kind: str, folder: Path) -> None:
    """Raises ValueError that lists every option of transformers' VideoMAE that ours does not
    have."""
    problems = [
        f"{name} is {config[name]!r}, only {wanted!r} is supported"
        for name, wanted in {"num_channels": RGB_CHANNELS, "hidden_act": "gelu", "qkv_bias": True, "qv_bias": True}.items()
        if config.get(name, wanted) != wanted
    ]
    pooled = config.get("use_mean_pooling", True)
    if kind == "classifier" and not pooled:
        problems.append("use_mean_pooling is false: it classifies the first token, only mean pooling is supported")
    if kind == "pretrain" and not config.get("norm_pix_loss", True):
        problems.append("norm_pix_loss is false: it predicts plain pixels, ours predicts normalised ones")
    if problems:
        raise ValueError(
            Lines(f"{folder / CONFIG} describes a model that ours cannot be", *(f"  - {problem}" for problem in problems))
        )


def grid_of(config: Mapping[str, Any]) -> TokenGrid:
    height, width = pair(config.get("image_size", 224))
    rows, columns = pair(config.get("patch_size", 16))
    return TokenGrid(config.get("num_frames", 16), height, width, (config.get("tubelet_size", 2), rows, columns))


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@dataclass(frozen=True)
class Labels:
    """`names` in the order of the head's rows, none where they are not known, and notes about
    them."""

    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_labels(config: Mapping[str, Any], num_classes: int) -> Labels:
    """The names of the head's rows by their ids; rows without one are called `LABEL_3` as
    transformers does, and noted.

    No names where all are LABEL_0, LABEL_1, ..., or where the ids are no numbers.
    """
    table = config.get("id2label") or {}
    if not isinstance(table, Mapping):
        return Labels((), (f"id2label is a {type(table).__name__}, expected an object: the classes have no names",))
    named = {int(key): str(name) for key, name in table.items() if re.fullmatch(r"-?\d{1,9}", str(key).strip())}
    notes = []
    if len(named) < len(table):
        strange = next(key for key in table if not re.fullmatch(r"-?\d{1,9}", str(key).strip()))
        notes.append(
            f"id2label has {format_count(len(table) - len(named), 'id')} not written as an integer, such as {strange!r}: left out"
        )
    outside = sorted(label for label in named if not 0 <= label < num_classes)
    if outside:
        notes.append(
            f"id2label names {format_count(len(outside), 'class')} that the head of {num_classes:,} has not, "
            f"such as {outside[0]}: left out"
        )
    missing = [label for label in range(num_classes) if label not in named]
    if missing and len(missing) < num_classes:
        notes.append(
            f"id2label has no name for {len(missing):,} of {format_count(num_classes, 'class')}, "
            f"such as {missing[0]}: called LABEL_{missing[0]}"
        )
    names = tuple(named.get(label, f"LABEL_{label}") for label in range(num_classes))
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return Labels((), tuple(notes))
    return Labels(names, tuple(notes))


def make_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json; `qkv_bias` is version 4's name, which 5 accepts. `mats_ds` holds what
    transformers' config has no name for."""
    grid = spec.grid
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[spec.kind]],
        "model_type": "videomae",
        "image_size": grid.height if grid.height == grid.width else [grid.height, grid.width],
        "patch_size": grid.tubelet[1] if grid.tubelet[1] == grid.tubelet[2] else list(grid.tubelet[1:]),
        "num_channels": RGB_CHANNELS,
        "num_frames": grid.num_frames,
        "tubelet_size": grid.tubelet[0],
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "intermediate_size": MLP_RATIO * spec.width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": spec.norm_eps,
        "qkv_bias": True,
        "use_mean_pooling": spec.kind == "classifier",
        "norm_pix_loss": True,
        SPEC_KEY: dump_spec(spec),
    }
    if spec.kind == "pretrain":
        config |= {
            "decoder_hidden_size": spec.decoder_width,
            "decoder_num_hidden_layers": spec.decoder_depth,
            "decoder_num_attention_heads": spec.decoder_heads,
            "decoder_intermediate_size": MLP_RATIO * spec.decoder_width,
        }
    if spec.kind == "classifier":
        names = spec.class_names or tuple(f"LABEL_{label}" for label in range(spec.num_classes))
        config["id2label"] = {str(label): name for label, name in enumerate(names)}
        config["label2id"] = {name: label for label, name in enumerate(names)}
    return config


def make_preprocessor(grid: TokenGrid) -> dict[str, Any]:
    """preprocessor_config.json: without it transformers would normalise with a mean and spread of
    0.5."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(grid.height, grid.width)},
        "do_center_crop": True,
        "crop_size": {"height": grid.height, "width": grid.width},
        "do_rescale": True,
        "rescale_factor": 1 / UINT8_MAX,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 2,
    }
