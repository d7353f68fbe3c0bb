"""Prepare videos and annotations for training: one subcommand a task.

    python mats_ds/prepare.py import SOURCE --out manifest.csv [--root VIDEO_DIR]
    python mats_ds/prepare.py check SOURCE --out checked.csv [--root VIDEO_DIR]
    python mats_ds/prepare.py transcode SOURCE --out DIR [--segment SECONDS]
    python mats_ds/prepare.py pack SOURCE --out DIR [--shard_size 1GB]

Each subcommand is an `add_<name>` that declares its arguments and names the function that runs it;
`SUBCOMMANDS` lists them. `import` loads no video library. Exit status: 0 done, 1 done with
something left out, which is named (of `check`, whose work is to find it, only with --strict), 2
unusable input or arguments, nothing written, 130 interrupted.
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

from mats_ds.core.cli import FINISHED, ArgumentParser, leave, run_script
from mats_ds.core.format import format_count
from mats_ds.core.storage.own_files import refuse_sources
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.text import log_to_stderr, say
from mats_ds.core.workers import count_cores
from mats_ds.data.manifest import read_manifest
from mats_ds.data.prepare.importers import FORMATS, import_annotations
from mats_ds.data.prepare.importers.rows import describe_imported, refuse_to_overwrite, train_arguments, write_imported
from mats_ds.data.prepare.journal import describe_system_error, resumable
from mats_ds.data.prepare.progress import Progress

LEFT_OUT = 1


def add_import(commands) -> None:
    """Arguments of `import`."""
    parser = commands.add_parser(
        "import",
        help="annotations as a data set ships them -> manifest.csv",
        epilog=f"Example: {own_command('prepare', 'import')} trainlist01.txt --root /data/ucf101 --out train.csv",
    )
    parser.add_argument("source", help="annotation file, or folder of class folders or of split files")
    parser.add_argument("--out", required=True, metavar="CSV", help="manifest to write; OUT.classes.txt holds the class names")
    parser.add_argument("--format", default="auto", choices=("auto", *FORMATS), help="format of SOURCE (default: %(default)s)")
    parser.add_argument("--root", metavar="DIR", help="folder of the videos (default: that of SOURCE, if they lie there)")
    parser.add_argument("--split", metavar="NAME", help="1, 2 or 3 where splits are numbered; train, val or test elsewhere")
    parser.add_argument("--subset", choices=("train", "val", "test"), help="which part of a numbered split")
    parser.add_argument("--labels", metavar="FILE", help="class list that numbers the classes; answers of a test list")
    parser.add_argument("--force", action="store_true", help="take the names of files that are there; they are kept as NAME.old")
    parser.set_defaults(run=run_import)


def run_import(options: argparse.Namespace) -> int:
    """Write the rows that are whole, say what was recognised and list every mistake."""
    out = Path(options.out)
    refuse_to_overwrite(out, force=options.force, keep=[options.source, options.labels])
    imported = import_annotations(
        options.source,
        format=options.format,
        root=options.root,
        split=options.split,
        subset=options.subset,
        labels=options.labels,
    )
    say(*describe_imported(imported))
    if not imported.rows:
        raise ValueError(f"not one row of {options.source} can be used; nothing was written")
    written, kept = write_imported(imported, out, force=options.force)
    left = f"; {len(imported.mistakes):,} left out" if imported.mistakes else ""
    say(f"wrote {', '.join(map(str, written))} ({format_count(len(imported.rows), 'row')}{left})")
    say(*(f"what was there before is kept as {path}" for path in kept))
    say(f"train with: {train_arguments(imported, out)}")
    return LEFT_OUT if imported.mistakes else FINISHED


def add_check(commands) -> None:
    """Arguments of `check`."""
    parser = commands.add_parser(
        "check",
        help="decode every file once -> manifest of what each holds, and quarantine.csv",
        epilog=f"Example: {own_command('prepare', 'check', 'train.csv', '--out', 'checked.csv')}",
    )
    parser.add_argument("source", help="manifest, or folder of videos")
    parser.add_argument("--out", required=True, metavar="CSV", help="manifest of the readable files to write")
    parser.add_argument("--root", metavar="DIR", help="folder that relative paths start from (default: that of SOURCE)")
    parser.add_argument(
        "--quarantine",
        metavar="CSV",
        help="list of the bad ones (default: quarantine.csv beside --out; OUT.quarantine.csv where that is of another list)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="give a file up when no frame comes for so long (300)"
    )
    parser.add_argument("--restart", action="store_true", help="decode again what an earlier check decoded")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a row is in quarantine (else 0)")
    parser.set_defaults(run=run_check)


def run_check(options: argparse.Namespace) -> int:
    """Check the videos, then describe them."""
    out = Path(options.out)
    refuse_sources(out, option="--out", sources=[options.source])
    manifest = read_manifest(options.source, root=options.root)
    from mats_ds.data.prepare.checking.check_report import describe_outputs, summarize
    from mats_ds.data.prepare.checking.check_set import check_manifest, journal_path

    with resumable("checked", journal=journal_path(out)), Progress("check") as progress:
        result = check_manifest(
            manifest,
            out=out,
            quarantine=options.quarantine,
            num_workers=count_cores() if options.workers is None else options.workers,
            resume=not options.restart,
            timeout_seconds=options.timeout,
            root=options.root,
            sources=[options.source],
            on_done=progress,
        )
    print(summarize(result, out=out, root=options.root))
    say(*describe_outputs(result, out, root=options.root, chose_quarantine=not options.quarantine))
    return LEFT_OUT if options.strict and result.bad else FINISHED


def add_transcode(commands) -> None:
    """Arguments of `transcode`."""
    parser = commands.add_parser(
        "transcode",
        help="videos -> small copies that are quick to decode, or segments of long files",
        epilog=f"Example: {own_command('prepare', 'transcode', 'train.csv', '--out', 'copies')}",
    )
    parser.add_argument("source", help="manifest, or folder of videos")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the copies and their manifest.csv")
    parser.add_argument("--root", metavar="DIR", help="folder that relative paths start from (default: that of SOURCE)")
    parser.add_argument("--short_side", type=int, default=256, metavar="PIXELS", help="of the copies, never enlarged (256)")
    parser.add_argument("--gop", type=int, default=16, metavar="FRAMES", help="frames from keyframe to keyframe at most (16)")
    parser.add_argument("--codec", choices=["h264", "vp9"], default="h264", help="of the copies (h264)")
    parser.add_argument("--crf", type=int, metavar="N", help="quality, smaller is better (23 for h264, 32 for vp9)")
    parser.add_argument("--preset", metavar="NAME", help="effort of the encoder (fast; for vp9 its cpu-used, 5)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="give a file up when no frame comes for so long (300)"
    )
    parser.add_argument("--segment", type=float, metavar="SECONDS", help="cut at keyframes instead, nothing re-encoded")
    parser.add_argument("--reencode", action="store_true", help="with --segment: transcode files that cannot be cut, then cut")
    parser.add_argument("--keep_partial", action="store_true", help="keep the readable part of files that break off")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be done, write nothing")
    # its name in version 0.1
    parser.add_argument("--keep", dest="dry_run", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run_transcode)


def run_transcode(options: argparse.Namespace) -> int:
    """Make the copies, or show what would be made."""
    from mats_ds.data.prepare.copying.copy_settings import CopySettings

    settings = CopySettings(
        short_side=options.short_side, gop=options.gop, codec=options.codec, crf=options.crf, preset=options.preset
    )
    if options.reencode and options.segment is None:
        raise ValueError("--reencode belongs to --segment SECONDS; without it every file is transcoded")
    if options.keep_partial and options.segment is not None:
        raise ValueError("--keep_partial goes with transcoding, not with --segment")
    manifest = read_manifest(options.source, root=options.root)
    from mats_ds.data.prepare.copying.copies import make_copies
    from mats_ds.data.prepare.copying.copy_plan import JOURNAL, check_out_folder, describe_plan, plan_copies

    source, out = Path(options.source), Path(options.out)
    scanned = source if source.is_dir() else None
    base = Path(options.root) if options.root and not scanned else scanned or source.parent
    if options.dry_run:
        check_out_folder(out, scanned=scanned)
        say(*describe_plan(plan_copies(manifest, out, base=base), settings, segment_seconds=options.segment))
        return FINISHED
    log_to_stderr(logging.INFO)
    with resumable("copied", journal=out / JOURNAL), Progress("copy") as progress:
        summary = make_copies(
            manifest,
            out,
            base=base,
            scanned=scanned,
            sources=[] if scanned else [source],
            settings=settings,
            segment_seconds=options.segment,
            reencode=options.reencode,
            keep_partial=options.keep_partial,
            num_workers=count_cores() if options.workers is None else options.workers,
            timeout_seconds=options.timeout,
            on_done=progress,
        )
    say(*summary.lines())
    return LEFT_OUT if summary.failed else FINISHED


def add_pack(commands) -> None:
    """Arguments of `pack`."""
    parser = commands.add_parser(
        "pack",
        help="files of a manifest -> tar shards that are read without unpacking, and a manifest of shard.tar#file",
        epilog=f"Example: {own_command('prepare', 'pack', 'train.csv', '--out', 'shards')} --shard_size 1GB; "
        "`tar xf` gives the files back",
    )
    parser.add_argument("source", help="manifest, or folder of videos")
    parser.add_argument("out_dir", nargs="?", metavar="OUT", help="the folder of --out")
    parser.add_argument("--out", metavar="DIR", help="folder of the shards and their manifest.csv")
    parser.add_argument("--root", metavar="DIR", help="folder that relative paths start from (default: that of SOURCE)")
    parser.add_argument(
        "--shard_size", default="1GB", metavar="SIZE", help="of a shard at most: 1GB, 500MB, 512MiB (%(default)s)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="shards that are written at once (default: 2)")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be done, write nothing")
    parser.set_defaults(run=run_pack)


def run_pack(options: argparse.Namespace) -> int:
    """Write the shards, or show what would be written."""
    if (options.out is None) == (options.out_dir is None):
        raise ValueError(f"give the folder of the shards once: {own_command('prepare', 'pack')} SOURCE --out DIR")
    source, out = Path(options.source), Path(options.out or options.out_dir)
    manifest = read_manifest(source, root=options.root)
    from mats_ds.data.classes import read_class_names
    from mats_ds.data.prepare.packing.pack_plan import JOURNAL, check_out_folder, describe_plan, parse_bytes, plan_shards
    from mats_ds.data.prepare.packing.packs import make_shards

    shard_bytes = parse_bytes(options.shard_size)
    scanned = source if source.is_dir() else None
    base = Path(options.root) if options.root and not scanned else scanned or source.parent
    if options.dry_run:
        check_out_folder(out, scanned=scanned)
        say(*describe_plan(plan_shards(manifest, out, shard_bytes=shard_bytes, base=base)))
        return FINISHED
    log_to_stderr(logging.INFO)
    with resumable("packed", journal=out / JOURNAL), Progress("pack") as progress:
        summary = make_shards(
            manifest,
            out,
            shard_bytes=shard_bytes,
            base=base,
            scanned=scanned,
            sources=[] if scanned else [source],
            class_names=read_class_names(manifest, source),
            num_workers=min(2, count_cores()) if options.workers is None else options.workers,
            on_done=progress,
        )
    say(*summary.lines())
    return LEFT_OUT if summary.failed else FINISHED


SUBCOMMANDS = (add_import, add_check, add_transcode, add_pack)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(
        description="Prepare videos and annotations for training.",
        epilog=f"Example: {own_command('prepare', 'check', 'videos', '--out', 'checked.csv')}",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in SUBCOMMANDS:
        add(commands)
    options = parser.parse_args(arguments)
    return run_script(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """The status of the subcommand. Raises ValueError for what it cannot use, and for what the
    system refuses."""
    try:
        return options.run(options)
    except OSError as error:
        raise ValueError(describe_system_error(error)) from None


if __name__ == "__main__":
    leave(main())
