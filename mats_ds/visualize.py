"""Show what a model sees of a video: motion scores, kept and visible tokens, the reconstruction, the frames that were taken.

    python mats_ds/visualize.py VIDEO --weights RUN_OR_FILE --out x.mp4 [--start SECONDS] [--clips N]     # or x.gif, x.png
    python mats_ds/visualize.py VIDEO --out x.gif --recipe tiny                                           # no weights: motion

Reads top to bottom: read the recipe and the weights, plan the clips, look at each, draw, write.
Exit status: 0 done, 2 unusable input or arguments, nothing written.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from av.error import FFmpegError
from pydantic import ValidationError
from torch import nn

from mats_ds.config.load import load_recipe
from mats_ds.config.recipe import ClipSection, ModelSection, Recipe
from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.clips import ClipSpec
from mats_ds.core.storage.output_file import check_output_file, describe_fault, describe_leftovers
from mats_ds.core.text import log_to_stderr, say
from mats_ds.core.token_grid import STRATEGIES
from mats_ds.data.video.indexing import UnreadableVideo, index_video
from mats_ds.distributed.ranks import find_device
from mats_ds.evaluation.options import add_weights_from, describe_weights
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.mae import MaskedAutoencoder
from mats_ds.models.weights.load import load_classifier, load_model, read_weights
from mats_ds.models.weights.run import read_recipe_beside
from mats_ds.visualization.clip_view import ClipView, look_with_decoder, look_without_decoder
from mats_ds.visualization.excerpt import Excerpt, plan_excerpts, read_excerpt
from mats_ds.visualization.page import Page, Strip, draw_page
from mats_ds.visualization.panels import draw_panels
from mats_ds.visualization.video_writer import check_suffix, is_our_film, write_gif, write_mp4, write_png

FAULTS = (OSError, FFmpegError, ImportError, MemoryError)  # of reading, drawing, writing
PNG_ROWS = 12  # of all clips together
MAX_ROWS, MIN_ROWS = 4, 2  # of one clip in a still picture
MIN_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND = 1.0, 30.0


@dataclass(frozen=True)
class Viewer:
    """A model and what it can tell: `decodes` where its decoder is trained, `names_classes` where its head is."""

    model: nn.Module
    recipe: Recipe
    note: str
    decodes: bool = False
    names_classes: bool = False


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Show what a model sees of a video: original, motion scores, kept tokens, visible tokens, reconstruction. "
        "With adaptive frames also which of the candidate frames were taken.",
        epilog="Example: python mats_ds/visualize.py video.mp4 --weights runs/k400 --out video.gif --start 2.5 --clips 3",
    )
    parser.add_argument("video", help="any video file")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="what to write: .mp4, .gif, or .png (a few frames of each clip)"
    )
    parser.add_argument(
        "--weights",
        "--model",
        metavar="PATH",
        help="run folder or checkpoint of ours, .safetensors, .pth, or Hugging Face folder; without it the patch embedding is "
        "untrained: motion and tokens are shown, and there is no reconstruction",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE also where something else wrote it")
    add_weights_from(parser)
    parser.add_argument(
        "--recipe", metavar="NAME", help="size and spacing of the frames (default: that of the run, else default)"
    )
    where = parser.add_argument_group("which part of the video")
    where.add_argument("--start", type=float, metavar="SECONDS", help="where the first clip begins; the others follow it")
    where.add_argument("--clips", type=int, default=1, metavar="N", help="number of clips; without --start spread evenly (1)")
    where.add_argument("--stride", type=int, metavar="N", help="video frames from one frame to the next (default: the recipe's)")
    choice = parser.add_argument_group("which tokens and frames (default: those of the weights or the recipe)")
    choice.add_argument("--strategy", choices=STRATEGIES, help="how tokens are chosen")
    choice.add_argument("--keep_ratio", type=float, metavar="R", help="share of the tokens that is kept")
    choice.add_argument("--visible_ratio", type=float, metavar="R", help="share that the encoder sees")
    choice.add_argument(
        "--frame_candidates", type=float, metavar="A", help="read A times as many frames, take the liveliest (1.5)"
    )
    parser.add_argument("--fps", type=float, help="frames a second of an .mp4 or .gif (default: as the video plays, 1 to 30)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random: visible tokens, frames (0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER (default: the GPU if there is one)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> None:
    """Raises ValueError for a video that cannot be read and for an output that cannot be written."""
    log_to_stderr(logging.WARNING)
    try:
        visualize(options)
    except UnreadableVideo as error:
        raise ValueError(f"{options.video}: {error.reason}") from error
    except FAULTS as error:
        raise ValueError(describe_fault(error, options.out)) from error


def visualize(options: argparse.Namespace) -> None:
    suffix = check_suffix(options.out)
    if options.fps is not None and options.fps <= 0:
        raise ValueError(f"--fps is above 0, got {options.fps:g}")
    inputs = (options.video, options.weights, options.recipe)
    check_output_file(Path(options.out), inputs=inputs, is_ours=is_our_film, force=options.force)
    say(*(f"note: {line}" for line in describe_leftovers(Path(options.out))))
    index = index_video(options.video)
    device = find_device(options.device)
    viewer = open_viewer(options)
    viewer.model.to(device).eval()
    candidates = viewer.model.candidate_grid
    specs = plan_excerpts(
        index,
        section=clip_section(viewer, options.stride),
        num_frames=candidates.num_frames,
        num_clips=options.clips,
        start_seconds=options.start,
    )
    write_sheets(options.out, suffix, look_at_clips(viewer, specs, options), frames_per_second=options.fps)
    told = f" ({len(specs)} clips: the video has no room for {options.clips})" if len(specs) < options.clips else ""
    say(f"wrote {options.out}{told}: {viewer.note}")


def look_at_clips(viewer: Viewer, specs: list[ClipSpec], options: argparse.Namespace) -> Iterator[Page]:
    """One sheet a clip, read and computed when it is asked for: hours of video need no more memory than one clip."""
    candidates = viewer.model.candidate_grid
    look = look_with_decoder if viewer.decodes else look_without_decoder
    for number, spec in enumerate(specs):
        excerpt = read_excerpt(options.video, spec, height=candidates.height, width=candidates.width)
        frames_CHWC = torch.from_numpy(excerpt.frames_THWC).to(viewer.model.positions_ND.device)
        sight = look(viewer.model, frames_CHWC, seed=options.seed + number)
        count = f", clip {number + 1} of {len(specs)}" if len(specs) > 1 else ""
        note = viewer.note + (f"; prediction: {classify(viewer.model, frames_CHWC)}" if viewer.names_classes else "")
        yield make_sheet(sight, excerpt, viewer.model, title=f"{Path(options.video).name}{count}", note=note)


def open_viewer(options: argparse.Namespace) -> Viewer:
    """The model of --weights, or an untrained patch embedding, with the changes that were asked for."""
    beside = read_recipe_beside(options.weights) if options.weights else None
    recipe = load_recipe(options.recipe or "default") if options.recipe or beside is None else beside
    names = ("strategy", "keep_ratio", "visible_ratio", "frame_candidates")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.weights is None:
        recipe = change_selection(recipe, asked)
        torch.manual_seed(options.seed)
        small = recipe.model_copy(update={"model": ModelSection(name="tiny")})  # only its patch embedding is used
        model = MaskedAutoencoder.from_recipe(small)
        return Viewer(model, recipe, "no weights given: motion of an untrained patch embedding, no reconstruction")
    weights = read_weights(options.weights, weights_from=options.weights_from)
    spec = weights.spec
    say(*describe_weights(options.weights, weights))
    if options.recipe is None:
        shown = {**recipe.clip.model_dump(), **weights.origin.clip}
        recipe = recipe.model_copy(update={"clip": ClipSection.model_validate(shown)})
    if "frame_candidates" in asked:
        chosen = change_selection(recipe, {"frame_candidates": asked.pop("frame_candidates")})
        clip = chosen.clip.model_copy(update=vars(spec.grid))
        asked["num_candidate_frames"] = chosen.model_copy(update={"clip": clip}).candidate_grid().num_frames
    if spec.kind == "encoder":
        started = load_classifier(weights, num_classes=1, **asked)
        return Viewer(started.model, recipe, "an encoder without decoder: no reconstruction")
    if spec.kind == "classifier" and "keep_ratio" in asked:
        asked["visible_ratio"] = asked["keep_ratio"]
    model = load_model(weights, **asked)
    if isinstance(model, VideoClassifier):
        return Viewer(model, recipe, "a classifier: no reconstruction", names_classes=True)
    size = spec.size_name or f"width {spec.width}"
    kept = f"{model.pruning.strategy}, keep {model.pruning.keep_ratio:g}, visible {model.pruning.visible_ratio:g}"
    note = f"{Path(options.weights).name}: {size}, {kept}"
    return Viewer(model, recipe, note, decodes=True)


def change_selection(recipe: Recipe, changes: dict) -> Recipe:
    """The recipe with other keys in its section `selection`. Raises ValueError for values that do not go together."""
    tree = recipe.model_dump()
    tree["selection"] |= changes
    try:
        return type(recipe).model_validate(tree)
    except ValidationError as error:
        problems = ((problem["loc"][-1:], problem["msg"].removeprefix("Value error, ")) for problem in error.errors())
        raise ValueError("; ".join(": ".join([*map(str, place), told]) for place, told in problems)) from None


def clip_section(viewer: Viewer, stride: int | None) -> ClipSection:
    """How frames are spaced: by the recipe, for as many frames as the model takes; `stride` in place of the recipe's."""
    section = viewer.recipe.clip.model_copy(update={"num_frames": viewer.model.grid.num_frames})
    return section if stride is None else section.model_copy(update={"stride": stride, "stride_seconds": None})


