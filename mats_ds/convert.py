"""Convert weights between mats_ds, VideoMAE / EVEREST and Hugging Face, or describe a file.

    python mats_ds/convert.py SOURCE                          # describe it
    python mats_ds/convert.py SOURCE DEST [--verify]          # write it in DEST's format
    python mats_ds/convert.py RUN DIR --to hub                # for AutoModel, selects tokens
    python mats_ds/convert.py RUN FILE --to onnx              # or export: a program of fixed shapes

Reads top to bottom: read the source, apply the changes, write, compare outputs. Exit status: 0
done, 1 done but the weights hold NaN or the outputs differ, 2 unusable input or arguments, nothing
written.
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
import os
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mats_ds.core.cli import FINISHED, ArgumentParser, importing, leave, run_script
from mats_ds.core.format import format_count
from mats_ds.core.storage.files import is_same_file
from mats_ds.core.storage.output_file import check_output_file, describe_fault, describe_leftovers
from mats_ds.core.storage.output_folder import check_parent
from mats_ds.core.storage.package_files import install_command, own_command
from mats_ds.core.text import log_to_stderr, say
from mats_ds.core.token_grid import STRATEGIES
from mats_ds.evaluation.options import add_weights_from
from mats_ds.exporting.hub.card import CARD, check_card, check_license, find_run
from mats_ds.exporting.hub.remote_code import CODE_FILES
from mats_ds.exporting.programs.target import check_target
from mats_ds.models.weights.export_folder import EXPORTED, check_export_folder
from mats_ds.models.weights.origin import Origin
from mats_ds.models.weights.source import CONFIG, SUFFIX, check_source

if TYPE_CHECKING:  # what needs torch is imported where it is used, after the arguments are checked
    from mats_ds.models.weights.model_weights import Weights

DIFFERENT = 1
TARGETS = ("mats", "hf", "videomae", "hub", "onnx", "export")
EXPORTS = {  # what others run, with its token selection
    "hub": "a Hugging Face folder with token selection",
    "onnx": "an ONNX program of fixed shapes",
    "export": "a torch.export program of fixed shapes",
}
SUFFIXES = {SUFFIX: "mats", ".pth": "videomae", ".pt": "videomae", ".onnx": "onnx", ".pt2": "export"}
FOLDERS = ("hf", "hub")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Convert weights between mats_ds, VideoMAE / EVEREST and Hugging Face, or describe a file.",
        epilog=f"Example: {own_command('convert')} runs/k400 k400.safetensors --verify",
    )
    add_weights_from(parser)
    parser.add_argument("source", help="run folder or checkpoint of ours, .safetensors of ours, .pth, or Hugging Face folder")
    parser.add_argument("dest", nargs="?", help="file or folder to write; without it, only describe SOURCE")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        help="format of DEST (default: mats for .safetensors, videomae for .pth, onnx "
        "for .onnx, export for .pt2, hf for a folder); hub: a folder with code that selects tokens and a model card",
    )
    parser.add_argument("--verify", action="store_true", help="run both models on random clips and compare their outputs")
    parser.add_argument("--force", action="store_true", help="overwrite DEST (of folders, only an export of this command)")
    trained = parser.add_argument_group("the clips that the source was trained on, where a .pth does not hold them")
    for name, text in (("num-frames", "of a clip (16)"), ("height", "of a frame (224)"), ("width", "of a frame (224)")):
        trained.add_argument(f"--{name}", type=int, metavar="N", help=text)
    trained.add_argument("--heads", type=int, metavar="N", help="attention heads, for a width that no published size has")
    trained.add_argument("--decoder-heads", type=int, metavar="N", help="the decoder's")
    changed = parser.add_argument_group("the description of the model in DEST (weights do not change)")
    changed.add_argument("--strategy", choices=STRATEGIES, help="which tokens are kept")
    changed.add_argument("--keep-ratio", "--keep_ratio", type=float, metavar="R", help="fraction of the tokens that is kept")
    changed.add_argument("--visible-ratio", type=float, metavar="R", help="fraction that the encoder sees in pre-training")
    changed.add_argument("--class-names", metavar="FILE", help="names of the classes, one a line, in the order of the labels")
    exported = parser.add_argument_group("exports with token selection")
    exported.add_argument("--batch", type=int, metavar="N", help="clips at a time, of onnx and export (1)")
    exported.add_argument(
        "--results", nargs="+", metavar="DIR", help="folders of evaluate and probe for the card (the run's own)"
    )
    exported.add_argument("--license", metavar="ID", help="licence of the weights for the card, as the Hub calls it: apache-2.0")
    exported.add_argument("--data-name", "--data_name", metavar="TEXT", help="what the card calls the training data")
    head = parser.add_argument_group("another head")
    head.add_argument("--num-classes", type=int, metavar="N", help="make a classifier of N classes of pre-trained weights")
    head.add_argument("--new-head", action="store_true", help="replace the head that SOURCE has by a fresh one")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    return run_script(lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> int:
    """The exit status. Raises ValueError for an input that cannot be used and an output that cannot
    be written."""
    log_to_stderr(logging.WARNING)
    try:
        return inspect(options) if options.dest is None else convert(options)
    except OSError as error:
        raise ValueError(describe_fault(error, options.dest)) from error


def inspect(options: argparse.Namespace) -> int:
    weights = read_source(options)
    from mats_ds.models.weights.load import check_complete, describe_weights
    from mats_ds.models.weights.model_weights import name_nonfinite

    say(describe_weights(options.source, weights)[0])
    num_values = sum(tensor.numel() for tensor in weights.state.values())
    say(*weights.spec.describe(), f"{format_count(len(weights.state), 'tensor')}, {num_values / 1e6:.1f} M values")
    print_notes(weights.notes)
    check_complete(weights)
    return DIFFERENT if name_nonfinite(weights.state) else FINISHED


def convert(options: argparse.Namespace) -> int:
    dest, target = Path(options.dest), options.to or SUFFIXES.get(Path(options.dest).suffix, "hf")
    refuse_to_overwrite(options, dest, target=target)
    check_export_options(options, target)
    if target not in FOLDERS:
        print_notes(describe_leftovers(dest))
    weights = read_source(options)
    from mats_ds.models.weights.hugging_face import write_hugging_face
    from mats_ds.models.weights.load import FORMATS, check_complete, describe_weights
    from mats_ds.models.weights.model_weights import name_nonfinite
    from mats_ds.models.weights.native import save_weights
    from mats_ds.models.weights.videomae import write_videomae

    print_notes(weights.notes)
    weights = change_head(weights, options)
    weights = change_description(weights, options, target=target)
    check_complete(weights)
    if target in EXPORTS:
        return export(weights, options, dest, target=target)
    if target == "mats":
        known = {} if weights.origin == Origin() else {"origin": weights.origin}
        save_weights(dest, weights.spec, weights.state, note=f"from {weights.source}", **known)
    else:
        print_notes((write_hugging_face if target == "hf" else write_videomae)(dest, weights))
    say(f"wrote {dest}: {FORMATS[target]}", describe_weights(options.source, weights)[0], *weights.spec.describe())
    if name_nonfinite(weights.state):
        return DIFFERENT  # noted above; outputs that are NaN cannot be compared
    return verify(weights, options, dest) if options.verify else FINISHED


def check_export_options(options: argparse.Namespace, target: str) -> None:
    """Raise ValueError for options that the format has no use for, and for packages that it
    lacks."""
    used = {"hub": {"results", "license", "data_name"}, "onnx": {"batch"}, "export": {"batch"}}.get(target, set())
    for name in ("batch", "results", "license", "data_name"):
        if getattr(options, name) and name not in used:
            homes = "hub" if name != "batch" else "onnx or export"
            raise ValueError(f"--{name.replace('_', '-')} is for --to {homes}, and this writes --to {target}: leave it out")
    if target == "hub":
        check_license(options.license)
    if options.num_classes is None and options.new_head:
        raise ValueError("--new-head belongs to --num-classes N")
    if options.class_names:
        read_names(Path(options.class_names))
    if target in ("onnx", "export"):
        check_target(target, batch=1 if options.batch is None else options.batch)


def export(weights: Weights, options: argparse.Namespace, dest: Path, *, target: str) -> int:
    """Write a folder or program that others run, compared with ours where that is asked for."""
    from mats_ds.exporting.hub.write import export_hub
    from mats_ds.exporting.network import describe_network, open_network
    from mats_ds.exporting.programs.write import export_program
    from mats_ds.exporting.verify import RUNNERS, compare_export
    from mats_ds.models.weights.model_weights import name_nonfinite

    source, batch = Path(options.source), options.batch or 1
    if target == "hub":
        lines = []
        hub = {"results": [Path(folder) for folder in options.results or ()], "license": options.license}
        notes = export_hub(dest, weights, source=source, keep_ratio=options.keep_ratio, data=options.data_name, **hub)
        print_notes(notes)
    else:
        _, run_info = find_run(source)
        chosen = {"target": target, "keep_ratio": options.keep_ratio, "batch": batch}
        lines = export_program(dest, weights, run=run_info, **chosen)
    spec = describe_network(open_network(weights, keep_ratio=options.keep_ratio), weights.spec)
    kept = f"selection: {spec.pruning.strategy}, keep {spec.pruning.keep_ratio:g}"
    say(
        f"wrote {dest}: {EXPORTS[target]}", f"from {options.source}: {weights.source}", *weights.spec.describe()[:2], kept, *lines
    )
    if name_nonfinite(weights.state):
        return DIFFERENT
    if not options.verify:
        return FINISHED
    difference = compare_export(dest, weights, target=target, keep_ratio=options.keep_ratio, batch=batch)
    if difference is None:
        runner = RUNNERS[target]
        say(f"verify: {runner} is not installed, the export was not run: {install_command(runner)}")
        return FINISHED
    say(f"verify: {dest}: {difference.describe()}: {'equal' if difference.is_rounding else 'DIFFERENT'}")
    return FINISHED if difference.is_rounding else DIFFERENT


def read_source(options: argparse.Namespace) -> Weights:
    check_source(options.source)
    with importing("torch"):
        from mats_ds.models.weights.load import read_weights

    names = ("num_frames", "height", "width", "heads", "decoder_heads")
    hints = {name: getattr(options, name) for name in names if getattr(options, name)}
    return read_weights(options.source, weights_from=options.weights_from, **hints)


def refuse_to_overwrite(options: argparse.Namespace, dest: Path, *, target: str) -> None:
    """Raise ValueError where DEST is the source or a part of it, or holds what may not be replaced;
    --force replaces one file, or an export of ours.
    """
    source = Path(options.source)
    names = (*EXPORTED, CARD, *CODE_FILES) if target == "hub" else EXPORTED
    files = [dest / name for name in names] if target in FOLDERS else [dest]
    if any(is_same_file(path, source) for path in (dest, *files)):
        raise ValueError(f"{dest} is the source itself")
    for file in files:
        if os.path.lexists(file) and source.is_dir() and source.resolve() in file.resolve().parents:
            raise ValueError(f"{file} is a part of the source {source}: give another name")
    if target not in FOLDERS:
        check_output_file(dest, inputs=[options.class_names], force=options.force)
        return
    check_export_folder(dest)
    check_parent(dest)
    if target == "hub":
        check_card(dest)
    if not options.force and (dest / CONFIG).exists():
        raise ValueError(f"{dest} exists: give another name, or --force")


def change_head(weights: Weights, options: argparse.Namespace) -> Weights:
    """The classifier that --num-classes asks for; the fate of every tensor is printed."""
    if options.num_classes is None:
        return weights
    from mats_ds.models.weights.load import load_classifier, weights_of

    started = load_classifier(weights, num_classes=options.num_classes, new_head=options.new_head)
    say(started.report.describe())
    return replace(weights_of(started.model, weights.source), origin=weights.origin)


def change_description(weights: Weights, options: argparse.Namespace, *, target: str) -> Weights:
    """The same weights with the selection and class names of the options."""
    names = ("strategy", "keep_ratio", "visible_ratio")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if weights.spec.kind == "classifier" and "keep_ratio" in changes:
        changes["visible_ratio"] = changes["keep_ratio"]
    elif target in EXPORTS:  # of the exported encoder, not of pre-training
        changes.pop("keep_ratio", None)
    if options.class_names:
        changes["class_names"] = read_names(Path(options.class_names))
    return replace(weights, spec=weights.spec.with_options(**changes))


def read_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def verify(weights: Weights, options: argparse.Namespace, dest: Path) -> int:
    """Read DEST back and compare outputs; where a Hugging Face folder takes part, with
    transformers' own model, too."""
    from mats_ds.models.weights.load import identify, read_weights
    from mats_ds.models.weights.verify import compare, compare_with_transformers

    if weights.spec.kind == "encoder":
        print("verify: an encoder alone has no output to compare")
        return FINISHED
    differences = {"source and copy": compare(weights, read_weights(dest))}
    folders = [path for path in (Path(options.source), dest) if identify(path) == "hf"]
    if folders and find_spec("transformers") is None:
        say(f"verify: transformers is not installed, its own model was not run: {install_command('transformers')}")
    elif not options.num_classes:
        differences |= {f"transformers on {path}": compare_with_transformers(weights, path) for path in folders}
    for name, difference in differences.items():
        say(f"verify: {name}: {difference.describe()}: {'equal' if difference.is_rounding else 'DIFFERENT'}")
    return FINISHED if all(difference.is_rounding for difference in differences.values()) else DIFFERENT


def print_notes(notes) -> None:
    say(*(f"note: {note}" for note in notes))


if __name__ == "__main__":
    leave(main())
