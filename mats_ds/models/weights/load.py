"""Any file or folder of weights -> a model: recognise the format, build the model of the weights,
and load them.

model = load_model("runs/k400")  # or a file of ours, a .pth, a Hugging Face folder
started = load_classifier("videomae.pth", num_classes=101)  # starts from pre-trained weights
encoder = load_encoder("videomae.pth")  # for features

Of a run, `weights_from` chooses the weights: best (the default where a run folder has them), last
(the default otherwise; their average where the run keeps one), average, unaveraged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mats_ds.core.format import format_count
from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.feature_extractor import VideoEncoder
from mats_ds.models.model_spec import PRUNING_NAMES, ModelSpec, as_classifier, build_model, describe_model
from mats_ds.models.weights.file_content import check_content
from mats_ds.models.weights.hugging_face import read_hugging_face
from mats_ds.models.weights.model_weights import Weights, check_description, name_nonfinite
from mats_ds.models.weights.native import is_videomae_file, load_weights
from mats_ds.models.weights.run import read_run
from mats_ds.models.weights.source import SUFFIX, check_source, identify_folder
from mats_ds.models.weights.state_dict import CLASSIFIER_ONLY, HEAD, PRETRAINING_ONLY, LoadReport, load_state_dict_strict
from mats_ds.models.weights.videomae import read_videomae

if TYPE_CHECKING:
    from mats_ds.config.finetune_recipe import FinetuneRecipe

FORMATS = {
    "mats": "a weight file of mats_ds (.safetensors)",
    "videomae": "a checkpoint of VideoMAE or EVEREST (.pth)",
    "hf": "a Hugging Face folder",
    "run": "a run of mats_ds, or one of its checkpoints",
}
NORM = "encoder.norm."
FAULTS = (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError, RuntimeError, MemoryError)
logger = logging.getLogger(__name__)
SPEC_NAMES = {field.name for field in fields(ModelSpec)} | PRUNING_NAMES


@dataclass(frozen=True)
class InitialisedClassifier:
    """A classifier initialised from weights, the fate of every tensor, and notes about the file."""

    model: VideoClassifier
    report: LoadReport
    notes: tuple[str, ...]


def identify(path: str | Path) -> str:
    """The key of FORMATS that a file or folder has. Raises ValueError when it has none."""
    path = Path(path)
    if kind := identify_folder(path):
        return kind
    content = check_content(path)
    if content == "safetensors":
        return "videomae" if is_videomae_file(path) else "mats"
    return "mats" if path.suffix == SUFFIX and content != "zip" else "videomae"


def read_weights(path: str | Path, *, weights_from: str | None = None, **hints: Any) -> Weights:
    """The weights and the model they are of, from any format.

    `weights_from` chooses the weights of a run (see `read_run`; None: the best, else the last).
    `hints` (num_frames, height, width, heads, decoder_heads) are for `.pth` files, which may not
    hold them. Raises ValueError for anything that cannot be read, and for hints or a `weights_from`
    that the format has no use for.
    """
    check_source(path)
    format = identify(path)
    if weights_from is not None and format != "run":
        raise ValueError(
            f"{path} is {FORMATS[format]}, which holds one set of weights: leave out --weights_from {weights_from} "
            "(finetune.weights_from of a recipe), which is for the folder of a run"
        )
    if hints and format != "videomae":
        raise ValueError(
            f"{path} is {FORMATS[format]}, which holds its sizes: leave out {', '.join(f'--{name}' for name in hints)}"
        )
    read_our_run = partial(read_run, weights_from=weights_from)
    readers = {"mats": load_weights, "videomae": read_videomae, "hf": read_hugging_face, "run": read_our_run}
    try:
        weights = check_description(readers[format](path, **hints))
    except FAULTS as error:  # the description in a file may be anything
        raise ValueError(f"{path} cannot be read as {FORMATS[format]}: {type(error).__name__}: {error}") from error
    return replace(weights, notes=(*weights.notes, *name_nonfinite(weights.state)), file=weights.file or str(path))


def open_weights(source: str | Path | Weights, weights_from: str | None) -> Weights:
    """The weights of a path, logged with their source; weights as they are."""
    if isinstance(source, Weights):
        return source
    weights = read_weights(source, weights_from=weights_from)
    for line in describe_weights(source, weights):
        logger.info("%s", line)
    return weights


def describe_weights(path: str | Path, weights: Weights) -> list[str]:
    """Lines that name the file and the weights in it, with notes on their reading: what every
    command prints that loads weights."""
    return [f"weights: {path}: {weights.source}", *(f"note: {note}" for note in weights.notes)]


def load_model(
    source: str | Path | Weights, *, grid: TokenGrid | None = None, weights_from: str | None = None, **changes: Any
) -> nn.Module:
    """The MaskedAutoencoder or VideoClassifier that was stored, with its weights, in evaluation
    mode.

    grid: another clip than the weights were trained on (positions are interpolated). `changes`:
    fields of ModelSpec (keep_ratio, strategy, ...) and options of the model's constructor
    (drop_path, checkpoint_blocks, ...). `weights_from`: which weights of a run (see `read_run`).
    What was read is logged. Raises ValueError that lists every tensor that does not fit.
    """
    weights = open_weights(source, weights_from)
    spec, options = split_changes(weights.spec, grid, changes)
    model = build_model(spec, **options)
    load_state_dict_strict(model, weights.state)
    return model.eval()


def load_classifier(
    source: str | Path | Weights,
    *,
    num_classes: int,
    new_head: bool = False,
    grid: TokenGrid | None = None,
    weights_from: str | None = None,
    **changes: Any,
) -> InitialisedClassifier:
    """A classifier of `num_classes` from pre-trained weights (fresh fc_norm and head) or from a
    classifier's.

    Weights of a classifier bring their head; `new_head` replaces it. Other arguments as for
    `load_model`; 0.6 of the tokens are kept unless `changes` or the classifier's file change it.
    Raises ValueError when the file's head has another number of classes and `new_head` is not
    given.
    """
    weights = open_weights(source, weights_from)
    spec, state = weights.spec, dict(weights.state)
    if spec.kind == "classifier" and not new_head:
        if spec.num_classes != num_classes:
            raise ValueError(
                f"the head has {format_count(spec.num_classes, 'class')}, and one of {num_classes:,} is asked for: replace it, "
                "with --new-head (Python: new_head=True)"
            )
        fresh: tuple[str, ...] = ()
    elif spec.kind == "classifier":
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
        spec, fresh = replace(spec, num_classes=num_classes, class_names=()), HEAD
    else:
        spec, fresh = as_classifier(spec, num_classes=num_classes), CLASSIFIER_ONLY
    spec, options = split_changes(spec, grid, changes)
    model = build_model(spec, **options)
    report = load_state_dict_strict(model, state, fresh=fresh, unused=PRETRAINING_ONLY)
    return InitialisedClassifier(model, report, weights.notes)


def load_encoder(
    source: str | Path | Weights, *, grid: TokenGrid | None = None, weights_from: str | None = None, **changes: Any
) -> VideoEncoder:
    """The encoder of any weights, in evaluation mode: `load_encoder(path)(frames)` gives features
    [B, D].

    A classifier's keeps the fraction of tokens that it was trained with; a pre-trained one encodes
    all tokens, unless `keep_ratio` is given: then those with most motion. Other arguments and
    errors as for `load_model`.
    """
    weights = open_weights(source, weights_from)
    if weights.spec.kind == "classifier":
        spec, options = split_changes(weights.spec, grid, changes)
        model = build_model(spec, **options)
        load_state_dict_strict(model, weights.state)
        return VideoEncoder(model, token_norm=None).eval()
    everything = {"keep_ratio": 1.0, "num_candidate_frames": 0} if changes.get("keep_ratio", 1.0) == 1 else {}
    started = load_classifier(weights, num_classes=1, grid=grid, **{**everything, **changes})
    return VideoEncoder(started.model, token_norm=read_token_norm(weights)).eval()


def read_token_norm(weights: Weights) -> nn.Module:
    """The norm that pre-training applies to every encoded token; none where the weights were saved
    without it."""
    own = {name.removeprefix(NORM): tensor for name, tensor in weights.state.items() if name.startswith(NORM)}
    if not own:
        return nn.Identity()
    norm = nn.LayerNorm(weights.spec.width, eps=weights.spec.norm_eps)
    norm.load_state_dict(own)
    return norm


def split_changes(spec: ModelSpec, grid: TokenGrid | None, changes: Mapping[str, Any]) -> tuple[ModelSpec, dict[str, Any]]:
    """The spec with its fields changed, and the other changes, which are the constructor's."""
    if grid is not None:
        spec = spec.on_grid(grid)
    in_spec = {name: value for name, value in changes.items() if name in SPEC_NAMES}
    return spec.with_options(**in_spec), {name: value for name, value in changes.items() if name not in SPEC_NAMES}


