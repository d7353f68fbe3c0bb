"""Weights into a model, with nothing left unsaid: state dict -> FillReport, or one error that lists everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mats_ds.core.text import Lines

# What a classifier has that pre-training has not, and the other way round.
CLASSIFIER_ONLY = ("fc_norm.", "class_head.")
PRETRAINING_ONLY = ("encoder.norm.", "to_decoder.", "mask_token", "decoder.", "head.")
HEAD = ("class_head.",)


@dataclass(frozen=True)
class FillReport:
    """Names of the tensors that were loaded, that keep the model's own start (`fresh`), and that the model has no use for."""

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


def fill_model(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, fresh: Sequence[str] = (), unused: Sequence[str] = ()
) -> FillReport:
    """Copy the tensors of `state` into the model's parameters of the same names (of any float type).

    `fresh` and `unused` are beginnings of names: those of the model that may keep their own start, and those of the state that
    the model may have no use for.
    Raises ValueError that lists all missing, unexpected and differently shaped tensors; the model is then unchanged.
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
    return FillReport(tuple(sorted(fits)), kept, tuple(name for name in state if name not in fits))


def parts_of(names: Sequence[str]) -> list[str]:
    """The parts of a model that these tensors belong to, each once: the first component of a name; encoder.norm has two."""
    return list(dict.fromkeys("encoder.norm" if name.startswith("encoder.norm.") else name.partition(".")[0] for name in names))
