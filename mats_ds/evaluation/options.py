"""What scripts that run a trained model ask for on the command line: which weights, and how clips are cut out of a video.

A file of weights says the size of its clips, not how far apart their frames lie, nor how many views of a video make a test: a run
and a file of ours say what the recipe of the training had. For others it is 4 frames (VideoMAE's and MATS's on Kinetics, arXiv
2211.10636) and what the script takes by default, unless the command line says otherwise.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mats_ds.config.recipe import ClipSection
from mats_ds.core.storage.documents import MAX_YAML_BYTES, parse_yaml
from mats_ds.core.storage.files import read_text
from mats_ds.core.token_grid import TokenGrid
from mats_ds.models.weights.load import read_weights
from mats_ds.models.weights.model_weights import Weights
from mats_ds.models.weights.native import SUFFIX
from mats_ds.models.weights.origin import BEST_FILE, CLIP_KEYS, WEIGHTS_FROM, origin_of
from mats_ds.models.weights.run import RECIPE, find_steps

VIEWS = {"clips": 5, "crops": 3}  # of a test where no recipe says it; METHOD: UCF101 and K400
RECIPE_WORDS, DEFAULT_WORDS = "the recipe of the training", "the default, no recipe says it"
HINTS = ("num_frames", "height", "width", "heads")
SAMPLING = CLIP_KEYS


def add_model_options(parser: argparse.ArgumentParser, *, num_clips: int | None, num_crops: int | None) -> None:
    """Arguments that `read_model_weights` and `find_clip_section` read, the number of views, the device.

    Numbers of views that are None are those of the training's recipe (see `find_views`).
    """
    parser.add_argument(
        "--model", required=True, help="run folder or checkpoint of ours, .safetensors of ours, .pth, or Hugging Face folder"
    )
    add_weights_from(parser)
    parser.add_argument("--root", metavar="DIR", help="folder that relative paths of the manifest start from")
    views = parser.add_argument_group("views of a video")
    for name, number, text in (("clips", num_clips, "clips along time"), ("crops", num_crops, "crops along the longer side")):
        default = f"the recipe's evaluation.{name}; else {VIEWS[name]}" if number is None else str(number)
        views.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"{text} ({default})")
    views.add_argument("--stride", type=int, metavar="N", help="video frames from one frame to the next (the run's; else 4)")
    views.add_argument("--stride_seconds", type=float, metavar="S", help="the same in seconds, whatever the frame rate")
    views.add_argument("--sampling", choices=("dense", "uniform"), help="uniform: spread over the whole video (the run's)")
    running = parser.add_argument_group("how it runs")
    running.add_argument("--batch", type=int, metavar="N", help="clips at a time on each rank (whole videos, about 8; GPU 32)")
    running.add_argument("--device", help="cpu, cuda or cuda:NUMBER (default: the GPU if there is one)")
    running.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on a GPU, fp32 on a CPU")
    running.add_argument("--workers", type=int, metavar="N", help="reading threads of each rank (default: its cores)")
    running.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    trained = parser.add_argument_group("what the weights were trained on, where a .pth does not tell")
    for name, text in (("num_frames", "of a clip (16)"), ("height", "of a frame (224)"), ("width", "of a frame (224)")):
        trained.add_argument(f"--{name}", type=int, metavar="N", help=text)
    trained.add_argument("--heads", type=int, metavar="N", help="attention heads, for a width that no published size has")


def add_weights_from(parser: argparse.ArgumentParser) -> None:
    """Which weights of a run; scripts with hyphens in their options take it with one, too."""
    parser.add_argument(
        "--weights_from",
        "--weights-from",
        choices=WEIGHTS_FROM,
        help="which weights of a run: last (default; averaged where the run keeps an average, finetune.ema_decay), average, "
        f"unaveraged, or best ({BEST_FILE}: chosen with the videos of evaluation.manifest, so no result on them)",
    )


def read_model_weights(options: argparse.Namespace) -> Weights:
    """The weights that --model names. Raises ValueError for a wrong path or file."""
    hints = {name: value for name in HINTS if (value := getattr(options, name)) is not None}
    return read_weights(options.model, weights_from=options.weights_from, **hints)


def describe_weights(path: str | Path, weights: Weights) -> list[str]:
    """Lines that say which weights of which file a number belongs to, and what should be known about their reading."""
    return [f"weights: {path}: {weights.source}", *(f"note: {note}" for note in weights.notes)]


def find_views(options: argparse.Namespace, weights: Weights) -> str:
    """Fill in --clips and --crops where they were left out; returns the views and whence they come, in words."""
    known = weights.origin.views or read_run_views(Path(options.model))
    whence = []
    for name, usual in VIEWS.items():
        if getattr(options, name) is not None:
            whence.append(f"--{name}")
            continue
        setattr(options, name, known.get(name, usual))
        whence.append(RECIPE_WORDS if name in known else DEFAULT_WORDS)
    words = whence[0] if whence[0] == whence[1] else f"{whence[0]}; {whence[1]}"
    return f"{options.clips} x {options.crops} views of a video (clips x crops; {words})"


def find_clip_section(options: argparse.Namespace, grid: TokenGrid, weights: Weights | None = None) -> ClipSection:
    """How clips of `grid` are taken: what the command line says, else the recipe of the training, else the default.

    Raises ValueError for values that cannot be, and for numbers of views below one.
    """
    for name in ("clips", "crops", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is at least 1, got {value}")
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers is 0 (read in the same thread) or more, got {options.workers}")
    fields = dict(weights.origin.clip) if weights is not None else {}
    fields = fields or read_run_clip(Path(options.model))
    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    if "stride" in given and "stride_seconds" in given:
        raise ValueError("--stride and --stride_seconds say the same thing: give one")
    if "stride" in given:
        fields.pop("stride_seconds", None)
    size = dict(num_frames=grid.num_frames, height=grid.height, width=grid.width, tubelet=grid.tubelet)
    try:
        return ClipSection.model_validate({**fields, **given, **size})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ValueError(f"clips cannot be taken so: {problems}") from None


def describe_clips(options: argparse.Namespace, section: ClipSection, weights: Weights) -> str:
    """How frames are taken and whence that comes, in words."""
    named = [f"--{name}" for name in SAMPLING if getattr(options, name) is not None]
    is_known = weights.origin.clip or read_run_clip(Path(options.model))
    whence = "; ".join([*named, RECIPE_WORDS if is_known else DEFAULT_WORDS])
    apart = f"{section.stride_seconds:g} s" if section.stride_seconds is not None else f"{section.stride} frames"
    spread = "spread evenly over the video" if section.sampling == "uniform" else f"{apart} apart"
    return f"{section.num_frames} frames of {section.height} x {section.width}, {spread} ({section.sampling} sampling; {whence})"


def read_run_clip(path: Path) -> dict[str, Any]:
    """`stride`, `stride_seconds` and `sampling` of a run's recipe; nothing where there is none. `path`: see `read_beside`."""
    return dict(origin_of(read_beside(path), step=None, averaged=None).clip)


def read_run_views(path: Path) -> dict[str, int]:
    """`clips` and `crops` that a run's recipe tests with; nothing where it does not say. `path`: see `read_beside`."""
    return dict(origin_of(read_beside(path), step=None, averaged=None).views)


def read_beside(path: Path) -> Any:
    """What recipe.yaml of a run holds; None where there is none.

    `path`: a run folder, its folder of checkpoints, one of them, or a file of weights in the run folder.
    """
    steps = find_steps(path) if path.is_dir() else []
    # a run's checkpoints may be a link to a larger disk: first the run that the path names
    runs = [where.parent.parent for step in steps[:1] for where in (Path(os.path.abspath(step)), step.resolve())]
    for folder in (path, *runs) if steps else (path.parent,):
        if os.path.lexists(folder / RECIPE) and (steps or path.suffix == SUFFIX):
            return parse_yaml(read_text(folder / RECIPE, max_bytes=MAX_YAML_BYTES))
    return None


def choose_batch(options: argparse.Namespace, *, on_gpu: bool) -> int:
    """Clips at a time: --batch, else whole videos, so that the views of each are decoded in one pass."""
    num_views = options.clips * options.crops
    return options.batch or num_views * max(1, (32 if on_gpu else 8) // num_views)