@torch.no_grad()
def classify(model: VideoClassifier, frames_CHWC: torch.Tensor) -> str:
    """The likeliest class with its probability."""
    probability_C = model(frames_CHWC[None]).float().softmax(dim=1)[0]
    best = int(probability_C.argmax())
    name = model.class_names[best] if model.class_names else f"class {best}"
    return f"{name} ({100 * float(probability_C[best]):.0f}%)"


def make_sheet(sight: ClipView, excerpt: Excerpt, model: nn.Module, *, title: str, note: str) -> Page:
    step = model.grid.tubelet[0]
    tubelet_T = sight.frame_T // step
    strip = None
    if model.candidate_grid.tau > model.grid.tau:
        taken_K = np.zeros(model.candidate_grid.tau, bool)
        taken_K[tubelet_T] = True
        strip = Strip(excerpt.frames_THWC[::step], taken_K)
    return Page(
        title=title,
        panels=draw_panels(sight),
        seconds_T=excerpt.seconds_T[sight.frame_T],
        tubelet_T=tubelet_T,
        strip=strip,
        note=note,
    )


def play_rate(seconds_T: np.ndarray) -> float:
    """Frames a second at which these frames take the time that they took in the video, within sensible bounds."""
    steps = np.diff(seconds_T)
    mean = float(steps.mean()) if len(steps) and steps.mean() > 0 else 1.0
    return min(MAX_FRAMES_PER_SECOND, max(MIN_FRAMES_PER_SECOND, 1 / mean))


def write_sheets(out: str, suffix: str, sheets: Iterator[Page], *, frames_per_second: float | None) -> None:
    """A film of all frames of all clips, or a still picture of a few frames of each, one clip below the other."""
    if suffix == ".png":
        drawn = list(sheets)
        num_rows = max(MIN_ROWS, min(MAX_ROWS, PNG_ROWS // len(drawn)))
        write_png(out, np.concatenate([draw_page(sheet, spread_frames(len(sheet.seconds_T), num_rows)) for sheet in drawn]))
        return
    first = next(sheets)
    pictures = (draw_page(sheet, [frame]) for sheet in chain([first], sheets) for frame in range(len(sheet.seconds_T)))
    write = write_mp4 if suffix == ".mp4" else write_gif
    write(out, pictures, frames_per_second=frames_per_second or play_rate(first.seconds_T))


def spread_frames(num_frames: int, num_rows: int) -> list[int]:
    """Frames from the middle of equal parts of a clip."""
    num_rows = min(num_rows, num_frames)
    return [(2 * row + 1) * num_frames // (2 * num_rows) for row in range(num_rows)]


if __name__ == "__main__":
    leave(main())
