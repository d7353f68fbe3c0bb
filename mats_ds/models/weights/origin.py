"""The origin of weights: the training, its step, its clips. Whatever is measured with the weights
cites it.

A run keeps more than one set of weights: those of its checkpoints, their running average
(`finetune.ema_decay`), and best.safetensors, those with the best top-1 of all tests during the
training. The last is chosen with the videos it was tested on, so its accuracy on them is too high;
`last` is not chosen by any result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

WEIGHTS_FROM = ("last", "average", "unaveraged", "best")
BEST_FILE = "best.safetensors"
CLIP_KEYS = ("stride", "stride_seconds", "sampling")
VIEW_KEYS = ("clips", "crops")
TYPES = {
    "step": int, "averaged": bool, "chosen_on": str, "chosen_root": str, "trained_on": str, "trained_root": str, "clip": dict,
    "views": dict, "stride": int, "stride_seconds": (int, float), "sampling": str, "clips": int, "crops": int,
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """`step` finished steps of the training; whether the weights are the average over them;
    `chosen_on`: the manifest whose videos chose this step among others, "" where nothing was
    chosen; `trained_on`: the training's own. None: not known. Roots are those that the manifests'
    relative paths start from.

    clip: `stride`, `stride_seconds`, `sampling` of the training; views: the `clips` and `crops`
    that its recipe tests with. Both hold only what is known.
    """

    step: int | None = None
    averaged: bool | None = None
    chosen_on: str | None = None
    chosen_root: str | None = None
    trained_on: str | None = None
    trained_root: str | None = None
    clip: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """Such as "step 6, the average of the weights, chosen by its top-1 on val.csv"; "" where
        nothing is known."""
        step = "" if self.step is None else f"step {self.step:,}"
        average = {True: "the average of the weights", False: "weights without averaging", None: ""}[self.averaged]
        chosen = {None: "", "": "the last, chosen on nothing"}.get(self.chosen_on, f"chosen by its top-1 on {self.chosen_on}")
        return ", ".join(part for part in (step, average, chosen) if part)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_origin(tree: Any) -> Origin:
    """The inverse of `as_json`. Raises ValueError for anything else: a file may hold anything."""
    check_values(tree, [known.name for known in fields(Origin)])
    known = {name: value for name, value in tree.items() if value is not None}
    for name, keys in (("clip", CLIP_KEYS), ("views", VIEW_KEYS)):
        section = known.get(name, {})
        check_values(section, keys)
        known[name] = {key: value for key, value in section.items() if value is not None}
    return Origin(**known)


def check_values(tree: Any, names: Sequence[str]) -> None:
    """Raises ValueError for anything but an object of these names with values of their TYPES (or
    none)."""
    if not isinstance(tree, dict) or not tree.keys() <= set(names):
        raise ValueError(f"the origin of the weights should be an object of {', '.join(names)}, got {tree!r:.80}")
    for name, value in tree.items():
        kind = TYPES[name]
        if value is not None and not (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            raise ValueError(f"the origin of the weights has {name}={value!r:.80}")


def origin_of(recipe: Any, *, step: int | None, averaged: bool | None, is_best: bool = False) -> Origin:
    """The origin of weights from a training with this resolved recipe (the content of its YAML, of
    any type)."""
    clip, data, test = (_section(recipe, name) for name in ("clip", "data", "evaluation"))
    return Origin(
        step=step,
        averaged=averaged,
        chosen_on=_text(test, "manifest") if is_best else "",
        chosen_root=_text(test, "root") or _text(data, "root"),
        trained_on=_text(data, "manifest"),
        trained_root=_text(data, "root"),
        clip={name: clip[name] for name in CLIP_KEYS if clip.get(name) is not None},
        views=views_of(test),
    )


def views_of(test: Mapping[str, Any]) -> dict[str, int]:
    """`clips` and `crops` of a recipe's section `evaluation`, where it has them; one alone leaves
    the other at 1.

    Version 0.1 wrote its default, one view during training, into every recipe.yaml, asked for or
    not.
    """
    views = {name: test[name] for name in VIEW_KEYS if type(test.get(name)) is int}
    is_old = "every_epochs" in test and "training_clips" not in test
    if not views or (is_old and set(views.values()) == {1}):
        return {}
    return {name: views.get(name, 1) for name in VIEW_KEYS}


def _section(tree: Any, name: str) -> Mapping[str, Any]:
    section = tree.get(name) if isinstance(tree, dict) else None
    return section if isinstance(section, dict) else {}


def _text(section: Mapping[str, Any], name: str) -> str | None:
    return section[name] if isinstance(section.get(name), str) else None
