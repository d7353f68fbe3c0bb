"""Weights under our names, with the description of their model and their source: what readers
return and writers take."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from mats_ds.core.format import format_count
from mats_ds.core.storage.archives import count_stored_bytes
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.token_grid import MAX_TOKENS, TokenGrid
from mats_ds.models.model_spec import ModelSpec
from mats_ds.models.sizes import MLP_RATIO, MODEL_SIZES
from mats_ds.models.weights.origin import Origin
from mats_ds.models.weights.state_dict import PATCH_WEIGHT

BYTES_PER_FLOAT32 = 4
MAX_TABLE_BYTES = 1 << 30  # 80 times that of ViT-L with 32 frames of 224 x 224
MAX_BLOCKS = 1000  # ViT-g has 40
MAX_TENSORS = 100_000
MAX_NAME_CHARACTERS = 1000
MAX_SHARED = 2  # how often the bytes of a file may be used, where tensors share them
# matrices of width x width in a block: query, key, value, output, two of the MLP
BLOCK_VALUES = 4 + 2 * MLP_RATIO
MAX_NAMED = 8
NONFINITE = "NaN or infinite weights"
SPEC_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "tuple[str, ...]": tuple}


@dataclass(frozen=True)
class Weights:
    """`state`: tensors under our names. `source`: the format, as text. `notes`: for the user, such
    as what was assumed where the file is silent. `origin`: the training and step that they are
    from. `file`: the one that was read; `which`: of a run, one of WEIGHTS_FROM, else "".
    """

    spec: ModelSpec
    state: Mapping[str, torch.Tensor]
    source: str
    notes: tuple[str, ...] = field(default=())
    origin: Origin = field(default=Origin())
    file: str = ""
    which: str = ""

    def used(self) -> dict[str, Any]:
        """For the JSON of a result: which file, and of a run which of its weights."""
        origin = self.origin
        return {
            "file": self.file,
            "which": self.which or None,
            "step": origin.step,
            "averaged": origin.averaged,
            "chosen_on": origin.chosen_on,
        }


def measure(state: Mapping[str, torch.Tensor], *, heads: int | None = None, decoder_heads: int | None = None) -> dict:
    """The fields of a ModelSpec that can be read off the tensors: kind, widths, depths, classes.

    Numbers of heads are not in the weights: they are `heads` and `decoder_heads`, or those of the
    published size with that width.
    Raises ValueError for tensors that are no such model, or a width of no published size without
    the number of heads.
    """
    for name in ("patch_embed.proj.weight", "encoder.blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise ValueError(f"there is no {name} among the {format_count(len(state), 'weight')}: this is no VideoMAE-like model")
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
    check_size(state, fields)
    return fields


def check_size(state: Mapping[str, torch.Tensor], fields: Mapping[str, Any]) -> None:
    """Raises ValueError, before a model is built, where one of these sizes would have more than
    twice the values of the tensors.
    """
    blocks = (fields["depth"], fields.get("decoder_depth", 0))
    if max(blocks) > MAX_BLOCKS:
        raise ValueError(f"the weights are of {max(blocks):,} blocks, expected {MAX_BLOCKS:,} at most")
    widths = (fields["width"], fields.get("decoder_width", 0))
    needed = sum(BLOCK_VALUES * depth * width**2 for depth, width in zip(blocks, widths, strict=True))
    needed += fields.get("num_classes", 0) * fields["width"] + widths[0] * widths[1]
    stored = sum(tensor.numel() for tensor in state.values())
    if needed > 2 * stored:
        raise ValueError(
            f"a model of width {widths[0]:,} with {blocks[0]:,} blocks has more than {needed:,} values, and the "
            f"{len(state)} tensors have {stored:,}: tensors are missing, or these are not what they are called"
        )


def count_blocks(state: Mapping[str, torch.Tensor], stack: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(rf"{stack}\.blocks\.(\d+)\.", name))})


def heads_of(width: int, width_name: str, heads_name: str) -> int:
    for size in MODEL_SIZES.values():
        if getattr(size, width_name) == width:
            return getattr(size, heads_name)
    option = "--heads" if width_name == "width" else "--decoder-heads"
    raise ValueError(
        f"{width_name.replace('_', ' ')} {width} is of no published size, and weights do not hold heads: {advise_sizes(option)}"
    )


def advise_sizes(*options: str, path: object = "FILE.pth") -> str:
    """What to do about sizes that a file lacks: not every program that reads weights takes them."""
    given = " ".join(f"{option} N" for option in options)
    return f"convert it once with them, and give the new file: {own_command('convert', path, 'NEW.safetensors')} {given}"


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Raises ValueError for anything but a plain tensor of real numbers, and for one that is larger
    than its stored bytes (spread over one number, a file of some bytes would fill any memory).
    """
    is_plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or not tensor.is_floating_point():
        raise ValueError(f"{name} is no plain tensor of real numbers")
    if tensor.numel() == 0:
        raise ValueError(f"{name} {list(tensor.shape)} is empty")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} {list(tensor.shape)} is larger than what is stored of it: make it contiguous before saving")


