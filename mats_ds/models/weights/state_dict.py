"""Load weights into a model: state dict -> LoadReport, or one error that counts the tensors that do
not fit, names the first of them and the likely cause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from mats_ds.core.format import format_count
from mats_ds.core.text import Lines
from mats_ds.core.token_grid import TokenGrid

# What a classifier has that pre-training has not, and the other way round.
CLASSIFIER_ONLY = ("fc_norm.", "class_head.")
PRETRAINING_ONLY = ("encoder.norm.", "to_decoder.", "mask_token", "decoder.", "head.")
HEAD = ("class_head.",)
NAMED = 3  # of many tensors that do not fit
BLOCK = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.")

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that were loaded, that keep their initialisation (`fresh`), and that the
    model does not use."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def describe(self) -> str:
        text = f"{format_count(len(self.loaded), 'tensor')} loaded"
        if self.fresh:
            text += f"; fresh: {', '.join(parts_of(self.fresh))}"
        if self.unused:
            text += f"; not used: {', '.join(parts_of(self.unused))}"
        return text


def load_state_dict_strict(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, fresh: Sequence[str] = (), unused: Sequence[str] = ()
) -> LoadReport:
    """Copy the tensors of `state` into the model's parameters of the same names (of any float
    type).

    `fresh` and `unused` are beginnings of names: those of the model that may keep their own start,
    and those of the state that the model may have no use for.
    Raises ValueError that says how many are missing, unexpected and of another shape, and why that
    may be; the model is then unchanged.
    """
    own = dict(model.state_dict())
    fits = {name for name in own if name in state and own[name].shape == state[name].shape}
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (own, state)]
    if problems := describe_misfit(*shapes, fresh=fresh, unused=unused):
        raise ValueError(Lines("the weights do not fit the model", *(f"  - {problem}" for problem in problems)))
    with torch.no_grad():
        for name in fits:
            own[name].copy_(state[name])
    kept = tuple(name for name in own if name not in fits)
    return LoadReport(tuple(sorted(fits)), kept, tuple(name for name in state if name not in fits))


def describe_misfit(own: Shapes, stored: Shapes, *, fresh: Sequence[str] = (), unused: Sequence[str] = ()) -> list[str]:
    """What keeps stored tensors from being those of a model, `own`: names and shapes compared, a
    line a kind of fault, and one with the likely cause. Empty where they fit.

    `fresh` and `unused` as in `load_state_dict_strict`.
    """
    missing = [name for name in own if name not in stored and not name.startswith(tuple(fresh))]
    unexpected = [name for name in stored if name not in own and not name.startswith(tuple(unused))]
    other = [name for name in own if name in stored and tuple(own[name]) != tuple(stored[name])]
    shapes = [f"{name} {list(stored[name])}, the model has {list(own[name])}" for name in other]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    lines = [f"{len(names):,} {kind}: {_name_first(names)}" for kind, names in faults if names]
    cause = _guess_cause(own, stored, missing=missing, unexpected=unexpected, other=other)
    return [*lines, *([f"likely cause: {cause}"] if cause else [])]


def _name_first(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(f"{name:.150}" for name in names[:NAMED]) + more


def _guess_cause(
    own: Shapes, stored: Shapes, *, missing: Sequence[str], unexpected: Sequence[str], other: Sequence[str]
) -> str | None:
    """The one difference that explains most of the others; None where nothing is known."""
    if not (missing or unexpected or other):
        return None
    if not own.keys() & stored.keys():
        return "these are weights of another kind of model, or under other names"
    if PATCH_WEIGHT in other and len(stored[PATCH_WEIGHT]) == len(own[PATCH_WEIGHT]) == 2:
        (width, values), (own_width, own_values) = stored[PATCH_WEIGHT], own[PATCH_WEIGHT]
        if width != own_width:
            return f"a model of another size (model.name): its tokens are {width} wide, and {own_width} here"
        return f"clips of another tubelet (clip.tubelet): {values} values a patch, and {own_values} here"
    for stack in ("encoder", "decoder"):
        blocks, own_blocks = _count_blocks(stored, stack), _count_blocks(own, stack)
        if blocks and own_blocks and blocks != own_blocks:
            key = "model.name" if stack == "encoder" else "model.decoder_depth"
            return f"a model of another depth ({key}): {format_count(blocks, f'{stack} block')}, and {own_blocks} here"
    if (head := f"{HEAD[0]}weight") in other:
        return f"another number of classes: {stored[head][0]}, and {own[head][0]} here"
    kinds = [bool(_count_blocks(shapes, "decoder")) for shapes in (stored, own)]
    if kinds[0] != kinds[1]:
        return "weights of pre-training for a classifier" if kinds[0] else "weights of a classifier or encoder for pre-training"
    return "the file is not whole, or was changed" if missing and not unexpected and not other else None


def _count_blocks(shapes: Shapes, stack: str) -> int:
    return len({match[2] for name in shapes if (match := BLOCK.match(name)) and match[1] == stack})


def parts_of(names: Sequence[str]) -> list[str]:
    """The parts of a model that these tensors belong to, each once: the first component of a name;
    encoder.norm has two."""
    return list(dict.fromkeys("encoder.norm" if name.startswith("encoder.norm.") else name.partition(".")[0] for name in names))


Row = tuple[str, str]
State = Mapping[str, torch.Tensor]
PATCH_WEIGHT = "patch_embed.proj.weight"


@dataclass(frozen=True)
class Translated:
    """`state` under the new names, and the names that no row of the table has."""

    state: dict[str, torch.Tensor]
    unknown: tuple[str, ...]


def translate(state: State, rows: Sequence[Row]) -> Translated:
    """Rename every tensor whose name is the left side of a row to its right side."""
    patterns = [(re.compile(_pattern(left)), _replacement(right)) for left, right in rows]
    renamed, unknown = {}, []
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            if pattern.fullmatch(name):
                renamed[pattern.sub(replacement, name)] = tensor
                break
        else:
            unknown.append(name)
    return Translated(renamed, tuple(unknown))


def reverse(rows: Sequence[Row]) -> list[Row]:
    """The same table, read from right to left."""
    return [(right, left) for left, right in rows]


def _pattern(name: str) -> str:
    text = re.escape(name).replace(r"\{i\}", r"(?P<i>\d+)")
    return text.removesuffix(r"\.\*") + r"(?P<leaf>\.weight|\.bias)" if name.endswith(".*") else text


def _replacement(name: str) -> str:
    text = name.replace("{i}", r"\g<i>")
    return text.removesuffix(".*") + r"\g<leaf>" if name.endswith(".*") else text


def block_rows(ours: str, theirs: str) -> list[Row]:
    """The rows of a stack of blocks that has VideoMAE's names within a block; `ours`, `theirs`: the
    stack's own name."""
    layers = ("norm1.*", "norm2.*", "attn.proj.*", "mlp.fc1.*", "mlp.fc2.*")
    rows = [(f"{ours}.{{i}}.{layer}", f"{theirs}.{{i}}.{layer}") for layer in layers]
    for inside, outside in (("qkv.weight", "qkv.weight"), ("qkv.q_bias", "q_bias"), ("qkv.v_bias", "v_bias")):
        rows.append((f"{ours}.{{i}}.attn.{inside}", f"{theirs}.{{i}}.attn.{outside}"))
    return rows


def from_convolution(weight: torch.Tensor) -> torch.Tensor:
    """The patch embedding as a matrix [D, P] with values in the order (frame, row, column, colour),
    from a Conv3d's weight."""
    return rearrange(weight, "d c p0 p1 p2 -> d (p0 p1 p2 c)").contiguous()


def to_convolution(weight_DP: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """The inverse of `from_convolution`."""
    p0, p1, p2 = grid.tubelet
    return rearrange(weight_DP, "d (p0 p1 p2 c) -> d c p0 p1 p2", p0=p0, p1=p1, p2=p2).contiguous()
