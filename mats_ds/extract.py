"""Extract the features of every video of a manifest: shards of arrays and an index, or one array of
sliding windows a video.

    bash launch.sh extract --model runs/k400 --manifest videos.csv --out features   # all GPUs
    python mats_ds/extract.py --model MODEL --manifest videos.csv --out features --pool none
    bash launch.sh extract --model runs/k400 --manifest videos.csv --out out --window 2 --hop 0.5

The same command continues an earlier extraction; shards are equal on any number of ranks. Labels
are not needed. Exit status: 0 done, 1 stopped by a fault (no room), 2 unusable input or arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import argparse

from mats_ds.core.cli import LAUNCHER_OPTIONS, ArgumentParser, importing, leave, run_script
from mats_ds.core.storage.output_folder import check_output_folder
from mats_ds.core.storage.package_files import own_command
from mats_ds.distributed.ranks import begin_rank, join_ranks
from mats_ds.distributed.scheduler_env import are_all_here
from mats_ds.evaluation.features.extract_options import SUFFIXES, ShardOptions, WindowTimes
from mats_ds.evaluation.features.feature_folder import ADVICE, COMMAND, extract, is_features_folder
from mats_ds.evaluation.options import add_model_options, check_paths, read_request

SHARD_VIDEOS = {"mean": 1000, "tubelet": 1000, "none": 32}  # all tokens of a ViT-B clip are 5 MB


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        launcher=LAUNCHER_OPTIONS,
        description="Extract the features of every video of a manifest into shards with an index; call it again to continue.",
        epilog=f"Example: {own_command('extract')} --model runs/k400 --manifest videos.csv --out features --pool tubelet",
    )
    add_model_options(parser, num_clips=1, num_crops=1)
    parser.add_argument("--manifest", required=True, help="a .csv, a list of `path label` lines, or a folder of videos")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the shards, index.csv and unreadable.csv")
    parser.add_argument(
        "--pool",
        choices=tuple(SHARD_VIDEOS),
        default="mean",
        help="one vector per view (default), one per tubelet (time step), or every token with its position",
    )
    parser.add_argument("--keep_ratio", type=float, metavar="R", help="fraction of tokens to keep (a classifier's own; else all)")
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="safetensors", help="of the shards (default: %(default)s)")
    parser.add_argument("--store", choices=("float32", "float16"), default="float32", help="type of the features (%(default)s)")
    windows = parser.add_argument_group("sliding windows, for temporal action detection (ActionFormer, OpenTAD)")
    windows.add_argument("--window", type=float, metavar="SECONDS", help="one VIDEO.npy a video: a feature for each window")
    windows.add_argument("--hop", type=float, metavar="SECONDS", help="from the start of a window to that of the next")
    parser.add_argument("--shard_videos", type=int, metavar="N", help="videos of a shard (1,000; 32 with --pool none)")
    return parser.parse_args(arguments)


def read_times(options: argparse.Namespace) -> WindowTimes | None:
    """The windows that are asked for, None for features of whole videos. Raises ValueError for
    options that do not go with them."""
    if options.window is None and options.hop is None:
        return None
    if options.window is None or options.hop is None:
        given, other = ("--hop", "--window") if options.window is None else ("--window", "--hop")
        raise ValueError(f"{given} goes with {other}: give both, such as --window 2 --hop 0.5")
    defaults = {"pool": "mean", "format": "safetensors", "store": "float32", "clips": 1, "crops": 1}
    others = ("stride", "stride_seconds", "sampling", "shard_videos")
    if wrong := [f"--{name}" for name in (*defaults, *others) if getattr(options, name) != defaults.get(name)]:
        raise ValueError(
            f"{', '.join(wrong)} does not go with --window: a window has one float32 vector of one clip, whose frames are "
            "spread evenly over it: leave that out"
        )
    return WindowTimes(options.window, options.hop)


def read_shards(options: argparse.Namespace) -> ShardOptions:
    """The shards that are asked for. Raises ValueError for a number that is none."""
    num_videos = SHARD_VIDEOS[options.pool] if options.shard_videos is None else options.shard_videos
    return ShardOptions(options.pool, options.store, options.format, num_videos)


def check(arguments: list[str], *, reads_paths: bool) -> None:
    """As the ranks would, before any is started: see `check_options`. Exits with 2 for arguments
    that the program does not take."""
    check_options(parse_arguments(arguments), reads_paths=reads_paths)


def check_options(options: argparse.Namespace, *, reads_paths: bool) -> None:
    """Raises ValueError for all that is known to be wrong before torch is imported.

    reads_paths: also look at folder, videos and weights, which may be another machine's."""
    read_times(options)
    read_shards(options)
    read_request(options)
    if reads_paths:
        check_output_folder(Path(options.out), command=COMMAND, is_ours=is_features_folder)
        check_paths(options, options.manifest)


def run(options: argparse.Namespace) -> None:
    """Extract on this rank, together with the others."""
    begin_rank()
    check_options(options, reads_paths=are_all_here())
    with importing("torch"):
        import mats_ds.evaluation.features.features  # noqa: F401  (what `extract` imports in the end)
        from mats_ds.evaluation.features.window_folder import extract_windows

    if (times := read_times(options)) is not None:
        extract_windows(
            read_request(options),
            options.manifest,
            root=options.root,
            out=Path(options.out),
            keep_ratio=options.keep_ratio,
            times=times,
            ranks=join_ranks(options.device),
        )
        return
    extract(
        read_request(options),
        options.manifest,
        root=options.root,
        out=Path(options.out),
        keep_ratio=options.keep_ratio,
        shards=read_shards(options),
        ranks=join_ranks(options.device),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 done, 1 stopped by a fault, 2 unusable input or
    arguments."""
    options = parse_arguments(arguments)
    return run_script(lambda: run(options), advice=ADVICE)


if __name__ == "__main__":
    leave(main())
