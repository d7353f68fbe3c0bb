"""The `.pth` files of VideoMAE (arXiv 2203.12602) and EVEREST (arXiv 2211.10636), which bear the same names.

Pre-training: `encoder.patch_embed`, `encoder.blocks`, `encoder.norm`, `encoder_to_decoder`, `mask_token`, `decoder.blocks`,
`decoder.norm`, `decoder.head`. Fine-tuning: `patch_embed`, `blocks`, `fc_norm`, `head`. The tensors lie under the key `model` or
`module`, or at the top; `args` (an argparse.Namespace), where it is there, tells the clip and the masking.
Pickles are read without running any code of theirs (`weights_only`), or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mats_ds.interop.names import PATCH_WEIGHT, block_rows, from_convolution, reverse, to_convolution, translate
from mats_ds.interop.weights import Weights, as_float32, check_exportable, guess_grid, measure
from mats_ds.models.blocks import NORM_EPS
from mats_ds.models.spec import ModelSpec, dump_spec, parse_spec
from mats_ds.parsing import parse_json

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
STATE_KEYS = ("model", "module")
WRAPPERS = ("_orig_mod.", "module.", "backbone.")  # torch.compile, DataParallel, detection code
SPEC_KEY = "mats_ds"


def read_videomae(
    path: str | Path,
    *,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> Weights:
    """Read a checkpoint. Sizes that are given win over those in `args`; without either, clips are 16 x 224 x 224.

    Raises ValueError for a file that cannot be read without running its code, or that holds weights of another model.
    """
    content = unpickle(Path(path))
    state, tubelet = rename_state(content, path)
    if isinstance(content.get(SPEC_KEY), str):  # written by us
        spec = parse_spec(parse_json(content[SPEC_KEY]))
        sizes = measure(state, heads=spec.heads, decoder_heads=spec.decoder_heads)
        spec = replace(spec, **sizes, norm_eps=NORM_EPS, last_norm_eps=NORM_EPS)
        return Weights(spec, state, "a checkpoint for VideoMAE, written by mats_ds")
    sizes = measure(state, heads=heads, decoder_heads=decoder_heads)
    source = f"a {'fine-tuning' if sizes['kind'] == 'classifier' else 'pre-training'} checkpoint of VideoMAE or EVEREST"
    arguments = as_dict(content.get("args"))
    frames = arguments.get("num_frames") and arguments["num_frames"] * arguments.get("num_segments", 1)
    side = arguments.get("input_size")
    grid = guess_grid(tubelet, num_frames=num_frames or frames, height=height or side, width=width or side)
    notes = []
    if not arguments and not (num_frames and height and width):
        notes.append(f"the file does not tell its clip: {grid.num_frames} frames of {grid.height} x {grid.width} are assumed")
    if not arguments:
        notes.append("the file does not tell its masking: VideoMAE's own is assumed; of EVEREST, give --strategy mats")
    spec = ModelSpec(grid=grid, position_grid=grid, **sizes, **selection_of(arguments, sizes["kind"]))
    return Weights(spec, state, source, tuple(notes))


def rename_state(content: Mapping[str, Any], path: str | Path) -> tuple[dict[str, torch.Tensor], tuple[int, int, int]]:
    """(float32 tensors under our names, tubelet) of a checkpoint's content."""
    key = next((key for key in STATE_KEYS if isinstance(content.get(key), Mapping)), None)
    theirs = strip_wrappers(content[key] if key else content)
    tensors = {name: value for name, value in theirs.items() if isinstance(value, torch.Tensor)}
    is_pretraining = any(name.startswith("encoder.") for name in tensors)
    renamed = translate(tensors, reverse(PRETRAIN_ROWS if is_pretraining else FINETUNE_ROWS))
    if not renamed.state:
        raise ValueError(f"{path} holds no weights of VideoMAE: its keys are {', '.join(map(str, list(content)[:12]))}")
    if renamed.unknown:
        names = ", ".join(renamed.unknown)
        raise ValueError(f"{path} has {len(renamed.unknown)} tensors that VideoMAE's models have not: {names}")
    state = as_float32(renamed.state)
    if "class_head.weight" in state and "fc_norm.weight" not in state:
        raise ValueError(f"{path} classifies its first token (--use_cls); only mean pooling (fc_norm) is supported")
    if PATCH_WEIGHT not in state or state[PATCH_WEIGHT].ndim != 5:
        raise ValueError(f"{path} has no patch embedding of a Conv3d")
    tubelet = tuple(state[PATCH_WEIGHT].shape[2:])
    state[PATCH_WEIGHT] = from_convolution(state[PATCH_WEIGHT])
    return state, tubelet


