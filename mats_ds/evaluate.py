"""Test a classifier on videos: top-1, top-5, every class, at one or several shares of kept tokens; or classify one video.

    bash launch.sh evaluate --model runs/ucf101 --manifest test.csv                  # all GPUs
    python mats_ds/evaluate.py --model MODEL --manifest test.csv --keep_ratio 0.3 0.6 1.0
    python mats_ds/evaluate.py --model MODEL --video clip.mp4

Reads top to bottom: open model and videos, score every view, put the ranks together, write. The scores of a video are the mean
of its views' softmax scores, as VideoMAE is tested; accuracy is over the videos that can be read, the others are listed. Views
and frames are those of the training's recipe; the weights of a run are its last ones, averaged where it keeps an average.
Exit status: 0 done, 1 stopped by a fault (no room), 2 unusable input or arguments.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from mats_ds.config.recipe import ClipSection
from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.clips import BadClip, ClipBatch
from mats_ds.core.run_dir import collect_versions
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import begin_writing, end_writing, refuse_losses
from mats_ds.core.storage.output_folder import check_output_folder, hold_output_folder, make_new_folder
from mats_ds.core.text import clean_line, say
from mats_ds.data.classes import Classes, check_labels, warn_of_names
from mats_ds.data.loading.build import read_views
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.data.shared_videos import count_known, is_list
from mats_ds.distributed.collectives import do_on_first, gather_on_first
from mats_ds.distributed.ranks import RankInfo, find_dtype, join_ranks
from mats_ds.evaluation.accuracy import TOP, Accuracy, VideoScore, VideoScores, measure_accuracy, top_classes
from mats_ds.evaluation.options import (
    SAMPLING,
    add_model_options,
    choose_batch,
    describe_clips,
    describe_weights,
    find_clip_section,
    find_views,
    read_model_weights,
)
from mats_ds.evaluation.plots import SweepPoint
from mats_ds.evaluation.results import describe_bad, describe_points, draw_results, is_test_folder, result_names, write_results
from mats_ds.evaluation.speed import describe_speed, forward_macs, time_forwards
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.model_spec import describe_model
from mats_ds.models.weights.load import load_model
from mats_ds.models.weights.origin import Origin

logger = logging.getLogger("mats_ds")

COMMAND = "evaluate"
ADVICE = "make room or mend that, then start the same command again"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Test a classifier on labelled videos, or say what it makes of one video.",
        epilog="Example: bash launch.sh evaluate --model runs/ucf101 --manifest test.csv --keep_ratio 0.3 0.6 1.0",
    )
    add_model_options(parser, num_clips=None, num_crops=None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--manifest", help="labelled videos: a .csv, a list of `path label` lines, or a folder of class folders")
    source.add_argument("--video", metavar="FILE", help="classify this one video and print its five likeliest classes")
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: runs/evaluate-DATE-TIME)")
    parser.add_argument("--keep_ratio", type=float, nargs="+", metavar="R", help="share of tokens to keep; several make a sweep")
    parser.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line (the model's own)")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Test:
    """A model at several shares of kept tokens, and how it is shown videos. `source`: which weights these are, in words."""

    model: VideoClassifier
    source: str
    origin: Origin
    keep_ratios: tuple[float, ...]
    section: ClipSection
    names: tuple[str, ...]
    place: RankInfo
    dtype: torch.dtype
    options: argparse.Namespace


@dataclass(frozen=True)
class Seen:
    """What the ranks saw. `videos`: one entry a video and its scores [ratios, classes]. `example`: a batch, to time."""

    videos: list[VideoScore]
    bad: list[BadClip]
    example: ClipBatch


def open_classifier(options: argparse.Namespace, place: RankInfo) -> Test:
    """Raises ValueError for weights that are no classifier, and for shares or names that do not fit it."""
    weights = read_model_weights(options)
    if weights.spec.kind != "classifier":
        raise ValueError(
            f"{options.model} is {weights.source} without a classification head: fine-tune it first, "
            "or take its features with mats_ds/extract.py"
        )
    for line in describe_weights(options.model, weights):
        logger.info("%s", line)
    model = load_model(weights)
    keep_ratios = tuple(dict.fromkeys(options.keep_ratio or (model.keep_ratio,)))
    for ratio in keep_ratios:
        model.with_keep_ratio(ratio)
    names = tuple(read_class_list(Path(options.class_names)).names) if options.class_names else model.class_names
    if names and len(names) != model.num_classes:
        raise ValueError(f"{options.class_names} names {len(names)} classes, the model has {model.num_classes}")
    names = names or tuple(str(label) for label in range(model.num_classes))
    dtype = find_dtype(options.precision, place.device)
    views = find_views(options, weights)
    section = find_clip_section(options, model.grid, weights)
    logger.info("%s; %s; %s", views, describe_clips(options, section, weights), str(dtype).removeprefix("torch."))
    model = model.to(place.device, dtype).eval()
    return Test(model, weights.source, weights.origin, keep_ratios, section, names, place, dtype, options)


def score_views(test: Test, manifest: Manifest, *, label: str) -> Seen | None:
    """The softmax scores of all views of all videos, put together on rank 0 (None elsewhere)."""
    options, place = test.options, test.place
    scores, bad, example = VideoScores(options.clips * options.crops), [], None
    for batch in read_views(
        manifest,
        recipe_clip=test.section,
        num_clips=options.clips,
        num_crops=options.crops,
        num_frames=test.model.candidate_grid.num_frames,
        micro_batch=choose_batch(options, on_gpu=place.device.type == "cuda"),
        device=place.device,
        rank=place.rank,
        world_size=place.world_size,
        num_workers=options.workers,
        label=label if place.rank == 0 else "",
    ):
        example = example or batch.clips
        bad += batch.clips.bad
        for view, is_readable, scores_RC in zip(batch.views, batch.readable, score_batch(test, batch.clips), strict=True):
            if view is not None:
                scores.add(view.sample, view.clip * options.crops + view.crop, scores_RC if is_readable else None)
    gathered = gather_on_first((scores, bad), place)
    if gathered is None:
        return None
    merged = gathered[0][0]
    for other, _ in gathered[1:]:
        merged.merge(other)
    named = {clip.sample: clip for _, rank_bad in gathered for clip in rank_bad}
    return Seen(merged.finish(len(manifest)), [named[sample] for sample in sorted(named)], example)


@torch.inference_mode()
def score_batch(test: Test, batch: ClipBatch) -> np.ndarray:
    """scores_BRC float64: the softmax scores of each clip at each share."""
    scores = []
    for ratio in test.keep_ratios:
        model = test.model.with_keep_ratio(ratio)
        scores.append(model(batch.frames_BTHWC, batch.seed_B).double().softmax(dim=-1))
    return torch.stack(scores, dim=1).cpu().numpy()


def view_macs(test: Test, ratio: float) -> tuple[int, str]:
    """Multiply-adds of one view, and whose count that is."""
    size_name = describe_model(test.model).size_name
    return forward_macs(test.model, ratio, size_name=size_name, device=test.place.device)


def measure_points(test: Test, accuracies: list[Accuracy], example: ClipBatch) -> list[SweepPoint]:
    """What each share costs beside what it is worth; the speed of the model alone, only where there are several shares."""

    @torch.inference_mode()
    def forward(ratio: float) -> torch.Tensor:
        return test.model.with_keep_ratio(ratio)(example.frames_BTHWC, example.seed_B)

    speeds: list[float | None] = [None] * len(accuracies)
    if len(accuracies) > 1:
        seconds = time_forwards([partial(forward, ratio) for ratio in test.keep_ratios], test.place.device)
        speeds = [len(example.frames_BTHWC) / value for value in seconds]
    return [
        SweepPoint(ratio, accuracy, *view_macs(test, ratio), speed)
        for ratio, accuracy, speed in zip(test.keep_ratios, accuracies, speeds, strict=True)
    ]


def evaluate(test: Test) -> None:
    """A whole test, written into --out and told in words."""
    began, place = time.monotonic(), test.place
    manifest = read_manifest(test.options.manifest, root=test.options.root)
    check_labels(manifest, test.model.num_classes, advice="a test needs a label of the model's (mats_ds/extract.py needs none)")
    warn_of_names(manifest, test.options.manifest, Classes(test.model.num_classes, test.model.class_names))
    out = do_on_first(partial(begin_folder, test.options, test.keep_ratios), place, advice=ADVICE)
    try:
        seen = score_views(test, manifest, label="test")
        seconds = time.monotonic() - began
        write = partial(write_test, test, manifest, seen, out=out, seconds=seconds)
        do_on_first(write, place, advice=f"{out} is not finished: {ADVICE}")
    finally:
        if place.rank == 0:
            release_folder(out)


def begin_folder(options: argparse.Namespace, keep_ratios: Sequence[float]) -> Path:
    """Take the folder of --out, or a new one below runs/.

    Raises ValueError where it holds something else or is in use, and where a file of the user's would be lost in it.
    """
    folder = Path(options.out) if options.out else make_new_folder(Path("runs"), f"evaluate-{time.strftime('%Y%m%d-%H%M%S')}")
    refuse_losses(folder, result_names(keep_ratios), inputs=(options.manifest, options.class_names, options.model))
    hold_output_folder(folder, command=COMMAND, is_ours=is_test_folder)
    return folder


def write_test(test: Test, manifest: Manifest, seen: Seen, *, out: Path, seconds: float) -> None:
    """What a test found, as files and in words. Raises ValueError where no video could be read."""
    known = count_known(manifest, sources_of(test))
    speed_note = describe_speed(test.place.device, test.dtype, num_views=len(seen.example.frames_BTHWC))
    readable = [sample for sample, video in enumerate(seen.videos) if video.mean is not None]
    if not readable:
        raise ValueError(f"not one of {len(manifest)} videos can be read; the first: {seen.bad[0].path}: {seen.bad[0].reason}")
    scores_SRC = np.stack([seen.videos[sample].mean for sample in readable])
    label_S = manifest.label_S[readable]
    accuracies = [measure_accuracy(scores_SRC[:, number], label_S) for number in range(len(test.keep_ratios))]
    points = measure_points(test, accuracies, seen.example)
    names = result_names(test.keep_ratios)
    begin_writing(out, names)
    write_results(
        out,
        points,
        videos=seen.videos,
        bad=seen.bad,
        num_views=test.options.clips * test.options.crops,
        label_S=manifest.label_S,
        paths=manifest.paths,
        names=test.names,
        about={**describe_test(test, manifest), "also": known},
        run={"ranks": test.place.world_size, "seconds": seconds, "speed": speed_note, "versions": collect_versions()},
    )
    say(f"weights: {test.options.model}: {test.source}")
    views = f"{test.options.clips} x {test.options.crops} views"
    say(f"{len(readable)} of {len(manifest)} videos of {manifest.name} scored on {views}; accuracy is over these")
    known_lines = [f"  {number} of them {name}: no accuracy on unseen videos" for name, number in known.items() if number]
    say(*known_lines, *describe_bad(seen.bad), *describe_points(points), f"written: {out}")
    draw_results(out, points, names=test.names, title=title_of(test, manifest), speed_note=speed_note)
    end_writing(out, names)


def sources_of(test: Test) -> dict[str, tuple[str, str | None]]:
    """The manifests, and the roots of their paths, that the training of the weights knows. A file of weights may be somebody
    else's and name any path: only a plain list of moderate size is believed, and of a run's own recipe a folder, too.
    """
    origin, may_be_folder = test.origin, Path(test.options.model).is_dir()
    trained, chosen = (origin.trained_on, origin.trained_root), (origin.chosen_on, origin.chosen_root)
    named = {"were trained on": trained, "chose these weights": chosen}
    return {name: pair for name, pair in named.items() if is_list(pair[0] or "", may_be_folder=may_be_folder)}


def title_of(test: Test, manifest: Manifest) -> str:
    """Of pictures: model, which weights of it, videos, views."""
    options, described = test.options, test.origin.describe()
    weights = f"\n{described}, " if described else ", "
    model, videos = clean_line(Path(options.model).resolve().name), clean_line(manifest.name)
    return f"{model} on {videos}{weights}{options.clips} x {options.crops} views"


def describe_test(test: Test, manifest: Manifest) -> dict[str, object]:
    """What was tested, and how, for results.json."""
    options = test.options
    return {
        "weights": str(options.model),
        "source": test.source,
        "origin": test.origin.as_json(),
        "precision": str(test.dtype).removeprefix("torch."),
        "model": describe_model(test.model).describe()[:-1],
        "manifest": manifest.name,
        "views": {"clips": options.clips, "crops": options.crops, **test.section.model_dump(include=set(SAMPLING))},
    }


def classify(test: Test) -> None:
    """The likeliest classes of one video, best first, with their scores, at each share."""
    path = test.options.video
    if not Path(path).is_file():
        raise ValueError(f"there is no video {path}")
    manifest = Manifest([path], np.array([-1]), np.array([np.nan]), np.array([np.nan]), Path(path).name)
    seen = score_views(test, manifest, label="")
    if seen is None:
        return
    (video,) = seen.videos
    if video.mean is None:
        raise ValueError(f"{path} cannot be read: {seen.bad[0].reason}")
    say(f"{path}: {video.num_read} views")
    for ratio, scores_C in zip(test.keep_ratios, video.mean, strict=True):
        if len(test.keep_ratios) > 1:
            print(f"{ratio:g} of the tokens:")
        say(*(f"  {scores_C[label]:.4f}  {test.names[label]}" for label in top_classes(scores_C, TOP)))


def run(options: argparse.Namespace) -> None:
    """A test, or one video."""
    place = join_ranks(options.device)
    if options.out and not options.video:  # before the weights are read
        check = partial(check_output_folder, Path(options.out), command=COMMAND, is_ours=is_test_folder)
        do_on_first(check, place, advice=ADVICE)
    test = open_classifier(options, place)
    (classify if options.video else evaluate)(test)


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 done, 1 stopped by a fault, 2 unusable input or arguments."""
    options = parse_arguments(arguments)
    return run_script(lambda: run(options), advice=ADVICE)


if __name__ == "__main__":
    leave(main())