def check_tensors(state: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError as `check_plain` does, and where many tensors are made of the same bytes:
    changed one by one, or copied, they would fill any memory.
    """
    for name, tensor in state.items():
        check_plain(name, tensor)
    measured, stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), count_stored_bytes(state)
    if measured > MAX_SHARED * stored:
        raise ValueError(
            f"{format_count(len(state), 'tensor')} of {measured:,} bytes share {stored:,} that are stored: copy each "
            "before saving"
        )


def as_float32(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in float32, which holds every value of bf16 and fp16 exactly. Raises ValueError
    as `check_tensors` does."""
    check_tensors(state)
    return {name: tensor.float() for name, tensor in state.items()}


def check_description(weights: Weights) -> Weights:
    """The same weights. Raises ValueError where their description does not fit them, or would make
    a model without bounds.

    A model is built from the description before the weights are put in: its sizes must be those of
    the tensors, and its grids, which the tensors do not determine, such that a table of positions
    stays within MAX_TABLE_BYTES.
    """
    spec, state = weights.spec, weights.state
    described = [(field_, getattr(holder, field_.name)) for holder in (spec, spec.pruning) for field_ in fields(holder)]
    for field_, value in described:
        kind = SPEC_TYPES.get(str(field_.type))
        if kind is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ValueError(f"the description of the model has {field_.name}={value!r:.80}, which is no {field_.type}")
    measured = measure(state, heads=spec.heads, decoder_heads=spec.decoder_heads)
    other = [f"{name}={getattr(spec, name)!r} ({found!r})" for name, found in measured.items() if getattr(spec, name) != found]
    if other:
        raise ValueError(f"the description of the model does not fit its weights (their own in brackets): {', '.join(other)}")
    if spec.heads < 1 or spec.width % spec.heads:
        raise ValueError(f"{spec.heads} heads do not divide a width of {spec.width}")
    for name, grid in (("grid", spec.grid), ("position_grid", spec.position_grid)):
        sides = (grid.num_frames, grid.height, grid.width, *grid.tubelet)
        if any(type(side) is not int for side in sides):
            raise ValueError(f"the sides of {name} are integers, got {sides}")
        if state[PATCH_WEIGHT].shape[1:] != (grid.patch_values,):
            raise ValueError(f"{name} has tubelets of {grid.tubelet}, and {PATCH_WEIGHT} is {list(state[PATCH_WEIGHT].shape)}")
    most_frames = max(spec.grid.num_frames, spec.num_candidate_frames)
    num_tokens = max(spec.grid.num_tokens * most_frames // spec.grid.num_frames, spec.position_grid.num_tokens)
    table_bytes = num_tokens * max(spec.width, spec.decoder_width) * BYTES_PER_FLOAT32
    if num_tokens > MAX_TOKENS or table_bytes > MAX_TABLE_BYTES:
        raise ValueError(
            f"the description of the model has {min(num_tokens, 10**30):.6g} tokens a clip, expected {MAX_TOKENS:,} "
            f"at most, and {MAX_TABLE_BYTES:,} bytes of their positions"
        )
    if any(isinstance(name, str) and len(name) > MAX_NAME_CHARACTERS for name in spec.class_names):
        raise ValueError(f"a class of the model has a name of more than {MAX_NAME_CHARACTERS:,} characters")
    if not all(isinstance(name, str) for name in spec.class_names) or len(spec.class_names) not in (0, spec.num_classes):
        raise ValueError(
            f"the description of the model has {format_count(len(spec.class_names), 'name')} for "
            f"{format_count(spec.num_classes, 'class')}"
        )
    return weights


def name_nonfinite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """A sentence that names the tensors with NaN or infinite values, if there are any."""
    nonfinite = {name: count for name, tensor in state.items() if (count := int((~tensor.isfinite()).sum()))}
    if not nonfinite:
        return []
    num_values, num_nonfinite = sum(state[name].numel() for name in nonfinite), sum(nonfinite.values())
    shown = ", ".join(f"{name} ({count:,} of {state[name].numel():,})" for name, count in list(nonfinite.items())[:MAX_NAMED])
    more = f", and {format_count(len(nonfinite) - MAX_NAMED, 'more tensor')}" if len(nonfinite) > MAX_NAMED else ""
    return [
        f"{NONFINITE} in {len(nonfinite):,} of {format_count(len(state), 'tensor')}, "
        f"{num_nonfinite:,} of their {format_count(num_values, 'value')}: {shown}{more}"
    ]


def list_names(names: Collection[str]) -> str:
    """The first of some names of a file, which may be many and long, and how many more there
    are."""
    shown = ", ".join(f"{name:.100}" for name in list(names)[:MAX_NAMED])
    return shown + (f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else "")


def check_exportable(spec: ModelSpec, program: str) -> None:
    """Raises ValueError for positions that were interpolated: other programs compute the table of
    the model's own grid."""
    if spec.position_grid != spec.grid:
        made = spec.position_grid
        raise ValueError(
            f"the positions of these weights were made for {made.num_frames} frames of {made.height} x {made.width} and "
            f"interpolated; {program} has no such table: write a program that holds it (--to onnx or --to export), or a file of "
            "mats_ds (--to mats)"
        )


def guess_grid(tubelet: tuple[int, int, int], *, num_frames: int | None, height: int | None, width: int | None) -> TokenGrid:
    """The grid of the published models, 16 x 224 x 224, where a size is not known."""
    return TokenGrid(num_frames or 16, height or 224, width or 224, tubelet)
