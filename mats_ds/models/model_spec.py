"""The description of a model that a file of weights carries: ModelSpec <-> model, ModelSpec <->
JSON.

A spec holds no weights and nothing about training: sizes, token grid, the grid that the positions
were made for, options of the method, class names. Drop path, dropout and recomputation are options
of `build_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn

from mats_ds.core.format import format_count
from mats_ds.core.token_grid import FINETUNE_KEEP_RATIO, TokenGrid, TokenPruning
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.layers import NORM_EPS
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.sizes import MODEL_SIZES, ModelSize

KINDS = ("pretrain", "classifier", "encoder")
ENCODER_SIZES = ("width", "depth", "heads")
DECODER_SIZES = ("decoder_width", "decoder_depth", "decoder_heads")
SHOWN_NAMES = 3
PRUNING_NAMES = {field.name for field in fields(TokenPruning)}


@dataclass(frozen=True)
class ModelSpec:
    """One model. `kind`: "pretrain" is the masked autoencoder, "classifier" the classifier,
    "encoder" the weights of an encoder alone, which can start a classifier. Decoder sizes are 0
    where there is no decoder, `num_classes` where there is no head.

    `position_grid`: the grid whose sine-cosine table the weights were trained with.
    `num_candidate_frames`: frames read, more than the grid's with adaptive frame selection.
    `norm_eps` is every LayerNorm's but the last one's (`last_norm_eps`: the decoder's norm, or
    fc_norm); VideoMAE has 1e-6 throughout, transformers another for the last.
    """

    kind: str
    width: int
    depth: int
    heads: int
    grid: TokenGrid
    position_grid: TokenGrid
    decoder_width: int = 0
    decoder_depth: int = 0
    decoder_heads: int = 0
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    pruning: TokenPruning = TokenPruning()
    num_candidate_frames: int = 0
    norm_eps: float = NORM_EPS
    last_norm_eps: float = NORM_EPS

    @property
    def size_name(self) -> str | None:
        """The published size that this is (decoder depth apart), if any."""
        return next((name for name, size in MODEL_SIZES.items() if same_size(self, size)), None)

    def with_options(self, **changes: Any) -> ModelSpec:
        """The same with other fields, or other options of its pruning, by name."""
        options = {name: changes.pop(name) for name in PRUNING_NAMES & changes.keys()}
        spec = replace(self, **changes)
        return replace(spec, pruning=replace(spec.pruning, **options))

    def on_grid(self, grid: TokenGrid) -> ModelSpec:
        """The same weights on another grid; their positions stay those of the grid that they were
        trained on.

        Raises ValueError when the tubelets differ: the patch embedding then has another shape.
        """
        if grid.tubelet != self.grid.tubelet:
            raise ValueError(
                f"the weights embed tubelets of {self.grid.tubelet}, the new grid has {grid.tubelet}: keep the tubelet"
            )
        candidates = self.num_candidate_frames * grid.num_frames // self.grid.num_frames
        return replace(self, grid=grid, num_candidate_frames=candidates - candidates % grid.tubelet[0])

    def describe(self) -> list[str]:
        """The model for a person to read, one line a topic."""
        grid = self.grid
        lines = [
            f"{self.kind}: {self.size_name or 'a size of its own'}, width {self.width}, "
            f"{format_count(self.depth, 'block')}, {format_count(self.heads, 'head')}",
            f"clip: {format_count(grid.num_frames, 'frame')} of {grid.height} x {grid.width}, tubelets of "
            f"{' x '.join(map(str, grid.tubelet))}, "
            f"{format_count(grid.num_tokens, 'token')}",
        ]
        if self.position_grid != grid:
            made = self.position_grid
            lines.append(
                f"positions: made for {format_count(made.num_frames, 'frame')} of {made.height} x {made.width}, interpolated"
            )
        if self.kind == "pretrain":
            blocks, heads = format_count(self.decoder_depth, "block"), format_count(self.decoder_heads, "head")
            lines.append(f"decoder: width {self.decoder_width}, {blocks}, {heads}")
        if self.kind == "classifier":
            more = ", ..." if len(self.class_names) > SHOWN_NAMES else ""
            names = f" ({', '.join(self.class_names[:SHOWN_NAMES])}{more})" if self.class_names else ""
            lines.append(f"head: {format_count(self.num_classes, 'class')}{names}")
        if self.kind != "encoder":
            visible = f", visible {self.pruning.visible_ratio:g}" if self.kind == "pretrain" else ""
            lines.append(f"selection: {self.pruning.strategy}, keep {self.pruning.keep_ratio:g}{visible}")
        return lines


def same_size(spec: ModelSpec, size: ModelSize) -> bool:
    names = ENCODER_SIZES + (("decoder_width", "decoder_heads") if spec.kind == "pretrain" else ())
    return all(getattr(spec, name) == getattr(size, name) for name in names)


def describe_model(model: nn.Module) -> ModelSpec:
    """The spec of a MaskedAutoencoder or VideoClassifier. Raises ValueError for another module."""
    if not isinstance(model, (MaskedAutoencoder, VideoClassifier)):
        raise ValueError(f"expected a MaskedAutoencoder or VideoClassifier, got {type(model).__name__}")
    first = model.encoder.blocks[0]
    shared = dict(
        width=model.patch_embed.proj.out_features,
        depth=len(model.encoder.blocks),
        heads=first.attn.heads,
        grid=model.grid,
        position_grid=model.position_grid,
        pruning=model.pruning,
        num_candidate_frames=model.candidate_grid.num_frames,
        norm_eps=first.norm1.eps,
    )
    if isinstance(model, VideoClassifier):
        return ModelSpec(
            kind="classifier",
            num_classes=model.num_classes,
            class_names=model.class_names,
            last_norm_eps=model.fc_norm.eps,
            **shared,
        )
    return ModelSpec(
        kind="pretrain",
        decoder_width=model.to_decoder.out_features,
        decoder_depth=len(model.decoder.blocks),
        decoder_heads=model.decoder.blocks[0].attn.heads,
        last_norm_eps=model.decoder.norm.eps,
        **shared,
    )


def build_model(spec: ModelSpec, **options: Any) -> nn.Module:
    """The model that a spec describes, with fresh weights. `options` are further options of its
    constructor (drop_path, checkpoint_blocks, head_dropout, ...). Raises ValueError for the spec of
    an encoder alone.
    """
    if spec.kind == "encoder":
        raise ValueError("these weights are an encoder without decoder or head: start a classifier from them (load_classifier)")
    candidates = spec.num_candidate_frames // spec.grid.tubelet[0]
    shared = dict(
        grid=spec.grid,
        position_grid=spec.position_grid,
        candidate_grid=spec.grid.with_tau(candidates) if candidates > spec.grid.tau else None,
        pruning=spec.pruning,
        **{name: getattr(spec, name) for name in ENCODER_SIZES},
    )
    if spec.kind == "classifier":
        model = VideoClassifier(num_classes=spec.num_classes, class_names=spec.class_names, **shared, **options)
        last = model.fc_norm
    else:
        decoder = {name: getattr(spec, name) for name in DECODER_SIZES}
        model = MaskedAutoencoder(**decoder, **shared, **options)
        last = model.decoder.norm
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = spec.last_norm_eps if module is last else spec.norm_eps
    return model


def as_classifier(spec: ModelSpec, *, num_classes: int) -> ModelSpec:
    """The classifier that starts from these weights: no decoder, a fresh head, METHOD's 0.6 of the
    tokens kept by mats."""
    pruning = replace(spec.pruning, strategy="mats").keeping(FINETUNE_KEEP_RATIO)
    head = {"num_classes": num_classes, "class_names": (), "last_norm_eps": NORM_EPS}
    return replace(spec, kind="classifier", pruning=pruning, **head, **dict.fromkeys(DECODER_SIZES, 0))


def dump_spec(spec: ModelSpec) -> dict[str, Any]:
    """The spec as JSON holds it: flat, the options of the pruning beside the sizes."""
    tree = asdict(spec)
    return {**{name: value for name, value in tree.items() if name != "pruning"}, **tree["pruning"]}


def parse_spec(tree: Mapping[str, Any]) -> ModelSpec:
    """The inverse of `dump_spec`. Raises ValueError for unknown or missing names, or another
    kind."""
    known = {field.name for field in fields(ModelSpec)} - {"pruning"} | PRUNING_NAMES
    needed = {"kind", *ENCODER_SIZES, "grid", "position_grid"}
    unknown, missing = sorted(set(tree) - known), sorted(needed - set(tree))
    if unknown or missing:
        raise ValueError(f"the description of the model does not fit this version: unknown {unknown}, missing {missing}")
    if tree["kind"] not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {tree['kind']!r}")
    grids = {name: TokenGrid(**{**tree[name], "tubelet": tuple(tree[name]["tubelet"])}) for name in ("grid", "position_grid")}
    pruning = TokenPruning(**{name: tree[name] for name in PRUNING_NAMES & tree.keys()})
    rest = {name: value for name, value in tree.items() if name not in PRUNING_NAMES}
    return ModelSpec(**{**rest, **grids, "class_names": tuple(tree.get("class_names", ())), "pruning": pruning})
