"""The `.pth` files of VideoMAE (arXiv 2203.12602) and EVEREST (arXiv 2211.10636), which use the
same names.

Pre-training: `encoder.patch_embed`, `encoder.blocks`, `encoder.norm`, `encoder_to_decoder`,
`mask_token`, `decoder.blocks`, `decoder.norm`, `decoder.head`. Fine-tuning: `patch_embed`,
`blocks`, `fc_norm`, `head`. `args` (an argparse.Namespace), where it is there, holds the clip and
the masking. Related checkpoints are read, too (videomae_variants.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mats_ds.core.format import format_count
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import replace_file
from mats_ds.core.token_grid import TokenGrid, TokenPruning
from mats_ds.models.layers import NORM_EPS
from mats_ds.models.model_spec import ModelSpec, dump_spec, parse_spec
from mats_ds.models.weights.file_content import AGAIN, check_content, unpickle
from mats_ds.models.weights.model_weights import (
    Weights,
    advise_sizes,
    as_float32,
    check_exportable,
    guess_grid,
    list_names,
    measure,
)
from mats_ds.models.weights.state_dict import PATCH_WEIGHT, block_rows, from_convolution, reverse, to_convolution, translate
from mats_ds.models.weights.videomae_variants import convert_variant

PRETRAIN_ROWS = [
    ("patch_embed.proj.*", "encoder.patch_embed.proj.*"),
    *block_rows("encoder.blocks", "encoder.blocks"),
    ("encoder.norm.*", "encoder.norm.*"),
    ("to_decoder.weight", "encoder_to_decoder.weight"),
    ("mask_token", "mask_token"),
    *block_rows("decoder.blocks", "decoder.blocks"),
    ("decoder.norm.*", "decoder.norm.*"),
    ("head.*", "decoder.head.*"),
]
FINETUNE_ROWS = [
    ("patch_embed.proj.*", "patch_embed.proj.*"),
    *block_rows("encoder.blocks", "blocks"),
    ("encoder.norm.*", "norm.*"),
    ("fc_norm.*", "fc_norm.*"),
    ("class_head.*", "head.*"),
]
SPEC_KEY = "mats_ds"
SHOWN_KEYS = 400
MAX_SIDE = 100_000  # frames of a clip, or pixels of a side
# of the published models with tubelets of one frame: Unmasked Teacher, arXiv 2303.16058
UMT_FRAMES = 8


@dataclass(frozen=True)
class Renamed:
    """`state`: float32 tensors under our names. `num_positions`: rows of a saved table of
    positions, None without one."""

    state: dict[str, torch.Tensor]
    tubelet: tuple[int, int, int]
    num_positions: int | None
    notes: list[str]


def read_videomae(
    path: str | Path,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> Weights:
    """Read a checkpoint. Sizes that are given win over those in `args`; without either, clips are
    16 x 224 x 224.

    Raises ValueError for a file that cannot be read without running its code, or that holds weights
    of another model.
    """
    content = read_content(Path(path))
    renamed = rename_state(content, path)
    state = renamed.state
    if isinstance(content.get(SPEC_KEY), str):  # written by us
        spec = parse_spec(parse_json(content[SPEC_KEY]))
        sizes = measure(state, heads=spec.heads, decoder_heads=spec.decoder_heads)
        spec = replace(spec, **sizes, norm_eps=NORM_EPS, last_norm_eps=NORM_EPS)
        return Weights(spec, state, "a checkpoint for VideoMAE, written by mats_ds")
    sizes = measure(state, heads=heads, decoder_heads=decoder_heads)
    source = f"a {'fine-tuning' if sizes['kind'] == 'classifier' else 'pre-training'} checkpoint of VideoMAE or EVEREST"
    arguments = as_dict(content.get("args"))
    frames, segments, side = (count_in(arguments, name, path) for name in ("num_frames", "num_segments", "input_size"))
    frames = frames and frames * (segments or 1)
    known = {"num_frames": num_frames or frames, "height": height or side, "width": width or side}
    grid = guess_clip(renamed, known, path)
    notes = list(renamed.notes)
    if not arguments and not (num_frames and height and width):
        notes.append(f"the file does not hold its clip: {grid.num_frames} frames of {grid.height} x {grid.width} are assumed")
    if not arguments:
        notes.append("the file does not hold its masking: VideoMAE's own is assumed; of EVEREST, give --strategy mats")
    spec = ModelSpec(grid=grid, position_grid=grid, pruning=pruning_of(arguments, sizes["kind"]), **sizes)
    return Weights(spec, state, source, tuple(notes))


def read_content(path: Path) -> Mapping[str, Any]:
    """The contents of the file: of a pickle the dictionary, of a safetensors file the tensors."""
    if check_content(path) != "safetensors":
        return unpickle(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read, it may be torn ({error}): {AGAIN}") from None


def rename_state(content: Mapping[str, Any], path: str | Path) -> Renamed:
    """A checkpoint's content under our names. Raises ValueError for what is no model that ours can
    be."""
    variant = convert_variant(content, path)
    is_pretraining = any(name.startswith("encoder.") for name in variant.tensors)
    renamed = translate(variant.tensors, reverse(PRETRAIN_ROWS if is_pretraining else FINETUNE_ROWS))
    if not renamed.state:
        keys = ", ".join(f"{key:.100}" for key in content if isinstance(key, str))[:SHOWN_KEYS]
        hint = f": it is a part of a Hugging Face folder, give the folder {Path(path).parent}" if "videomae.emb" in keys else ""
        raise ValueError(f"{path} holds no weights of VideoMAE{hint}: its keys are {keys}")
    if renamed.unknown:
        names = list_names(renamed.unknown)
        raise ValueError(f"{path} has {format_count(len(renamed.unknown), 'tensor')} that VideoMAE's models have not: {names}")
    state = as_float32(renamed.state)
    if "class_head.weight" in state and "fc_norm.weight" not in state:
        raise ValueError(f"{path} classifies its first token (--use_cls); only mean pooling (fc_norm) is supported")
    if PATCH_WEIGHT in state and state[PATCH_WEIGHT].ndim == 4:
        raise ValueError(f"{path} embeds patches of single pictures (a Conv2d): it is an image model, expected a video model")
    if PATCH_WEIGHT not in state or state[PATCH_WEIGHT].ndim != 5:
        raise ValueError(f"{path} has no patch embedding of a Conv3d")
    tubelet = tuple(state[PATCH_WEIGHT].shape[2:])
    state[PATCH_WEIGHT] = from_convolution(state[PATCH_WEIGHT])
    return Renamed(state, tubelet, variant.num_positions, variant.notes)


def guess_clip(renamed: Renamed, sizes: Mapping[str, int | None], path: str | Path) -> TokenGrid:
    """The grid of the sizes that are known, with as many tokens as the file has positions, where it
    has any."""
    frames, height, width = sizes["num_frames"], sizes["height"], sizes["width"]
    if frames is None and renamed.tubelet[0] == 1:
        frames = UMT_FRAMES
    grid = guess_grid(renamed.tubelet, num_frames=frames, height=height, width=width)
    count = renamed.num_positions
    if count in (None, grid.num_tokens):
        return grid
    if sizes["num_frames"] is None and count % grid.tokens_per_tubelet == 0:
        return guess_grid(
            renamed.tubelet, num_frames=count // grid.tokens_per_tubelet * grid.tubelet[0], height=height, width=width
        )
    side = math.isqrt(count // grid.tau)
    if height is None and width is None and side * side * grid.tau == count:
        return guess_grid(renamed.tubelet, num_frames=frames, height=side * grid.tubelet[1], width=side * grid.tubelet[2])
    raise ValueError(
        f"{path} has {count:,} positions, and {grid.num_frames} frames of {grid.height} x {grid.width} are {grid.num_tokens:,} "
        f"tokens: {advise_sizes('--num_frames', '--height', '--width', path=path)}"
    )


def as_dict(arguments: Any) -> dict[str, Any]:
    return dict(arguments) if isinstance(arguments, Mapping) else vars(arguments) if arguments is not None else {}


def count_in(arguments: Mapping[str, Any], name: str, path: str | Path) -> int | None:
    """A number of `args`; None where it is absent. Raises ValueError for anything but a size of a
    clip."""
    value = arguments.get(name)
    if not value:
        return None
    if not isinstance(value, Integral) or not 1 <= value <= MAX_SIDE:
        raise ValueError(f"{path} has {name} in its args, expected an integer from 1 to {MAX_SIDE:,}, got {shorten(value)}")
    return int(value)


def shorten(value: Any) -> str:
    return str(value)[:40] if isinstance(value, (str, float)) else f"a {type(value).__name__}"


def pruning_of(arguments: Mapping[str, Any], kind: str) -> TokenPruning:
    """The selection of tokens that the model was trained with, from its `args`; VideoMAE's where
    they are silent.

    EVEREST's options: mask_type "motion-centric" with motion_centric_masking_ratio in pre-training,
    mcm with mcm_ratio in fine-tuning; these ratios are the dropped fractions.
    """
    if kind == "classifier":
        keep = fraction_left(arguments["mcm_ratio"]) if arguments.get("mcm") else 1.0
        return TokenPruning().keeping(keep)
    visible = fraction_left(arguments.get("mask_ratio", 0.9))
    mask = arguments.get("mask_type", "tube")
    if mask == "motion-centric":
        keep = fraction_left(arguments.get("motion_centric_masking_ratio", 0.7))
        return TokenPruning(keep_ratio=keep, visible_ratio=visible)
    return TokenPruning("random" if mask == "random" else "tube", keep_ratio=1.0, visible_ratio=visible)


def fraction_left(dropped: float) -> float:
    return round(1 - dropped, 6)


def write_videomae(path: str | Path, weights: Weights) -> list[str]:
    """Write a checkpoint that VideoMAE's and EVEREST's scripts load; returns notes for the user.

    Raises ValueError for a model that theirs cannot be.
    """
    spec, path = weights.spec, Path(path)
    check_exportable(spec, "VideoMAE")
    state = dict(weights.state)
    state[PATCH_WEIGHT] = to_convolution(state[PATCH_WEIGHT], spec.grid)
    renamed = translate(state, FINETUNE_ROWS if spec.kind == "classifier" else PRETRAIN_ROWS)
    assert not renamed.unknown, renamed.unknown
    path.parent.mkdir(parents=True, exist_ok=True)
    # of a path, torch would keep the name in the file
    with replace_file(path) as aside, aside.open("wb") as stream:
        try:
            torch.save({"model": renamed.state, SPEC_KEY: json.dumps(dump_spec(spec))}, stream)
        except RuntimeError as error:  # torch hides why a write failed
            raise OSError(f"{path} cannot be written: {error.__context__ or error}") from None
    notes = [f"VideoMAE's scripts need --num_frames {spec.grid.num_frames} --input_size {spec.grid.height}"]
    if spec.kind == "classifier" and spec.pruning.keep_ratio < 1:
        keep = spec.pruning.keep_ratio
        notes.append(f"VideoMAE encodes all tokens; EVEREST keeps {keep:g} with --mcm --mcm_ratio {1 - keep:g}")
    if (spec.norm_eps, spec.last_norm_eps) != (NORM_EPS, NORM_EPS):
        notes.append(f"LayerNorm's eps is {spec.norm_eps:g} (the last: {spec.last_norm_eps:g}) here and {NORM_EPS:g} there")
    return notes
