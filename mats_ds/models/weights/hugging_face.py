"""Hugging Face folders of VideoMAE: config.json with model.safetensors or pytorch_model.bin, in one
file or in shards.

Version 4 of transformers calls the biases of queries and values `q_bias` and `v_bias`, version 5
`query.bias` and `value.bias`; both are read. Written are version 4's names, which 5 maps to its own
(checked with 5.23). transformers has no token selection: its models encode every token. Its
LayerNorms have the config's eps, but the last one (decoder.norm, fc_norm) always 1e-5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mats_ds.core.format import format_count
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import read_text
from mats_ds.core.token_grid import TokenPruning
from mats_ds.models.model_spec import PRUNING_NAMES, ModelSpec
from mats_ds.models.weights.export_folder import CONFIG, PREPROCESSOR, SPEC_KEY, write_export
from mats_ds.models.weights.file_content import AGAIN, MAX_JSON_BYTES, check_content, unpickle
from mats_ds.models.weights.hugging_face_config import (
    ARCHITECTURES,
    WEIGHT_FILES,
    Labels,
    check_config,
    grid_of,
    make_config,
    make_preprocessor,
    read_config,
    read_labels,
)
from mats_ds.models.weights.model_weights import Weights, as_float32, check_exportable, list_names, measure
from mats_ds.models.weights.native import copy_tensors
from mats_ds.models.weights.state_dict import PATCH_WEIGHT, from_convolution, reverse, to_convolution, translate

LAST_NORM_EPS = 1e-5  # torch's default, which transformers leaves in decoder.norm and fc_norm
# for which transformers' config has no names
KEPT_FIELDS = (*PRUNING_NAMES, "num_candidate_frames", "last_norm_eps")


def block_rows(ours: str, theirs: str) -> list[tuple[str, str]]:
    """The rows of a stack of blocks; `attention.attention.qkv` is what `join_projections` makes of
    three layers."""
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
    """Read a folder. Raises ValueError for another model, or options of VideoMAE that ours does not
    have."""
    folder = Path(folder)
    config = read_config(folder)
    theirs = read_tensors(folder)
    if not any(name.startswith("videomae.") for name in theirs):  # an encoder that was saved alone
        theirs = {f"videomae.{name}": tensor for name, tensor in theirs.items()}
    renamed = translate(join_projections(theirs), reverse(ROWS))
    if renamed.unknown:
        raise ValueError(
            f"{folder} has {format_count(len(renamed.unknown), 'tensor')} that VideoMAE has not: {list_names(renamed.unknown)}"
        )
    state = as_float32(renamed.state)
    if PATCH_WEIGHT not in state:
        raise ValueError(f"{folder} has no patch embedding among its {format_count(len(theirs), 'tensor')}")
    state[PATCH_WEIGHT] = from_convolution(state[PATCH_WEIGHT])
    sizes = measure(state, heads=config["num_attention_heads"], decoder_heads=config.get("decoder_num_attention_heads"))
    check_config(config, sizes["kind"], folder)
    grid = grid_of(config)
    is_classifier = sizes["kind"] == "classifier"
    pruning = TokenPruning().keeping(1.0) if is_classifier else TokenPruning(strategy="tube", keep_ratio=1.0)
    ours = config.get(SPEC_KEY) or {}
    labels = read_labels(config, sizes["num_classes"]) if is_classifier else Labels()
    spec = ModelSpec(
        grid=grid,
        position_grid=grid,
        class_names=labels.names,
        pruning=pruning,
        norm_eps=config.get("layer_norm_eps", 1e-12),
        last_norm_eps=LAST_NORM_EPS,
        **sizes,
    ).with_options(**{name: ours[name] for name in KEPT_FIELDS if name in ours})
    return Weights(spec, state, f"a Hugging Face folder ({ARCHITECTURES[spec.kind]})", (*labels.notes, *suspicions(state)))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the folder under their own names."""
    name = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise ValueError(f"{folder} has none of {', '.join(WEIGHT_FILES)}: download the complete folder")
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
            raise ValueError(f"{folder / name} names {file}, which is not there: download the complete folder")
        check_content(path)
        try:
            tensors |= load_file(path) if path.suffix == ".safetensors" else unpickle(path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read, it may be torn ({error}): {AGAIN}") from None
    return tensors


def join_projections(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Query, key and value weights become one, and version 5's names of the biases version 4's."""
    joined = {}
    for name, tensor in state.items():
        head, marker, leaf = name.rpartition(".attention.attention.")
        stem = head + marker
        if leaf == "query.weight":
            parts = (state.get(f"{stem}{part}.weight") for part in ("query", "key", "value"))
            joined[f"{stem}qkv.weight"] = torch.cat([part for part in parts if part is not None])
        elif leaf in ("query.bias", "value.bias"):
            joined[f"{stem}{leaf[0]}_bias"] = tensor
        elif leaf not in ("key.weight", "value.weight") or not marker:
            joined[name] = tensor
    return joined


def suspicions(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Early releases of transformers 5 read version 4's files without their query and value biases,
    and saved zeros."""
    biases = [tensor for name, tensor in state.items() if name.endswith(("q_bias", "v_bias"))]
    if biases and not any(bias.any() for bias in biases):
        return ["all query and value biases are zero: untrained weights, or a version 5 of transformers lost them on the way"]
    return []


def write_hugging_face(folder: str | Path, weights: Weights) -> list[str]:
    """Write a folder that `from_pretrained` loads; returns notes for the user.

    Raises ValueError for a model that transformers' VideoMAE cannot be, and for a folder that holds
    something else than an export of ours.
    """
    spec, folder = weights.spec, Path(folder)
    theirs = rename_tensors(weights)
    trees = {CONFIG: make_config(spec), PREPROCESSOR: make_preprocessor(spec.grid)}
    texts = {name: json.dumps(tree, indent=2) + "\n" for name, tree in trees.items()}
    write_export(folder, texts=texts, save=lambda path, metadata: save_file(copy_tensors(theirs), path, metadata=metadata))
    notes = []
    if spec.kind == "classifier" and spec.pruning.keep_ratio < 1:
        keep = spec.pruning.keep_ratio
        notes.append(f"transformers encodes all {spec.grid.num_tokens:,} tokens, not {keep:g} of them: it has no selection")
    if spec.last_norm_eps != LAST_NORM_EPS and spec.kind != "encoder":
        notes.append(f"the last LayerNorm's eps is {spec.last_norm_eps:g} here and always {LAST_NORM_EPS:g} in transformers")
    return notes


def rename_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors under transformers' names. Raises ValueError for a model that transformers'
    VideoMAE cannot be."""
    spec = weights.spec
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
    return theirs


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
