"""Load weights into a model: state dict -> LoadReport, or one error that lists every tensor that
does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from mats_ds.core.text import Lines
from mats_ds.core.token_grid import TokenGrid

# What a classifier has that pre-training has not, and the other way round.
CLASSIFIER_ONLY = ("fc_norm.", "class_head.")
PRETRAINING_ONLY = ("encoder.norm.", "to_decoder.", "mask_token", "decoder.", "head.")
HEAD = ("class_head.",)


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that were loaded, that keep their initialisation (`fresh`), and that the
    model does not use."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def describe(self) -> str:
        text = f"{len(self.loaded)} tensors loaded"
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
    Raises ValueError that lists all missing, unexpected and differently shaped tensors; the model
    is then unchanged.
    """
    own = dict(model.state_dict())
    fits = {name for name in own if name in state and own[name].shape == state[name].shape}
    missing = [name for name in own if name not in state and not name.startswith(tuple(fresh))]
    unexpected = [name for name in state if name not in own and not name.startswith(tuple(unused))]
    shapes = [
        f"{name} {list(state[name].shape)}, the model has {list(own[name].shape)}"
        for name in own
        if name in state and name not in fits
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(Lines("the weights do not fit the model", *(f"  - {problem}" for problem in problems)))
    with torch.no_grad():
        for name in fits:
            own[name].copy_(state[name])
    kept = tuple(name for name in own if name not in fits)
    return LoadReport(tuple(sorted(fits)), kept, tuple(name for name in state if name not in fits))


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
