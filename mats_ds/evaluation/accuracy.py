"""From the scores of single views to an accuracy with its confidence interval.

The scores of a video are the mean of its views' softmax scores, as VideoMAE is tested (arXiv 2203.12602). `VideoScores` adds them
up in float64 and in the order of the views, whoever read them, so that any number of ranks gives the same sum, bit for bit.
S videos, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mats_ds.core.proportion import Proportion

TOP = 5


@dataclass(frozen=True)
class VideoScore:
    """`mean`: float64 scores, None where no view could be read. `num_read`: the views that could."""

    mean: np.ndarray | None
    num_read: int


class VideoScores:
    """The scores of every video's views, on one rank; what the ranks found is put together with `merge`.

    A video is added up as soon as all of its views are here, so that a large test keeps one row a video.
    """

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views
        self._parts: dict[int, dict[int, np.ndarray | None]] = {}
        self._whole: dict[int, VideoScore] = {}

    def add(self, sample: int, view: int, scores: np.ndarray | None) -> None:
        """Scores (of any shape) of view number `view` of video `sample`; None if it could not be read."""
        views = self._parts.setdefault(sample, {})
        assert sample not in self._whole and view not in views, f"view {view} of video {sample} was counted twice"
        views[view] = scores if scores is None else scores.astype(np.float64)
        if len(views) == self.num_views:
            self._whole[sample] = mean_score([views[number] for number in range(self.num_views)])
            del self._parts[sample]

    def merge(self, other: VideoScores) -> None:
        """Take in what another rank has found."""
        assert not self._whole.keys() & (other._whole.keys() | other._parts.keys()), "a video was counted twice"
        self._whole |= other._whole
        for sample, views in other._parts.items():
            for view, scores in views.items():
                self.add(sample, view, scores)

    def finish(self, num_videos: int) -> list[VideoScore]:
        """One entry a video, in the order of the manifest; nothing is missing."""
        assert not self._parts, f"views of videos {sorted(self._parts)} are missing"
        assert self._whole.keys() == set(range(num_videos)), "videos are missing"
        return [self._whole[sample] for sample in range(num_videos)]


def mean_score(views: list[np.ndarray | None]) -> VideoScore:
    """The mean over those views that could be read, added up one after the other."""
    read = [scores for scores in views if scores is not None]
    if not read:
        return VideoScore(None, 0)
    total = np.zeros_like(read[0])
    for scores in read:
        total += scores
    return VideoScore(total / len(read), len(read))


@dataclass(frozen=True)
class Accuracy:
    """Of the videos with scores. `classes`: top-1 of each class; confusion_CC: int64, true class by predicted class.

    `mean_class` is the mean over the classes that have videos; `num_top` is 5, or the number of classes if there are fewer.
    """

    top1: Proportion
    top5: Proportion
    num_top: int
    classes: tuple[Proportion, ...]
    confusion_CC: np.ndarray

    @property
    def mean_class(self) -> float:
        present = [share.value for share in self.classes if share.total]
        return sum(present) / len(present) if present else math.nan


def rank_labels(scores_SC: np.ndarray, label_S: np.ndarray) -> np.ndarray:
    """rank_S: how many classes come before the true one, from 0. Of equal scores the lower class comes first."""
    rows = np.arange(len(label_S))
    true_S1 = scores_SC[rows, label_S][:, None]
    before_SC = np.arange(scores_SC.shape[1])[None] < label_S[:, None]
    return ((scores_SC > true_S1) | ((scores_SC == true_S1) & before_SC)).sum(axis=1)


def top_classes(scores_C: np.ndarray, count: int = TOP) -> list[int]:
    """The likeliest classes, best first. Of equal scores the lower class comes first."""
    return np.argsort(-scores_C, kind="stable")[:count].tolist()


def measure_accuracy(scores_SC: np.ndarray, label_S: np.ndarray) -> Accuracy:
    """Accuracy of the scores of S videos against labels from 0 to C - 1."""
    num_videos, num_classes = scores_SC.shape
    rank_S = rank_labels(scores_SC, label_S) if num_videos else np.zeros(0, np.int64)
    num_top = min(TOP, num_classes)
    confusion_CC = np.zeros((num_classes, num_classes), np.int64)
    if num_videos:
        np.add.at(confusion_CC, (label_S, scores_SC.argmax(axis=1)), 1)
    classes = tuple(Proportion(int(confusion_CC[label, label]), int(confusion_CC[label].sum())) for label in range(num_classes))
    return Accuracy(
        top1=Proportion(int((rank_S == 0).sum()), num_videos),
        top5=Proportion(int((rank_S < num_top).sum()), num_videos),
        num_top=num_top,
        classes=classes,
        confusion_CC=confusion_CC,
    )


def summarize_accuracy(accuracy: Accuracy) -> Mapping[str, object]:
    """What results.json says of it."""
    mean_class = accuracy.mean_class
    return {
        "top1": accuracy.top1.as_json(),
        "top5": accuracy.top5.as_json() | {"k": accuracy.num_top},
        "mean_class_accuracy": None if math.isnan(mean_class) else mean_class,
    }
