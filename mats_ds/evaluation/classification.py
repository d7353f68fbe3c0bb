"""Test a classifier on labelled videos at several fractions of kept tokens, or classify one video.

The scores of a video are the mean of its views' softmax scores, as in VideoMAE; accuracy is over
the videos that can be read, the others are listed. Legend: B clips of a batch, V fractions of kept
tokens, C classes, R videos that could be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from mats_ds.core.clips import ClipBatch
from mats_ds.core.format import format_count, format_part, format_views
from mats_ds.core.run_dir import collect_versions
from mats_ds.core.shards.members import is_file
from mats_ds.core.storage.file_kind import why_no_video
from mats_ds.core.storage.folder_lock import release_folder
from mats_ds.core.storage.output_file import begin_writing, end_writing, refuse_losses
from mats_ds.core.storage.output_folder import check_output_folder, hold_output_folder, make_new_folder
from mats_ds.core.storage.package_files import own_command
from mats_ds.core.text import clean_line, say
from mats_ds.data.classes import Classes, check_labels, warn_of_names
from mats_ds.data.manifest import Manifest, read_manifest
from mats_ds.data.prepare.importers.labels import read_class_list
from mats_ds.data.shared_videos import count_known, is_list
from mats_ds.distributed.collectives import do_on_first
from mats_ds.distributed.ranks import RankInfo
from mats_ds.evaluation.accuracy import TOP, measure_accuracy, top_classes
from mats_ds.evaluation.options import ModelRequest, ViewPlan, plan_views, read_model_weights
from mats_ds.evaluation.plots import SweepPoint
from mats_ds.evaluation.results import (
    ADVICE,
    COMMAND,
    describe_bad,
    describe_points,
    draw_results,
    is_test_folder,
    result_names,
    write_results,
)
from mats_ds.evaluation.scoring import ScoredVideos, score_videos, softmax_scores
from mats_ds.evaluation.speed import describe_speed, forward_macs, time_forwards
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.model_spec import describe_model
from mats_ds.models.weights.load import describe_weights, load_model
from mats_ds.models.weights.origin import Origin

logger = logging.getLogger("mats_ds")

CHOSE = "chose these weights"


@dataclass(frozen=True)
class ClassifierTest:
    """A classifier to test. `models`: one per fraction of kept tokens, with shared weights. `used`:
    which file and weights they are, for results.json."""

    path: str
    source: str
    origin: Origin
    used: Mapping[str, object]
    models: tuple[VideoClassifier, ...]
    names: tuple[str, ...]
    views: ViewPlan

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        return tuple(model.keep_ratio for model in self.models)


def open_classifier(
    request: ModelRequest, *, device: torch.device, keep_ratios: Sequence[float] = (), class_names: str | None = None
) -> ClassifierTest:
    """Load the classifier, and say which weights these are.

    keep_ratios: the model's own if empty. class_names: a file with one name a line. Raises
    ValueError for weights that are no classifier, and for fractions or names that do not fit it.
    """
    weights = read_model_weights(request)
    if weights.spec.kind != "classifier":
        raise ValueError(
            f"{request.path} is {weights.source} without a classification head: fine-tune it first, "
            f"or take its features: {own_command('extract', '--model', request.path)} --manifest VIDEOS.csv --out features"
        )
    for line in describe_weights(request.path, weights):
        logger.info("%s", line)
    model = load_model(weights)
    names = tuple(read_class_list(Path(class_names)).names) if class_names else model.class_names
    if names and len(names) != model.num_classes:
        raise ValueError(f"{class_names} names {format_count(len(names), 'class')}, the model has {model.num_classes:,}")
    views = plan_views(request, weights, grid=model.grid, num_frames=model.candidate_grid.num_frames, device=device)
    logger.info("%s; %s; %s", views.describe_views(), views.describe_clips(), views.precision)
    model = model.to(device, views.dtype).eval()
    models = tuple(model.with_keep_ratio(ratio) for ratio in dict.fromkeys(keep_ratios or (model.keep_ratio,)))
    names = names or tuple(str(label) for label in range(model.num_classes))
    return ClassifierTest(request.path, weights.source, weights.origin, weights.used(), models, names, views)


def check_test_folder(out: Path, ranks: RankInfo) -> None:
    """Raise ValueError on all ranks if `out` holds anything but an earlier test."""
    do_on_first(partial(check_output_folder, out, command=COMMAND, is_ours=is_test_folder), ranks, advice=ADVICE)


def evaluate_manifest(
    test: ClassifierTest, source: str, *, root: str | None, out: Path | None, inputs: Iterable[str | None], ranks: RankInfo
) -> None:
    """Test on the videos of a manifest, print the results and write them into `out`.

    out: None: a new folder below runs/. inputs: other files that are read and must not be
    overwritten. Raises ValueError for labels that do not fit the model, for a folder that cannot
    be used and if no video can be read.
    """
    began = time.monotonic()
    manifest = read_manifest(source, root=root)
    model = test.models[0]
    check_labels(manifest, model.num_classes, advice=f"a test needs a label of the model's ({own_command('extract')} needs none)")
    warn_of_names(manifest, source, Classes(model.num_classes, model.class_names))
    begin = partial(begin_test_folder, out, test.keep_ratios, inputs=(source, test.path, *inputs))
    out = do_on_first(begin, ranks, advice=ADVICE)
    try:
        batches = test.views.read(manifest, rank=ranks.rank, world_size=ranks.world_size, label="" if ranks.rank else "test")
        example = next(batches)
        scored = score_manifest(test, manifest, chain([example], batches), ranks)
        run = {"ranks": ranks.world_size, "seconds": time.monotonic() - began}
        write = partial(write_test, test, manifest, scored, out=out, example=example.clips, run=run)
        do_on_first(write, ranks, advice=f"{out} is not finished: {ADVICE}")
    finally:
        if ranks.rank == 0:
            release_folder(out)


def score_manifest(test: ClassifierTest, manifest: Manifest, batches: Iterable, ranks: RankInfo) -> ScoredVideos | None:
    """Scores [V, C] of all videos on rank 0, None on the others."""

    def score(clips: ClipBatch) -> torch.Tensor:
        return torch.stack([softmax_scores(model, clips) for model in test.models], dim=1)

    views = test.views
    return score_videos(
        batches, score, num_videos=len(manifest), num_clips=views.num_clips, num_crops=views.num_crops, ranks=ranks
    )


def begin_test_folder(out: Path | None, keep_ratios: Sequence[float], *, inputs: Iterable[str | None]) -> Path:
    """Hold the folder, or a new one below runs/.

    Raises ValueError if it holds anything but an earlier test or is in use, or if a file of the
    user's would be lost in it.
    """
    folder = out or make_new_folder(Path("runs"), f"evaluate-{time.strftime('%Y%m%d-%H%M%S')}")
    refuse_losses(folder, result_names(keep_ratios), inputs=inputs)
    hold_output_folder(folder, command=COMMAND, is_ours=is_test_folder)
    return folder


def write_test(
    test: ClassifierTest,
    manifest: Manifest,
    scored: ScoredVideos,
    *,
    out: Path,
    example: ClipBatch,
    run: Mapping[str, object],
) -> None:
    """Write and print the results of a test. Raises ValueError if no video could be read.

    example: a batch to time. run: ranks and seconds, for results.json.
    """
    views, readable_R = test.views, scored.readable_R
    known = count_known(manifest, training_manifests(test))
    if not len(readable_R):
        first = scored.bad[0]
        raise ValueError(f"of {format_count(len(manifest), 'video')} none can be read; the first: {first.path}: {first.reason}")
    points = measure_points(test, scored.stack(), manifest.label_S[readable_R], example)
    speed_note = describe_speed(views.device, views.dtype, num_views=len(example.frames_BTHWC))
    names = result_names(test.keep_ratios)
    begin_writing(out, names)
    write_results(
        out,
        points,
        scored=scored,
        manifest=manifest,
        num_views=views.num_views,
        names=test.names,
        about={**describe_test(test, manifest), "also": known},
        run={**run, "speed": speed_note, "versions": collect_versions()},
    )
    shown = format_views(views.num_clips, views.num_crops)
    say(f"weights: {test.path}: {test.source}")  # logged before, too: here it is part of the result, on stdout
    say(
        f"{len(readable_R):,} of {format_count(len(manifest), 'video')} of {manifest.name} scored on {shown}; accuracy "
        f"is over these"
    )
    known_lines = [f"  {number:,} of them {name}: no accuracy on unseen videos" for name, number in known.items() if number]
    if known.get(CHOSE) and test.used["which"] == "best":
        known_lines.append("  the run's last weights are chosen on nothing: test them with --weights_from last")
    say(*known_lines, *describe_bad(scored.bad), *describe_points(points), f"written: {out}")
    described = test.origin.describe()
    model_name, videos = clean_line(Path(test.path).resolve().name), clean_line(manifest.name)
    title = f"{model_name} on {videos}" + (f"\n{described}, " if described else ", ") + shown
    draw_results(out, points, names=test.names, title=title, speed_note=speed_note)
    end_writing(out, names)


@torch.no_grad()
def measure_points(test: ClassifierTest, scores_RVC: np.ndarray, label_R: np.ndarray, example: ClipBatch) -> list[SweepPoint]:
    """Accuracy and cost at every fraction of kept tokens; speed is measured if there are
    several."""
    device = test.views.device
    speeds: list[float | None] = [None] * len(test.models)
    if len(test.models) > 1:
        seconds = time_forwards([partial(model, example.frames_BTHWC, example.seed_B) for model in test.models], device)
        speeds = [len(example.frames_BTHWC) / value for value in seconds]
    return [
        SweepPoint(
            model.keep_ratio,
            measure_accuracy(scores_RVC[:, number], label_R),
            *forward_macs(model, size_name=describe_model(model).size_name, device=device),
            speeds[number],
        )
        for number, model in enumerate(test.models)
    ]


def training_manifests(test: ClassifierTest) -> dict[str, tuple[str, str | None]]:
    """Manifests, with the roots of their paths, that the weights were trained on and chosen with.

    A weight file may be somebody else's and name any path: only a plain list of moderate size is
    read, and a folder only if a run's own recipe names it.
    """
    origin, may_be_folder = test.origin, Path(test.path).is_dir()
    trained, chosen = (origin.trained_on, origin.trained_root), (origin.chosen_on, origin.chosen_root)
    named = {"were trained on": trained, CHOSE: chosen}
    return {name: pair for name, pair in named.items() if is_list(pair[0] or "", may_be_folder=may_be_folder)}


def describe_test(test: ClassifierTest, manifest: Manifest) -> dict[str, object]:
    """Fields of results.json: what was tested, and how."""
    return {
        "weights": test.path,
        "source": test.source,
        "weights_used": test.used,
        "origin": test.origin.as_json(),
        "precision": test.views.precision,
        "model": describe_model(test.models[-1]).describe()[:-1],
        "manifest": manifest.name,
        "views": test.views.as_json(),
    }


def classify_video(test: ClassifierTest, path: str, *, ranks: RankInfo) -> None:
    """Print the most likely classes of one video, with their scores, at every fraction.

    Raises ValueError for a file that is not there or cannot be read.
    """
    if not is_file(path):
        raise ValueError(why_no_video(path, "no file"))
    manifest = Manifest([path], np.array([-1]), np.array([np.nan]), np.array([np.nan]), Path(path).name)
    scored = score_manifest(test, manifest, test.views.read(manifest, rank=ranks.rank, world_size=ranks.world_size), ranks)
    if scored is None:
        return
    (video,) = scored.videos
    if video.mean is None:
        raise ValueError(why_no_video(path, f"cannot be read: {scored.bad[0].reason}"))
    say(f"{path}: {format_count(video.num_read, 'view')}")
    for ratio, scores_C in zip(test.keep_ratios, video.mean, strict=True):
        if len(test.keep_ratios) > 1:
            say(f"with {format_part(ratio, 'tokens')}:")
        say(*(f"  {scores_C[label]:.4f}  {test.names[label]}" for label in top_classes(scores_C, TOP)))
