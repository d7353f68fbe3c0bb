"""Names of weights in two formats, as one table that is read both ways: {name: tensor} -> {name: tensor}.

A row is (our name, their name); both may hold one `{i}` for the number of a block, and each may end in `.*` for the weight and
bias of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from mats_ds.clips import TokenGrid

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
    """The rows of a stack of blocks that has VideoMAE's names within a block; `ours`, `theirs`: the stack's own name."""
    layers = ("norm1.*", "norm2.*", "attn.proj.*", "mlp.fc1.*", "mlp.fc2.*")
    rows = [(f"{ours}.{{i}}.{layer}", f"{theirs}.{{i}}.{layer}") for layer in layers]
    for inside, outside in (("qkv.weight", "qkv.weight"), ("qkv.q_bias", "q_bias"), ("qkv.v_bias", "v_bias")):
        rows.append((f"{ours}.{{i}}.attn.{inside}", f"{theirs}.{{i}}.attn.{outside}"))
    return rows


def from_convolution(weight: torch.Tensor) -> torch.Tensor:
    """The patch embedding as a matrix [D, P] with values in the order (frame, row, column, colour), from a Conv3d's weight."""
    return rearrange(weight, "d c p0 p1 p2 -> d (p0 p1 p2 c)").contiguous()


def to_convolution(weight_DP: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """The inverse of `from_convolution`."""
    p0, p1, p2 = grid.tubelet
    return rearrange(weight_DP, "d (p0 p1 p2 c) -> d c p0 p1 p2", p0=p0, p1=p1, p2=p2).contiguous()
