"""Options of the programs that run a trained model: which weights, and how videos are shown to it.

`read_request` turns the command line into a `ModelRequest`; with the weights at hand, `plan_views`
makes a `ViewPlan` of it. A weight file gives the size of its clips, not the spacing of their frames
nor the number of views per video: for runs and files of ours these are in the recipe of the
training. For others the spacing is 4 frames (VideoMAE's and MATS's on Kinetics, arXiv 2211.10636)
and the number of views the program's default, unless the command line gives them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mats_ds.config.recipe import ClipSection
from mats_ds.core.format import format_count, format_views
from mats_ds.core.run_dir import RECIPE_FILE
from mats_ds.core.storage.documents import MAX_YAML_BYTES, parse_yaml
from mats_ds.core.storage.files import read_text
from mats_ds.core.token_grid import TokenGrid
from mats_ds.data.early_list import check_list
from mats_ds.data.manifest import Manifest
from mats_ds.distributed.ranks import find_dtype
from mats_ds.models.weights.origin import BEST_FILE, CLIP_KEYS, WEIGHTS_FROM, origin_of
from mats_ds.models.weights.source import SUFFIX, check_source, find_steps

if TYPE_CHECKING:  # imported where it is used: the options alone need no torch
    import torch

    from mats_ds.data.loading.build import ViewBatch
    from mats_ds.models.weights.model_weights import Weights

VIEWS = {"clips": 5, "crops": 3}  # without a recipe; METHOD: UCF101 and K400
FROM_RECIPE, FROM_DEFAULT = "the recipe of the training", "the default: no recipe has them"
HINTS = ("num_frames", "height", "width", "heads")
CLIPS_AT_ONCE = {"cpu": 8, "cuda": 32}


@dataclass(frozen=True)
class ModelRequest:
    """The model and views that the command line asks for; None: not given.

    hints: sizes for a .pth that does not hold them. sampling: those of CLIP_KEYS that were given.
    clips, crops: views per video.
    """

    path: str
    weights_from: str | None
    hints: Mapping[str, int]
    sampling: Mapping[str, Any]
    clips: int | None
    crops: int | None
    batch: int | None
    precision: str | None
    workers: int | None


@dataclass(frozen=True)
class ViewPlan:
    """The plan of showing videos to a model: `num_clips` x `num_crops` views, `micro_batch` at a
    time.

    num_frames: read per view, more than the section's with adaptive frames. views_from, clips_from:
    which option, recipe or default the numbers are from.
    """

    section: ClipSection
    num_clips: int
    num_crops: int
    num_frames: int
    micro_batch: int
    num_workers: int | None
    device: torch.device
    dtype: torch.dtype
    views_from: str
    clips_from: str

    @property
    def num_views(self) -> int:
        return self.num_clips * self.num_crops

    @property
    def precision(self) -> str:
        """The name of the type, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def read(self, manifest: Manifest, *, rank: int = 0, world_size: int = 1, label: str = "") -> Iterator[ViewBatch]:
        """This rank's views of all videos, as `read_views` gives them."""
        from mats_ds.data.loading.build import read_views

        return read_views(
            manifest,
            recipe_clip=self.section,
            num_clips=self.num_clips,
            num_crops=self.num_crops,
            num_frames=self.num_frames,
            micro_batch=self.micro_batch,
            device=self.device,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            label=label,
        )

    def as_json(self) -> dict[str, Any]:
        """Numbers of views and sampling, for results.json and features.json."""
        return {"clips": self.num_clips, "crops": self.num_crops, **self.section.model_dump(include=set(CLIP_KEYS))}

    def describe_views(self) -> str:
        return f"{format_views(self.num_clips, self.num_crops)} of a video (clips x crops; {self.views_from})"

    def describe_clips(self) -> str:
        section = self.section
        spacing = f"{section.stride_seconds:g} s" if section.stride_seconds is not None else format_count(section.stride, "frame")
        spread = "spread evenly over the video" if section.sampling == "uniform" else f"{spacing} apart"
        frames = f"{format_count(section.num_frames, 'frame')} of {section.height} x {section.width}"
        return f"{frames}, {spread} ({section.sampling} sampling; {self.clips_from})"