def weights_of(model: nn.Module, source: str) -> Weights:
    """A model's weights, ready to be written in any format."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return Weights(describe_model(model), state, source)


def check_complete(weights: Weights) -> None:
    """Raises ValueError that lists every tensor that is missing from, or too many for, the model
    that the weights are of."""
    if weights.spec.kind != "encoder":
        load_state_dict_strict(build_model(weights.spec), weights.state)


def build_classifier(recipe: FinetuneRecipe, *, num_classes: int, class_names: Sequence[str] = ()) -> VideoClassifier:
    """The recipe's classifier, from its weights if it names any; the fate of every tensor is
    logged.

    Raises ValueError for weights that cannot be read or do not fit the recipe or the classes.
    """
    model, section = recipe.model, recipe.finetune
    shared = dict(
        grid=recipe.clip.grid(),
        class_names=tuple(class_names),
        pruning=recipe.selection.pruning(),
        drop_path=model.drop_path,
        head_dropout=section.head_dropout,
        recompute=model.recompute,
        checkpoint_blocks=model.checkpoint_blocks,
    )
    if section.weights is None:
        if section.weights_from is not None:
            raise ValueError(
                f"finetune.weights_from={section.weights_from} chooses the weights of a run: name it, finetune.weights=RUN"
            )
        logger.info("weights: none given, training from scratch")
        candidates = recipe.candidate_grid()
        return VideoClassifier.from_name(model.name, num_classes=num_classes, candidate_grid=candidates, **shared)
    weights = read_weights(section.weights, weights_from=section.weights_from)
    if problems := name_nonfinite(weights.state):
        raise ValueError(f"{section.weights} cannot be trained from: {problems[0]}; take another checkpoint")
    check_weights(recipe, weights.spec, num_classes=num_classes, class_names=tuple(class_names))
    started = load_classifier(
        weights,
        num_classes=num_classes,
        new_head=section.new_head,
        num_candidate_frames=recipe.candidate_grid().num_frames,
        **shared,
    )
    first, *notes = describe_weights(section.weights, weights)
    for line in (f"{first}; {started.report.describe()}", *notes):
        logger.info("%s", line)
    return started.model


def check_weights(recipe: FinetuneRecipe, spec: ModelSpec, *, num_classes: int, class_names: tuple[str, ...]) -> None:
    """Raises ValueError where the model of the weights is of another size than the recipe's, or its
    head of other classes."""
    source = recipe.finetune.weights
    if spec.size_name != recipe.model.name:
        size = f"of size {spec.size_name}" if spec.size_name else "of no published size"
        raise ValueError(
            f"{source} holds a model {size} (width {spec.width}, depth {spec.depth}), and the recipe has "
            f"model.name={recipe.model.name}: "
            + (f"set model.name={spec.size_name}, or take other weights" if spec.size_name else "take other weights")
        )
    if spec.kind != "classifier" or recipe.finetune.new_head:
        return
    if spec.num_classes != num_classes:
        raise ValueError(
            f"{source} has a head of {format_count(spec.num_classes, 'class')}, and the data has {num_classes:,}: "
            "set finetune.new_head=true to replace it"
        )
    if spec.class_names and class_names and spec.class_names != class_names:
        raise ValueError(f"{source} has a head of other classes than the data's: set finetune.new_head=true to replace it")
