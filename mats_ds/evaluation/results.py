"""Files of a test: results.json, CSV tables of classes, videos and costs, and two pictures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mats_ds.core.clips import BadClip
from mats_ds.core.format import format_figure, format_part, format_seconds
from mats_ds.core.storage.documents import parse_json
from mats_ds.core.storage.files import describe_wrong_kind, format_csv, read_bytes, write_json, write_text
from mats_ds.core.storage.output_folder import make_subfolder, remove_parts
from mats_ds.data.manifest import Manifest
from mats_ds.evaluation.accuracy import TOP, Accuracy, rank_labels, summarize_accuracy, top_classes
from mats_ds.evaluation.plots import SweepPoint, draw_confusion, draw_sweep
from mats_ds.metering.proportion import Proportion
from mats_ds.visualization.drawing import try_to_draw

if TYPE_CHECKING:  # imported where it is used: to know a folder of results needs no torch
    from mats_ds.evaluation.scoring import ScoredVideos, VideoScore

COMMAND = "evaluate"
ADVICE = "make room or mend that, then start the same command again"
DIGITS = 6
SHOWN_BAD = 5
UNREADABLE_COLUMNS = ("sample", "path", "reason")
RESULTS = "results.json"
KEYS = {"weights", "manifest", "views", "videos", "results"}  # of results.json, since version 0.1
FILES = {RESULTS, "per_class.csv", "predictions.csv", "unreadable.csv", "confusion.png", "sweep.csv", "sweep.png"}
MAX_BYTES = 100_000_000  # of results.json: a few kB per class and fraction


def result_names(keep_ratios: Sequence[float]) -> list[str]:
    """Names of all files of a test at these fractions, relative to its folder."""
    tables = ("per_class.csv", "predictions.csv", "confusion.png")
    if len(keep_ratios) == 1:
        return [RESULTS, "unreadable.csv", *tables]
    in_subfolders = [f"{ratio_folder(ratio)}/{name}" for ratio in keep_ratios for name in tables]
    return [RESULTS, "unreadable.csv", "sweep.csv", "sweep.png", *in_subfolders]


def ratio_folder(keep_ratio: float) -> str:
    """The name of the subfolder for one of several fractions."""
    return f"keep-{keep_ratio:g}"


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV file, aside first and renamed when it is whole."""
    write_text(path, format_csv([header, *rows]))


def write_per_class(path: Path, accuracy: Accuracy, names: Sequence[str]) -> None:
    """Top-1 of every class with its interval, and the class that it is most often confused with."""

    def row(label: int) -> list[object]:
        proportion = accuracy.classes[label]
        wrong_C = accuracy.confusion_CC[label].copy()
        wrong_C[label] = 0
        confused_with = names[int(wrong_C.argmax())] if wrong_C.any() else ""
        numbers = ["" if math.isnan(value) else f"{value:.{DIGITS}f}" for value in (proportion.value, *proportion.interval)]
        return [label, names[label], proportion.total, proportion.hits, *numbers, confused_with, int(wrong_C.max())]

    header = ("class", "name", "videos", "correct", "accuracy", "low", "high", "most_taken_for", "times")
    write_table(path, header, (row(label) for label in range(len(names))))


def write_predictions(path: Path, videos: Sequence[VideoScore], manifest: Manifest, names: Sequence[str]) -> None:
    """One row per readable video: true and predicted class, score, rank of the true class, top
    5."""

    def row(sample: int, scores_C: np.ndarray, num_read: int) -> list[object]:
        best, label = top_classes(scores_C), int(manifest.label_S[sample])
        rank = int(rank_labels(scores_C[None], manifest.label_S[sample : sample + 1])[0]) + 1
        shown = " ".join(f"{guess}:{scores_C[guess]:.{DIGITS}f}" for guess in best)
        top = [names[label], best[0], names[best[0]], f"{scores_C[best[0]]:.{DIGITS}f}"]
        return [sample, manifest.paths[sample], label, *top, rank, num_read, shown]

    header = ("sample", "path", "label", "name", "predicted", "predicted_name", "score", "place", "views_read", f"top{TOP}")
    rows = (row(sample, video.mean, video.num_read) for sample, video in enumerate(videos) if video.mean is not None)
    write_table(path, header, rows)


def write_sweep(path: Path, points: Sequence[SweepPoint]) -> None:
    """One row per fraction of kept tokens: costs and accuracy."""

    def row(point: SweepPoint) -> list[object]:
        accuracy = point.accuracy
        values = accuracy.top1.value, *accuracy.top1.interval, accuracy.top5.value
        return [*point.costs().values(), *(f"{value:.{DIGITS}f}" for value in values)]

    write_table(path, (*points[0].costs(), "top1", "top1_low", "top1_high", "top5"), map(row, points))


def write_unreadable(path: Path, bad: Sequence[BadClip]) -> None:
    """Videos that could not be read, at least in part, and why."""
    write_table(path, UNREADABLE_COLUMNS, ((clip.sample, clip.path, clip.reason) for clip in bad))


