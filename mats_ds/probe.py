"""Probe frozen features: k nearest neighbours, a linear and an attentive classifier of one encoder
on labelled videos.

    python mats_ds/probe.py --model RUN_OR_FILE --train train.csv --val val.csv
        --out DIR [--baseline]

Features are extracted once and kept in --out. Nothing is chosen with the validation set.
Exit status: 0 done, 2 unusable input or arguments.
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

from mats_ds.core.cli import ArgumentParser, importing, leave, run_script
from mats_ds.core.storage.output_file import describe_fault
from mats_ds.core.storage.output_folder import check_output_folder
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.text import log_to_stderr
from mats_ds.data.classes import count_shared_classes
from mats_ds.data.early_list import check_list
from mats_ds.distributed.ranks import find_device
from mats_ds.evaluation.features.feature_store import is_probe_folder
from mats_ds.evaluation.options import add_model_options, read_request
from mats_ds.evaluation.probe_options import COMMAND, NUM_NEIGHBOURS, PROBES, ProbeOptions
from mats_ds.models.weights.source import check_source

logger = logging.getLogger("mats_ds")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Probe frozen features of an encoder: k nearest neighbours, a linear and an attentive classifier.",
        epilog=f"Example: {own_command('probe')} --model runs/k400 --train train.csv --val val.csv --out probes/k400 --baseline",
    )
    parser.add_argument("--train", required=True, metavar="CSV", help="labelled videos to fit to: manifest or class folders")
    parser.add_argument("--val", required=True, metavar="CSV", help="labelled videos to test on")
    parser.add_argument("--out", metavar="DIR", help="keep features here for the next time, and write probe.json")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=list(PROBES), help="which ones (all)")
    parser.add_argument("--baseline", action="store_true", help="also probe the same model with fresh weights, to compare")
    parser.add_argument("--keep_ratio", type=float, metavar="R", help="fraction of tokens to encode (all; a classifier's own)")
    parser.add_argument("--neighbours", type=int, default=NUM_NEIGHBOURS, metavar="K", help="of k-NN (%(default)s)")
    parser.add_argument("--allow_overlap", action="store_true", help="only warn of videos that are in both manifests")
    parser.add_argument("--seed", type=int, default=0, help="of the attentive probe and of fresh weights (0)")
    parser.add_argument("--token_gib", type=float, default=8.0, metavar="GIB", help="memory that tokens may take (%(default)s)")
    add_model_options(parser, num_clips=1, num_crops=1)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Run the probes that are asked for. Raises ValueError, also for an output that cannot be
    written."""
    log_to_stderr(logging.WARNING)
    logger.setLevel(logging.INFO)
    try:
        _probe(options)
    except OSError as error:
        raise ValueError(describe_fault(error, options.out)) from None


def read_options(options: argparse.Namespace) -> ProbeOptions:
    """The options, where output, lists and weights can be used as far as is known before torch is
    imported. Raises ValueError."""
    probe_options = ProbeOptions(
        probes=tuple(kind for kind in PROBES if kind in options.probes),
        baseline=options.baseline,
        keep_ratio=options.keep_ratio,
        neighbours=options.neighbours,
        allow_overlap=options.allow_overlap,
        seed=options.seed,
        token_gib=options.token_gib,
    )
    if options.out:
        check_output_folder(Path(options.out), command=COMMAND, is_ours=is_probe_folder)
    train, val = (check_list(source, root=options.root) for source in (options.train, options.val))
    if train is not None and val is not None:
        count_shared_classes(train, val)
    check_source(options.model)
    return probe_options


def _probe(options: argparse.Namespace) -> None:
    request, probe_options = read_request(options), read_options(options)
    with importing("torch"):
        from mats_ds.evaluation.probing import probe

    probe(
        request,
        train=options.train,
        val=options.val,
        root=options.root,
        out=Path(options.out) if options.out else None,
        options=probe_options,
        device=find_device(options.device),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 done, 2 unusable input or arguments."""
    options = parse_arguments(arguments)
    return run_script(lambda: run(options))


if __name__ == "__main__":
    leave(main())
