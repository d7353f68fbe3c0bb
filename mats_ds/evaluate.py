"""Test a classifier on labelled videos at several fractions of kept tokens, or classify one video.

    bash launch.sh evaluate --model runs/ucf101 --manifest test.csv                  # all GPUs
    python mats_ds/evaluate.py --model MODEL --manifest test.csv --keep_ratio 0.3 0.6 1.0
    python mats_ds/evaluate.py --model MODEL --video clip.mp4

Views and frames are those of the training's recipe; the weights of a run are the best of its tests
where it has them, else its last ones, averaged if it keeps an average. Exit status: 0 done, 1
stopped by a fault (no room), 2 unusable input or arguments.
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
from mats_ds.core.shards.members import is_file
from mats_ds.core.storage.file_kind import why_no_video
from mats_ds.core.storage.output_folder import check_output_folder
from mats_ds.core.storage.package_files import own_command
from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.distributed.ranks import begin_rank, join_ranks
from mats_ds.distributed.scheduler_env import are_all_here
from mats_ds.evaluation.options import add_model_options, check_paths, read_request
from mats_ds.evaluation.results import ADVICE, COMMAND, is_test_folder


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        launcher=LAUNCHER_OPTIONS,
        description="Test a classifier on labelled videos, or classify one video.",
        epilog=f"Example: {own_command('evaluate')} --model runs/ucf101 --manifest test.csv --keep_ratio 0.3 0.6 1.0",
    )
    add_model_options(parser, num_clips=None, num_crops=None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", help="labelled videos: a .csv, a list of `path label` lines, or a folder of class folders")
    source.add_argument("--video", metavar="FILE", help="classify this one video and print its five most likely classes")
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: runs/evaluate-DATE-TIME)")
    parser.add_argument(
        "--keep_ratio", type=float, nargs="+", metavar="R", help="fraction of tokens to keep; several make a sweep"
    )
    parser.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line (the model's own)")
    return parser.parse_args(arguments)


def check(arguments: list[str], *, reads_paths: bool) -> None:
    """As the ranks would, before any is started: see `check_options`. Exits with 2 for arguments
    that the program does not take."""
    check_options(parse_arguments(arguments), reads_paths=reads_paths)


def check_options(options: argparse.Namespace, *, reads_paths: bool) -> None:
    """Raises ValueError for all that is known to be wrong before torch is imported.

    reads_paths: also look at folders, weights and videos, which may be another machine's."""
    read_request(options)
    if not reads_paths:
        return
    if options.out and options.manifest:
        check_output_folder(Path(options.out), command=COMMAND, is_ours=is_test_folder)
    check_paths(options, options.manifest)
    if options.class_names:
        read_class_list(Path(options.class_names))
    if options.video and not is_file(options.video):
        raise ValueError(why_no_video(options.video, "no file"))


def run(options: argparse.Namespace) -> None:
    """Test on a manifest, or classify one video."""
    begin_rank()
    check_options(options, reads_paths=are_all_here())
    with importing("torch"):
        from mats_ds.evaluation.classification import check_test_folder, classify_video, evaluate_manifest, open_classifier

    ranks = join_ranks(options.device)
    out = Path(options.out) if options.out else None
    if out and options.manifest:
        check_test_folder(out, ranks)  # before the weights are read
    test = open_classifier(
        read_request(options), device=ranks.device, keep_ratios=options.keep_ratio or (), class_names=options.class_names
    )
    if options.video:
        classify_video(test, options.video, ranks=ranks)
    else:
        evaluate_manifest(test, options.manifest, root=options.root, out=out, inputs=(options.class_names,), ranks=ranks)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 done, 1 stopped by a fault, 2 unusable input or
    arguments."""
    options = parse_arguments(arguments)
    return run_script(lambda: run(options), advice=ADVICE)


if __name__ == "__main__":
    leave(main())
