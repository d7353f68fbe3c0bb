"""What readers return and writers take: weights under our names, the model they are of, and where they are from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mats_ds.clips import TokenGrid
from mats_ds.config import MLP_RATIO, MODEL_SIZES
from mats_ds.models.spec import ModelSpec


@dataclass(frozen=True)
class Weights:
    """`state`: tensors under our names. `source`: the format, in words. `notes`: what a person should know about the reading,
    such as what was assumed because the file does not say it.
    """

    spec: ModelSpec
    state: Mapping[str, torch.Tensor]
    source: str
    notes: tuple[str, ...] = field(default=())


def measure(state: Mapping[str, torch.Tensor], *, heads: int | None = None, decoder_heads: int | None = None) -> dict:
    """The fields of a ModelSpec that can be read off the tensors: kind, widths, depths, classes.

    Numbers of heads are not in the weights: they are `heads` and `decoder_heads`, or those of the published size with that width.
    Raises ValueError for tensors that are no such model, or a width of no published size without the number of heads.
    """
    for name in ("patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise ValueError(f"there is no {name} among the {len(state)} weights: this is no VideoMAE-like model")
    width = state["patch_embed.proj.weight"].shape[0]
    hidden = state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
    if hidden != MLP_RATIO * width:
        raise ValueError(f"the MLP is {hidden / width:g} times as wide as the tokens, and only {MLP_RATIO} times is supported")
    fields = {"kind": "encoder", "width": width, "depth": count_blocks(state, "encoder")}
    fields["heads"] = heads or heads_of(width, "width", "heads")
    if "class_head.weight" in state:
        fields |= {"kind": "classifier", "num_classes": state["class_head.weight"].shape[0]}
    elif "to_decoder.weight" in state:
        decoder_width = state["to_decoder.weight"].shape[0]
        fields |= {
            "kind": "pretrain",
            "decoder_width": decoder_width,
            "decoder_depth": count_blocks(state, "decoder"),
            "decoder_heads": decoder_heads or heads_of(decoder_width, "decoder_width", "decoder_heads"),
        }
    return fields


def count_blocks(state: Mapping[str, torch.Tensor], stack: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(rf"{stack}\.blocks\.(\d+)\.", name))})


def heads_of(width: int, width_name: str, heads_name: str) -> int:
    for size in MODEL_SIZES.values():
        if getattr(size, width_name) == width:
            return getattr(size, heads_name)
    option = "--heads" if width_name == "width" else "--decoder-heads"
    raise ValueError(
        f"{width_name.replace('_', ' ')} {width} is of no published size, and weights do not tell heads: give {option}"
    )


def as_float32(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in float32, which holds every value of bf16 and fp16 exactly."""
    return {name: tensor.float() for name, tensor in state.items()}


def check_exportable(spec: ModelSpec, program: str) -> None:
    """Raises ValueError for positions that were interpolated: other programs compute the table of the model's own grid."""
    if spec.position_grid != spec.grid:
        made = spec.position_grid
        raise ValueError(
            f"the positions of these weights were made for {made.num_frames} frames of {made.height} x {made.width} and "
            f"interpolated; {program} cannot do that: write a file of mats_ds (--to mats)"
        )


def guess_grid(tubelet: tuple[int, int, int], *, num_frames: int | None, height: int | None, width: int | None) -> TokenGrid:
    """The grid of the published models, 16 x 224 x 224, where a size is not known."""
    return TokenGrid(num_frames or 16, height or 224, width or 224, tubelet)