def unpickle(path: Path) -> Mapping[str, Any]:
    """The dictionary in a `.pth` file; no code in it is run. Raises ValueError when that cannot be done."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise ValueError(
            f"{path} holds more than tensors and numbers, and reading it would run code from the file ({reason.strip()}): "
            "load it where you trust it, and save the state dict alone"
        ) from None
    except OSError:
        raise
    except Exception as error:  # damaged, it makes torch's reader fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be read, it may be torn: {reason}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def strip_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without what torch.compile, DataParallel and detection code put before them."""
    stripped = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"a dictionary of weights has names, got the key {name!r}")
        while name.startswith(WRAPPERS):
            name = name.partition(".")[2]
        stripped[name] = value
    return stripped


def as_dict(arguments: Any) -> dict[str, Any]:
    return dict(arguments) if isinstance(arguments, Mapping) else vars(arguments) if arguments is not None else {}


def selection_of(arguments: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Which tokens the model was trained on, as its `args` tell; what VideoMAE does where they do not.

    EVEREST's options: mask_type "motion-centric" with motion_centric_masking_ratio in pre-training, mcm with mcm_ratio in
    fine-tuning; these ratios are the dropped shares.
    """
    if kind == "classifier":
        keep = share_left(arguments["mcm_ratio"]) if arguments.get("mcm") else 1.0
        return {"strategy": "mats", "keep_ratio": keep, "visible_ratio": keep}
    visible = share_left(arguments.get("mask_ratio", 0.9))
    mask = arguments.get("mask_type", "tube")
    if mask == "motion-centric":
        keep = share_left(arguments.get("motion_centric_masking_ratio", 0.7))
        return {"strategy": "mats", "keep_ratio": keep, "visible_ratio": visible}
    return {"strategy": "random" if mask == "random" else "tube", "keep_ratio": 1.0, "visible_ratio": visible}


def share_left(dropped: float) -> float:
    return round(1 - dropped, 6)


def write_videomae(path: str | Path, weights: Weights) -> list[str]:
    """Write a checkpoint that VideoMAE's and EVEREST's scripts load; returns what a person should know about it.

    Raises ValueError for a model that theirs cannot be.
    """
    spec, path = weights.spec, Path(path)
    check_exportable(spec, "VideoMAE")
    state = dict(weights.state)
    state[PATCH_WEIGHT] = to_convolution(state[PATCH_WEIGHT], spec.grid)
    renamed = translate(state, FINETUNE_ROWS if spec.kind == "classifier" else PRETRAIN_ROWS)
    assert not renamed.unknown, renamed.unknown
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    torch.save({"model": renamed.state, SPEC_KEY: json.dumps(dump_spec(spec))}, aside)
    os.replace(aside, path)
    notes = [f"VideoMAE's scripts need --num_frames {spec.grid.num_frames} --input_size {spec.grid.height}"]
    if spec.kind == "classifier" and spec.keep_ratio < 1:
        notes.append(
            f"VideoMAE encodes all tokens; EVEREST keeps {spec.keep_ratio:g} with --mcm --mcm_ratio {1 - spec.keep_ratio:g}"
        )
    if (spec.norm_eps, spec.last_norm_eps) != (NORM_EPS, NORM_EPS):
        notes.append(f"LayerNorm's eps is {spec.norm_eps:g} (the last: {spec.last_norm_eps:g}) here and {NORM_EPS:g} there")
    return notes
