"""Show what a model sees of a video: motion scores, kept and visible tokens, the reconstruction,
the frames that were taken.

    python mats_ds/visualize.py VIDEO --weights MODEL --out x.mp4 [--start SECONDS] [--clips N]
    python mats_ds/visualize.py VIDEO --out x.gif --recipe tiny    # without weights: motion alone

Exit status: 0 done, 2 unusable input or arguments, nothing written.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import argparse
import logging

from mats_ds.config.load import find_recipe
from mats_ds.core.cli import ArgumentParser, importing, leave, run_script
from mats_ds.core.shards.members import is_file
from mats_ds.core.storage.file_kind import why_no_video
from mats_ds.core.storage.output_file import check_output_file, describe_fault, describe_leftovers
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.text import log_to_stderr, say
from mats_ds.core.token_grid import STRATEGIES
from mats_ds.evaluation.options import add_weights_from
from mats_ds.models.weights.source import check_source
from mats_ds.visualization.panels import PANELS
from mats_ds.visualization.render_options import RenderOptions
from mats_ds.visualization.video_writer import check_suffix, is_our_picture

FAULTS = (OSError, ImportError, MemoryError)  # of reading, drawing, writing
SELECTION = ("strategy", "keep_ratio", "visible_ratio", "frame_candidates")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Show what a model sees of a video: original, motion scores, kept tokens, visible tokens, reconstruction. "
        "With adaptive frames also which of the candidate frames were taken.",
        epilog=f"Example: {own_command('visualize')} video.mp4 --weights runs/k400 --out video.gif --start 2.5 --clips 3",
    )
    parser.add_argument("video", nargs="+", help="any video file; several are shown one after the other")
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
    parser.add_argument(
        "--panels",
        nargs="+",
        choices=PANELS,
        metavar="NAME",
        help=f"which pictures stand side by side (all): {', '.join(PANELS)}",
    )
    choice = parser.add_argument_group("which tokens and frames (default: those of the weights or the recipe)")
    choice.add_argument("--strategy", choices=STRATEGIES, help="how tokens are chosen")
    choice.add_argument("--keep_ratio", type=float, metavar="R", help="fraction of the tokens that is kept")
    choice.add_argument("--visible_ratio", type=float, metavar="R", help="fraction that the encoder sees")
    choice.add_argument(
        "--frame_candidates", type=float, metavar="A", help="read A times as many frames, take those with the most motion (1.5)"
    )
    parser.add_argument("--fps", type=float, help="frames a second of an .mp4 or .gif (default: as the video plays, 1 to 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choice of visible tokens and frames (0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER (default: the GPU if there is one)")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> None:
    """Raises ValueError for a video that cannot be read and for an output that cannot be
    written."""
    log_to_stderr(logging.WARNING)
    try:
        visualize(options, read_options(options))
    except FAULTS as error:
        raise ValueError(describe_fault(error, options.out)) from error


def read_options(options: argparse.Namespace) -> RenderOptions:
    """The options, where output, videos and weights are there: what is known before torch is
    imported. Raises ValueError."""
    check_suffix(options.out)
    inputs = (*options.video, options.weights, options.recipe)
    check_output_file(Path(options.out), inputs=inputs, is_ours=is_our_picture, force=options.force)
    say(*(f"note: {line}" for line in describe_leftovers(Path(options.out))))
    for video in options.video:
        if not is_file(video):
            raise ValueError(why_no_video(video, "no file"))
    if options.weights is not None:
        check_source(options.weights)
    if options.recipe is not None:
        find_recipe(options.recipe)
    return RenderOptions(
        videos=options.video,
        out=options.out,
        weights=options.weights,
        recipe=options.recipe,
        start_seconds=options.start,
        num_clips=options.clips,
        stride=options.stride,
        selection={name: value for name in SELECTION if (value := getattr(options, name)) is not None},
        frames_per_second=options.fps,
        seed=options.seed,
        device=options.device,
        panels=options.panels,
    )


def visualize(options: argparse.Namespace, wanted: RenderOptions) -> None:
    """Read the weights, render."""
    with importing("torch"):
        from av.error import FFmpegError

        from mats_ds.data.video.containers import UnreadableVideo
        from mats_ds.models.weights.load import describe_weights, read_weights
        from mats_ds.visualization.render import render

    weights = None
    try:
        if options.weights is not None:
            weights = read_weights(options.weights, weights_from=options.weights_from)
            say(*describe_weights(options.weights, weights))
        say(render(wanted, weights))
    except UnreadableVideo as error:
        raise ValueError(error.reason) from error
    except FFmpegError as error:
        raise ValueError(describe_fault(error, options.out)) from error


if __name__ == "__main__":
    leave(main())