def add_model_options(parser: argparse.ArgumentParser, *, num_clips: int | None, num_crops: int | None) -> None:
    """Add the options that `read_request` reads, --root and --device.

    num_clips, num_crops: default numbers of views; None: those of the training's recipe (see
    `plan_views`).
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
    views.add_argument("--sampling", choices=("dense", "uniform"), help="uniform: spread over the video (the run's)")
    running = parser.add_argument_group("how it runs")
    running.add_argument(
        "--batch", type=int, metavar="N", help="clips at a time on a rank (all views of a video, about 8; GPU 32)"
    )
    running.add_argument("--device", help="cpu, cuda or cuda:NUMBER (default: the GPU if there is one)")
    running.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on a GPU, fp32 on a CPU")
    running.add_argument("--workers", type=int, metavar="N", help="reading processes of every rank (default: its cores)")
    # the deepspeed launcher passes it
    running.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    trained = parser.add_argument_group("sizes that the weights were trained with, which a .pth may not hold")
    for name, text in (("num_frames", "of a clip (16)"), ("height", "of a frame (224)"), ("width", "of a frame (224)")):
        trained.add_argument(f"--{name}", type=int, metavar="N", help=text)
    trained.add_argument("--heads", type=int, metavar="N", help="attention heads, for a width that no published size has")


def add_weights_from(parser: argparse.ArgumentParser) -> None:
    """Add --weights_from, which is also accepted with a hyphen: which weights of a run."""
    parser.add_argument(
        "--weights_from",
        "--weights-from",
        choices=WEIGHTS_FROM,
        help=f"which weights of a run: best ({BEST_FILE}; the default where the run has it: chosen with the videos of "
        "evaluation.manifest, so no result on them), last (else; averaged where the run keeps an average, finetune.ema_decay), "
        "average, or unaveraged",
    )


def read_request(options: argparse.Namespace) -> ModelRequest:
    """The options of `add_model_options` as one value. Raises ValueError for impossible numbers."""
    for name in ("clips", "crops", "batch"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is at least 1, got {value}")
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers is 0 (read in the same thread) or more, got {options.workers}")
    hints, sampling = (
        {name: value for name in names if (value := getattr(options, name)) is not None} for names in (HINTS, CLIP_KEYS)
    )
    if "stride" in sampling and "stride_seconds" in sampling:
        raise ValueError("--stride and --stride_seconds both set the spacing of frames: give one")
    return ModelRequest(
        path=str(options.model),
        weights_from=options.weights_from,
        hints=hints,
        sampling=sampling,
        clips=options.clips,
        crops=options.crops,
        batch=options.batch,
        precision=options.precision,
        workers=options.workers,
    )


def check_paths(options: argparse.Namespace, *sources: str | None) -> list[Manifest | None]:
    """The short ones of these lists of videos (see `check_list`). Raises ValueError for a --model
    without weights and for lists that cannot be read: what is known before torch is imported."""
    check_source(options.model)
    return [None if source is None else check_list(source, root=options.root) for source in sources]


def read_model_weights(request: ModelRequest) -> Weights:
    """The weights of --model. Raises ValueError for a wrong path or file."""
    from mats_ds.models.weights.load import read_weights

    return read_weights(request.path, weights_from=request.weights_from, **request.hints)


def plan_views(request: ModelRequest, weights: Weights, *, grid: TokenGrid, num_frames: int, device: torch.device) -> ViewPlan:
    """The plan of showing videos to a model of `grid` that reads `num_frames` frames per view.

    Each number is the command line's, else the recipe's, else the default. Raises ValueError for
    sampling that cannot be.
    """
    numbers, views_from = choose_views(request, weights)
    section, clips_from = choose_clip_section(request, weights, grid)
    num_views = numbers["clips"] * numbers["crops"]
    return ViewPlan(
        section=section,
        num_clips=numbers["clips"],
        num_crops=numbers["crops"],
        num_frames=num_frames,
        # multiples of a video's views, so that they are decoded in one pass
        micro_batch=request.batch or num_views * max(1, CLIPS_AT_ONCE[device.type] // num_views),
        num_workers=request.workers,
        device=device,
        dtype=find_dtype(request.precision, device),
        views_from=views_from,
        clips_from=clips_from,
    )


def choose_views(request: ModelRequest, weights: Weights) -> tuple[dict[str, int], str]:
    """Numbers of clips and crops per video, and where they are from."""
    in_recipe = weights.origin.views or read_run_views(Path(request.path))
    numbers, sources = {}, []
    for name, default in VIEWS.items():
        given = getattr(request, name)
        numbers[name] = in_recipe.get(name, default) if given is None else given
        sources.append(f"--{name}" if given is not None else FROM_RECIPE if name in in_recipe else FROM_DEFAULT)
    return numbers, "; ".join(dict.fromkeys(sources))


def choose_clip_section(request: ModelRequest, weights: Weights, grid: TokenGrid) -> tuple[ClipSection, str]:
    """The sampling of clips of `grid`, and its source. Raises ValueError for impossible
    sampling."""
    in_recipe = dict(weights.origin.clip) or read_run_clip(Path(request.path))
    spacing = {key: value for key, value in in_recipe.items() if key != "stride_seconds" or "stride" not in request.sampling}
    size = dict(num_frames=grid.num_frames, height=grid.height, width=grid.width, tubelet=grid.tubelet)
    sources = [*(f"--{name}" for name in request.sampling), FROM_RECIPE if in_recipe else FROM_DEFAULT]
    try:
        return ClipSection.model_validate({**spacing, **request.sampling, **size}), "; ".join(sources)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(f'--{name}' for name in problem['loc'])}: {problem['msg']}, got {problem['input']!r:.80}"
            for problem in error.errors()
        )
        raise ValueError(f"clips cannot be sampled so: {problems}") from None


def read_run_clip(path: Path) -> dict[str, Any]:
    """`stride`, `stride_seconds`, `sampling` of a run's recipe, if any; `path`: see
    `read_beside`."""
    return dict(origin_of(read_beside(path), step=None, averaged=None).clip)


def read_run_views(path: Path) -> dict[str, int]:
    """`clips` and `crops` for testing of a run's recipe, if any; `path`: see `read_beside`."""
    return dict(origin_of(read_beside(path), step=None, averaged=None).views)


def read_beside(path: Path) -> Any:
    """The content of a run's recipe.yaml; None without one.

    `path`: a run folder, its folder of checkpoints, one of them, or a weight file in the run
    folder.
    """
    steps = find_steps(path) if path.is_dir() else []
    # a run's checkpoints may be a link to a larger disk: the run that the path names comes first
    runs = [step_path.parent.parent for step in steps[:1] for step_path in (Path(os.path.abspath(step)), step.resolve())]
    for folder in (path, *runs) if steps else (path.parent,):
        if os.path.lexists(folder / RECIPE_FILE) and (steps or path.suffix == SUFFIX):
            return parse_yaml(read_text(folder / RECIPE_FILE, max_bytes=MAX_YAML_BYTES))
    return None
