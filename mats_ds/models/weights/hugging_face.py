"""Hugging Face folders of VideoMAE: config.json beside model.safetensors or pytorch_model.bin, whole or in shards.

Version 4 of transformers calls the biases of queries and values `q_bias` and `v_bias`, version 5 `query.bias` and `value.bias`;
both are read. Written are version 4's names, which 5 maps to its own (checked with 5.23). transformers has no token selection:
its models encode every token. Its LayerNorms have the config's eps, but the last one (decoder.norm, fc_norm) always 1e-5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import read_text
from mats_ds.core.text import Lines
from mats_ds.core.token_grid import RGB_CHANNELS, TokenGrid
from mats_ds.models.model_spec import ModelSpec, dump_spec
from mats_ds.models.sizes import MLP_RATIO
from mats_ds.models.vit import IMAGENET_MEAN, IMAGENET_STD, UINT8_MAX
from mats_ds.models.weights.class_labels import Labels, read_labels
from mats_ds.models.weights.export_folder import CONFIG, PREPROCESSOR, SPEC_KEY, write_export
from mats_ds.models.weights.file_content import MAX_JSON_BYTES, check_content, unpickle
from mats_ds.models.weights.model_weights import Weights, as_float32, check_exportable, list_names, measure
from mats_ds.models.weights.native import copy_tensors, is_foreign
from mats_ds.models.weights.state_dict import PATCH_WEIGHT, from_convolution, reverse, to_convolution, translate

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LAST_NORM_EPS = 1e-5  # torch's default, which transformers leaves in decoder.norm and fc_norm
KEPT_FIELDS = ("strategy", "keep_ratio", "visible_ratio", "distance", "feature", "num_candidate_frames", "last_norm_eps")
ARCHITECTURES = {"pretrain": "VideoMAEForPreTraining", "classifier": "VideoMAEForVideoClassification", "encoder": "VideoMAEModel"}


def block_rows(ours: str, theirs: str) -> list[tuple[str, str]]:
    """The rows of a stack of blocks; `attention.attention.qkv` is what `join_projections` makes of three layers."""
    return [
        (f"{ours}.{{i}}.{inside}", f"{theirs}.{{i}}.{outside}")
        for inside, outside in (
            ("norm1.*", "layernorm_before.*"),
            ("attn.qkv.weight", "attention.attention.qkv.weight"),
            ("attn.qkv.q_bias", "attention.attention.q_bias"),
            ("attn.qkv.v_bias", "attention.attention.v_bias"),
            ("attn.proj.*", "attention.output.dense.*"),
            ("norm2.*", "layernorm_after.*"),
            ("mlp.fc1.*", "intermediate.dense.*"),
            ("mlp.fc2.*", "output.dense.*"),
        )
    ]


ROWS = [
    ("patch_embed.proj.*", "videomae.embeddings.patch_embeddings.projection.*"),
    *block_rows("encoder.blocks", "videomae.encoder.layer"),
    ("encoder.norm.*", "videomae.layernorm.*"),
    ("to_decoder.weight", "encoder_to_decoder.weight"),
    ("mask_token", "mask_token"),
    *block_rows("decoder.blocks", "decoder.decoder_layers"),
    ("decoder.norm.*", "decoder.norm.*"),
    ("head.*", "decoder.head.*"),
    ("fc_norm.*", "fc_norm.*"),
    ("class_head.*", "classifier.*"),
]


def read_hugging_face(folder: str | Path) -> Weights:
    """Read a folder. Raises ValueError for another model, or options of VideoMAE that ours does not have."""
    folder = Path(folder)
    config = read_config(folder)
    theirs = read_tensors(folder)
    if not any(name.startswith("videomae.") for name in theirs):  # an encoder that was saved alone
        theirs = {f"videomae.{name}": tensor for name, tensor in theirs.items()}
    renamed = translate(join_projections(theirs), reverse(ROWS))
    if renamed.unknown:
        raise ValueError(f"{folder} has {len(renamed.unknown)} tensors that VideoMAE has not: {list_names(renamed.unknown)}")
    state = as_float32(renamed.state)
    if PATCH_WEIGHT not in state:
        raise ValueError(f"{folder} has no patch embedding among its {len(theirs)} tensors")
    state[PATCH_WEIGHT] = from_convolution(state[PATCH_WEIGHT])
    sizes = measure(state, heads=config["num_attention_heads"], decoder_heads=config.get("decoder_num_attention_heads"))
    check_config(config, sizes["kind"], folder)
    grid = grid_of(config)
    selection = {"strategy": "tube", "keep_ratio": 1.0, "visible_ratio": 0.1} if sizes["kind"] != "classifier" else {}
    selection = selection or {"strategy": "mats", "keep_ratio": 1.0, "visible_ratio": 1.0}
    ours = config.get(SPEC_KEY) or {}
    fields = {"last_norm_eps": LAST_NORM_EPS, **selection, **{name: ours[name] for name in KEPT_FIELDS if name in ours}}
    labels = read_labels(config, sizes["num_classes"]) if sizes["kind"] == "classifier" else Labels()
    spec = ModelSpec(
        grid=grid,
        position_grid=grid,
        class_names=labels.names,
        norm_eps=config.get("layer_norm_eps", 1e-12),
        **sizes,
        **fields,
    )
    return Weights(spec, state, f"a Hugging Face folder ({ARCHITECTURES[spec.kind]})", (*labels.notes, *suspicions(state)))


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
        check_content(path)  # a Git LFS pointer, a web page: says so
        raise ValueError(f"{path} is no JSON: download it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(config).__name__}")
    if config.get("model_type") != "videomae":
        file = folder / WEIGHT_FILES[0]
        hint = f": its weights may have VideoMAE's own names, give {file}" if file.is_file() and is_foreign(file) else ""
        raise ValueError(f"{path} describes a {config.get('model_type')!r}, only videomae can be read{hint}")
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder under their own names."""
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise ValueError(f"{folder} has none of {', '.join(WEIGHT_FILES)}")
    files = [name]
    if name.endswith(".index.json"):
        named = parse_json(read_text(folder / name, max_bytes=MAX_JSON_BYTES, follows_links=True))["weight_map"].values()
        if strangers := [
            file for file in named if not isinstance(file, str) or Path(file).name != (file or None) or "\0" in file
        ]:
            raise ValueError(f"{folder / name} names a file that is not in this folder: {strangers[0]!r}")
        files = sorted(set(named))
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{folder / name} names {file}, which is not there: download the whole folder")
        check_content(path)
        try:
            tensors |= load_file(path) if path.suffix == ".safetensors" else unpickle(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read, it may be torn: {error}") from None
    return tensors


def check_config(config: Mapping[str, Any], kind: str, folder: Path) -> None:
    """Raises ValueError that lists every option of transformers' VideoMAE that ours does not have."""
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
        raise ValueError(Lines(f"{folder / CONFIG} describes a model that ours cannot be", *(f"  - {each}" for each in problems)))


def grid_of(config: Mapping[str, Any]) -> TokenGrid:
    height, width = pair(config.get("image_size", 224))
    rows, columns = pair(config.get("patch_size", 16))
    return TokenGrid(config.get("num_frames", 16), height, width, (config.get("tubelet_size", 2), rows, columns))


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def join_projections(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Query, key and value weights become one, and version 5's names of the biases version 4's."""
    joined = {}
    for name, tensor in state.items():
        head, found, leaf = name.rpartition(".attention.attention.")
        stem = head + found
        if leaf == "query.weight":
            parts = (state.get(f"{stem}{part}.weight") for part in ("query", "key", "value"))
            joined[f"{stem}qkv.weight"] = torch.cat([part for part in parts if part is not None])
        elif leaf in ("query.bias", "value.bias"):
            joined[f"{stem}{leaf[0]}_bias"] = tensor
        elif leaf not in ("key.weight", "value.weight") or not found:
            joined[name] = tensor
    return joined


def suspicions(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Early releases of transformers 5 read version 4's files without their query and value biases, and saved zeros."""
    biases = [tensor for name, tensor in state.items() if name.endswith(("q_bias", "v_bias"))]
    if biases and not any(bias.any() for bias in biases):
        return ["all query and value biases are zero: untrained weights, or a version 5 of transformers lost them on the way"]
    return []


def write_hugging_face(folder: str | Path, weights: Weights) -> list[str]:
    """Write a folder that `from_pretrained` loads; returns what a person should know about it.

    Raises ValueError for a model that transformers' VideoMAE cannot be, and for a folder that holds something else than an
    export of ours.
    """
    spec, folder = weights.spec, Path(folder)
    check_exportable(spec, "transformers")
    _, rows, columns = spec.grid.tubelet
    if spec.kind == "pretrain" and rows != columns:
        raise ValueError(f"transformers' decoder wants square patches, these are {rows} x {columns}")
    state = dict(weights.state)
    state[PATCH_WEIGHT] = to_convolution(state[PATCH_WEIGHT], spec.grid)
    renamed = translate(state, ROWS)
    assert not renamed.unknown, renamed.unknown
    theirs = split_projections(renamed.state)
    if spec.kind == "encoder":
        theirs = {name.removeprefix("videomae."): tensor for name, tensor in theirs.items()}
    trees = {CONFIG: make_config(spec), PREPROCESSOR: make_preprocessor(spec.grid)}
    texts = {name: json.dumps(tree, indent=2) + "\n" for name, tree in trees.items()}
    write_export(folder, texts=texts, save=lambda path, metadata: save_file(copy_tensors(theirs), path, metadata=metadata))
    notes = []
    if spec.kind == "classifier" and spec.keep_ratio < 1:
        notes.append(
            f"transformers encodes all {spec.grid.num_tokens} tokens, not {spec.keep_ratio:g} of them: it has no selection"
        )
    if spec.last_norm_eps != LAST_NORM_EPS and spec.kind != "encoder":
        notes.append(f"the last LayerNorm's eps is {spec.last_norm_eps:g} here and always {LAST_NORM_EPS:g} in transformers")
    return notes


def split_projections(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `join_projections`, with version 4's names."""
    split = {}
    for name, tensor in state.items():
        if name.endswith(".attention.attention.qkv.weight"):
            stem = name.removesuffix("qkv.weight")
            split |= {f"{stem}{part}.weight": rows for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def make_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json; `qkv_bias` is version 4's name, which 5 accepts. `mats_ds` holds what transformers has no word for."""
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
    """preprocessor_config.json: without it transformers would normalise with a mean and spread of 0.5."""
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