def write_results(
    folder: Path,
    points: Sequence[SweepPoint],
    *,
    scored: ScoredVideos,
    manifest: Manifest,
    num_views: int,
    names: Sequence[str],
    about: Mapping[str, object],
    run: Mapping[str, object],
) -> None:
    """Write everything but the pictures; with several points, the tables of each into a subfolder.

    scored: scores [points, classes]. num_views: per video. names: of the classes. results.json
    holds `about`, the counts of videos, the results and `run`; all but `run` is equal on any number
    of ranks. The folder must be held by this process: unfinished files in it are removed.
    """
    from mats_ds.evaluation.scoring import VideoScore

    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder, of=FILES.__contains__)
    for number, point in enumerate(points):
        own = make_subfolder(folder, ratio_folder(point.keep_ratio)) if len(points) > 1 else folder
        remove_parts(own, of=FILES.__contains__)
        videos = [VideoScore(None if video.mean is None else video.mean[number], video.num_read) for video in scored.videos]
        write_per_class(own / "per_class.csv", point.accuracy, names)
        write_predictions(own / "predictions.csv", videos, manifest, names)
    if len(points) > 1:
        write_sweep(folder / "sweep.csv", points)
    write_unreadable(folder / "unreadable.csv", scored.bad)
    results = [{**point.costs(), **summarize_accuracy(point.accuracy)} for point in points]
    counts = count_videos(scored.videos, num_views=num_views)
    write_json(folder / RESULTS, {**about, "videos": counts, "results": results, "run": run}, indent=2)


def draw_results(folder: Path, points: Sequence[SweepPoint], *, names: Sequence[str], title: str, speed_note: str) -> None:
    """Draw the pictures of a test. One that cannot be drawn is logged and left out."""
    drawings = []
    for point in points:
        path = (folder / ratio_folder(point.keep_ratio) if len(points) > 1 else folder) / "confusion.png"
        kept = f"{title}, {format_part(point.keep_ratio, 'tokens')} kept"
        drawings.append((path, partial(draw_confusion, point.accuracy, names, path, title=kept)))
    if len(points) > 1:
        path = folder / "sweep.png"
        drawings.append((path, partial(draw_sweep, points, path, title=title, speed_note=speed_note)))
    for path, draw in drawings:
        if not try_to_draw(draw, path) and describe_wrong_kind(path) is None:
            with contextlib.suppress(OSError):
                path.unlink()  # that of an earlier test would show other numbers


def is_test_folder(folder: Path) -> bool:
    """Whether a test of version 0.1, which left no marker, made the folder: known by results.json.

    A run's folder stays the run's, even if a test was once written into it.
    """
    if (folder / "run.json").exists():
        return False
    try:
        tree = parse_json(read_bytes(folder / RESULTS, max_bytes=MAX_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and tree.keys() >= KEYS


def count_videos(videos: Sequence[VideoScore], *, num_views: int) -> dict[str, int]:
    """Numbers of videos: listed, scored, scored on some views only, and unreadable."""
    read = [video.num_read for video in videos]
    return {
        "listed": len(read),
        "scored": sum(number > 0 for number in read),
        "scored_on_some_views": sum(0 < number < num_views for number in read),
        "unreadable": read.count(0),
    }


def describe_bad(bad: Sequence[BadClip]) -> list[str]:
    """Lines that name the first unreadable videos and count the others."""
    lines = [f"  {clip.verdict}" for clip in bad[:SHOWN_BAD]]
    return lines if len(bad) <= SHOWN_BAD else [*lines, f"  and {len(bad) - SHOWN_BAD:,} more, in unreadable.csv"]


def describe_points(points: Sequence[SweepPoint]) -> list[str]:
    """Lines with the cost and accuracy of each point."""
    lines = []
    for point in points:
        accuracy, gmacs = point.accuracy, point.macs / 1e9
        # of so few classes that these are all of them, it says nothing
        top = f"top-{accuracy.num_top} {accuracy.top5.describe()}, " if accuracy.num_top < len(accuracy.classes) else ""
        speed = f", {format_figure(point.views_per_second, 3)} views/s" if point.views_per_second else ""
        lines += [
            f"{format_part(point.keep_ratio, 'tokens')}: {format_figure(gmacs, 3)} GMACs a view{speed}",
            f"  top-1 {accuracy.top1.describe()}",
            f"  {top}mean of classes {100 * accuracy.mean_class:.2f}%",
        ]
    return lines


@dataclass(frozen=True)
class ProbeResult:
    """One probe of one set of weights ("trained" or "fresh"); `settings`: of the probe, as text."""

    probe: str
    weights: str
    top1: Proportion
    settings: str
    seconds: float

    def describe(self) -> str:
        return f"{self.probe:<10} {self.weights:<8} {self.top1.describe()}  ({self.settings}; {format_seconds(self.seconds)})"

    def as_json(self) -> dict[str, object]:
        return {
            "probe": self.probe,
            "weights": self.weights,
            "top1": self.top1.as_json(),
            "settings": self.settings,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class ChanceLevel:
    """Accuracy without features: of guessing, and of always predicting the most frequent class."""

    num_classes: int
    most_frequent: float

    def describe(self) -> str:
        return (
            f"{'chance':<10} {'':<8} {100 / self.num_classes:.2f}% by guessing, {100 * self.most_frequent:.2f}% by always "
            "predicting the most frequent class"
        )

    def as_json(self) -> dict[str, float]:
        return {"guessing": 1 / self.num_classes, "most_frequent": self.most_frequent}
