"""What scripts that run a trained model ask for on the command line: which weights, and how clips are cut out of a video.

A file of weights says the size of its clips, not how far apart their frames lie: that is in the recipe of a run folder, else 4
frames (VideoMAE's and MATS's on Kinetics, arXiv 2211.10636), unless the command line says otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mats_ds.clips import TokenGrid
from mats_ds.config import ClipSection
from mats_ds.interop.load import read_weights
from mats_ds.interop.plain import SUFFIX
from mats_ds.interop.run_checkpoint import find_steps
from mats_ds.interop.weights import Weights
from mats_ds.parsing import parse_yaml

RECIPE = "recipe.yaml"
HINTS = ("num_frames", "height", "width", "heads")
SAMPLING = ("stride", "stride_seconds", "sampling")


def add_model_options(parser: argparse.ArgumentParser, *, num_clips: int, num_crops: int) -> None:
    """Arguments that `read_model_weights` and `find_clip_section` read, the number of views, the device."""
    parser.add_argument(
        "--model", required=True, help="run folder or checkpoint of ours, .safetensors of ours, .pth, or Hugging Face folder"
    )
    parser.add_argument("--root", metavar="DIR", help="folder that relative paths of the manifest start from")
    views = parser.add_argument_group("views of a video")
    views.add_argument("--clips", type=int, default=num_clips, metavar="N", help="clips along time (%(default)s)")
    views.add_argument("--crops", type=int, default=num_crops, metavar="N", help="crops along the longer side (%(default)s)")
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


def read_model_weights(options: argparse.Namespace) -> Weights:
    """The weights that --model names. Raises ValueError for a wrong path or file."""
    return read_weights(options.model, **{name: value for name in HINTS if (value := getattr(options, name)) is not None})


def find_clip_section(options: argparse.Namespace, grid: TokenGrid) -> ClipSection:
    """How clips of `grid` are taken: what the command line says, else the recipe of the run, else the default.

    Raises ValueError for values that cannot be, and for numbers of views below one.
    """
    for name in ("clips", "crops", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is at least 1, got {value}")
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers is 0 (read in the same thread) or more, got {options.workers}")
    fields = read_run_clip(Path(options.model))
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


def read_run_clip(path: Path) -> dict[str, Any]:
    """`stride`, `stride_seconds` and `sampling` of a run's recipe; nothing where there is none.

    `path`: a run folder, its folder of checkpoints, one of them, or a file of weights in the run folder.
    """
    steps = find_steps(path) if path.is_dir() else []
    for folder in (path, *(step.parent.parent for step in steps[:1])) if steps else (path.parent,):
        if (folder / RECIPE).is_file() and (steps or path.suffix == SUFFIX):
            recipe = parse_yaml((folder / RECIPE).read_text(encoding="utf-8"))
            clip = recipe.get("clip") if isinstance(recipe, dict) else None
            clip = clip if isinstance(clip, dict) else {}
            return {name: clip[name] for name in SAMPLING if clip.get(name) is not None}
    return {}


def choose_batch(options: argparse.Namespace, *, on_gpu: bool) -> int:
    """Clips at a time: --batch, else whole videos, so that the views of each are decoded in one pass."""
    num_views = options.clips * options.crops
    return options.batch or num_views * max(1, (32 if on_gpu else 8) // num_views)
